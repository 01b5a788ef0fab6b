"""What features do to each other whatever the prompt: virtual weights, and their expectation over a corpus."""
