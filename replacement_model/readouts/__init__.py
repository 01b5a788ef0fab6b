"""What features say without replacing anything: what fires over a corpus, and which tokens a feature promotes."""
