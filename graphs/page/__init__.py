"""The interactive page of a graph, and that of two graphs; its source is in viewer/."""
