"""Tables of what features do to each other, and of their labels."""
