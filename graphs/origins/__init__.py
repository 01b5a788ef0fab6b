"""Where a graph comes from, if not from a trace."""
