"""A training run from its first token to its files: stages, schedule, checkpoints, the record of what was done."""
