"""The tables of what holds across many prompts."""
