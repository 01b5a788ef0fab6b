"""What matters in a graph: influence, pruning, scores, paths, groups of nodes, and two graphs side by side."""
