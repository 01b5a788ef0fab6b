"""From text to batches of activations: documents, windows of tokens, forward passes, a bounded shuffle buffer."""
