"""Prompts before and after an intervention, and the names that features go by."""
