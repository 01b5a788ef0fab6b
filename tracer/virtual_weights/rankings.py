"""How links may be ranked; imports nothing heavy."""

RANKINGS = ("virtual", "expected")
"""By the virtual weight, or by its expectation over a sample of a corpus."""
