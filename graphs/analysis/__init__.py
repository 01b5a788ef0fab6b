"""What matters in a graph: influence, pruning, scores, paths, groups of nodes, and the comparison of two graphs."""
