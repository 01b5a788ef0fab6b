"""Reports on chat models in the terminal."""
