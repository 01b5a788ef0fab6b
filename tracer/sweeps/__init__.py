"""Sweeps: many prompts traced with the same settings, in one process or by workers, into one folder."""
