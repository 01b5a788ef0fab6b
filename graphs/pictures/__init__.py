"""Graphs as pictures: what a figure shows, where nodes stand, DOT, and Graphviz."""
