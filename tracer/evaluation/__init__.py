"""How good a dictionary is: what its reconstructions miss, how sparse it is, and what splicing them in costs the model."""
