"""Defaults of tracing, in one place for the Python API and the command line; imports nothing heavy."""

MAX_LOGITS = 10
LOGIT_PROBABILITY = 0.95
# How many features get a row unless the user sets a cap, the most influential ones: on short prompts all of them.
MAX_FEATURE_NODES = 8192
# Under a cap, features are ranked again after this share of the nodes, then whenever half as many again are known. That
# chooses as well as ranking twice as often does, with fewer and larger batches.
FIRST_RANKED, RANKED_GROWTH = 1 / 16, 1 / 2
# Bytes of rows held in memory; more of them go to disk.
ROWS_IN_MEMORY = 4 * 10**9
# An interruption may cost the rows of this many seconds.
SAVE_EVERY_SECONDS = 10.0

# Feature cards: tokens per context, contexts kept per feature, tokens kept at each end of its direct logits.
CONTEXT_LENGTH = 256
CARD_CONTEXTS = 10
CARD_LOGITS = 10
# Tokens of the corpus that a sample keeps with everything that fires in them.
SAMPLE_TOKENS = 50_000
# Global weights: strongest inputs and outputs of a feature that are kept.
STRONGEST_WEIGHTS = 32
# Labels: features on which another one's label is tried too.
SHUFFLED_LABELS = 30
# The state of a run over a corpus is saved this often, unless saving would take more than this share of the time.
CARDS_SAVE_SECONDS = 60.0
CARDS_SAVE_SHARE = 0.05

# Reading: latents kept at each position of every layer, and rows of the table on the screen.
READ_TOP = 10
READ_ROWS = 20

# Attention: heads that are taken apart, those that carry most, and the strongest terms kept of each.
ATTENTION_HEADS = 8
ATTENTION_TERMS = 10

# Evaluation: tokens that count, and how many of them, the first, have single layers replaced.
EVALUATION_TOKENS = 10_000
EVALUATION_LAYER_TOKENS = 1_024
