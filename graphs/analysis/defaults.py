"""Default thresholds of pruning, in one place for the Python API and the command line; imports nothing heavy."""

NODE_THRESHOLD = 0.8
"""Share of the influence on the targets that the kept nodes carry."""
EDGE_THRESHOLD = 0.98
"""Share of the edges' scores that the kept edges carry."""
