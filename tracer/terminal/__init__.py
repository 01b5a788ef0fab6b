"""What is shown in a terminal: every table that rich prints."""
