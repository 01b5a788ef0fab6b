"""Graphs for other tools: the JSON of viewers, networkx, GraphML."""
