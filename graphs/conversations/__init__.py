"""What a graph keeps of a conversation."""
