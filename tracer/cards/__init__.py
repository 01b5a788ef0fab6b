"""Feature cards from a corpus, in bounded memory."""
