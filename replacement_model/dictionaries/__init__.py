"""Sparse dictionaries in use: their weights, the rows of active features, and the file formats they are read from."""
