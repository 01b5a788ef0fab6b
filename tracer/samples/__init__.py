"""A sample of a corpus with everything that fires in it: what statistics of pairs of features and tests of labels need."""
