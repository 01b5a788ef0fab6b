"""From a prompt to its edges: targets, rows of the adjacency, interrupted traces, and the plan of a trace."""
