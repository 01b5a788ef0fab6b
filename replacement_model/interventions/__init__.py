"""Interventions: what to change in a pass, what to hold fixed meanwhile, and the passes that do it."""
