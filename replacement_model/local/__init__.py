"""The local replacement model of one prompt: what a forward pass froze, and the adjoint that rows come from."""
