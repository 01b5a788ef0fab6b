"""Defaults of tracing, in one place for the Python API and the command line; imports nothing heavy."""

MAX_LOGITS = 10
LOGIT_PROBABILITY = 0.95
# Without a cap of the user's own, so many of the most influential features get a row: all of them on short prompts.
MAX_FEATURE_NODES = 8192
# Under a cap, features are ranked anew after this share of the nodes, and once half as many again are known: as good a
# choice as ranking twice as often, with fewer and larger batches.
FIRST_RANKED, RANKED_GROWTH = 1 / 16, 1 / 2
# Rows held in memory, in bytes; more of them go to disk.
ROWS_IN_MEMORY = 4 * 10**9
# Rows that an interruption may cost: those of the last so many seconds.
SAVE_EVERY_SECONDS = 10.0

# Feature cards: tokens of a context, contexts kept for a feature, tokens kept at both ends of its direct logits.
CONTEXT_LENGTH = 256
CARD_CONTEXTS = 10
CARD_LOGITS = 10
