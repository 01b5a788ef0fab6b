"""A graph against interventions on the model, one check a file."""
