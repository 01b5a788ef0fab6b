"""What holds across the graphs of many prompts: nodes aligned by role, the aggregate circuit, its statistics and pictures."""
