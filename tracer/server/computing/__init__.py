"""What requests compute, without knowing that they are requests."""
