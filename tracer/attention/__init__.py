"""Attention in a graph: which head carried each edge, and why it looked there."""
