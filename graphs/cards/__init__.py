"""Feature cards: what a corpus showed of each feature, the labels made of it, and their files for viewers."""
