"""The feature cards that the demo is shipped with: those of its own sentences."""

import tempfile
from pathlib import Path

from crosstrace.graphs import FeatureCards
from crosstrace.replacement_model import ReplacementModel, demo
from crosstrace.replacement_model.demo.corpus import sentences
from crosstrace.tracer import build_cards

# As the command line writes them with --top 5 --logits 8: the demo has to stay small.
TOP, LOGITS = 5, 8
CORPUS_NAME = "demo-sentences.txt"


def write_corpus(folder: Path) -> Path:
    """Every sentence of the demo, held-out ones included, a line each: what `crosstrace features --corpus` reads."""
    path = folder / CORPUS_NAME
    path.write_text("".join(f"{sentence.text}\n" for sentence in sentences(demo.load_facts())), encoding="utf-8")
    return path


def make_cards(model: ReplacementModel, path: Path) -> FeatureCards:
    """Write the cards of a demo to `path`."""
    model.name, model.transcoders.reader.name = demo.MODEL_NAME, demo.TRANSCODERS_NAME
    with tempfile.TemporaryDirectory() as scratch:
        return build_cards(model, write_corpus(Path(scratch)), path, top=TOP, logits=LOGITS)
