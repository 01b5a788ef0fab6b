"""Chat models: what decides a refusal, what a wrapper does to it, and whether an answer runs through its reasoning."""
