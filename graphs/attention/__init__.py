"""Attention in a graph: what it may keep about heads, as data."""
