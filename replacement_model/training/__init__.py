"""Training of transcoders, cross-layer transcoders and sparse autoencoders on the sparse kernels."""
