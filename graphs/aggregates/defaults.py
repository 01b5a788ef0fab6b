"""Default thresholds of aggregates, in one place for the Python API and the command line; imports nothing heavy."""

MIN_SHARE = 0.25
"""Share of the prompts that the nodes and edges of a circuit are in."""
MIN_INFLUENCE = 0.01
"""Mean share of the influence that passes through its nodes."""
MIN_EDGE = 0.005
"""Mean share of the influence that passes along its edges."""
FALSE_DISCOVERY_RATE = 0.05
"""Of the nodes in which groups of prompts are said to differ, the expected share of mistakes."""
