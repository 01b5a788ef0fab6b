"""Training runs of a few seconds on the demo's sentences."""

from __future__ import annotations

from pathlib import Path

from crosstrace.replacement_model import demo
from crosstrace.replacement_model.demo.corpus import training_sentences

SMALL = {
    "features": 32,
    "l0": 4,
    "l0_start": 8,
    "tokens": 1500,
    "batch_tokens": 128,
    "chunk_positions": 4,
    "buffer_tokens": 512,
    "statistics_tokens": 256,
    "end_to_end_tokens": 200,
    "end_to_end_windows": 1,
    "end_to_end_window_tokens": 48,
    "reset_every_steps": 2,
    "dead_after_tokens": 200,
    "checkpoint_minutes": 0.0,
}


def write_corpus(path: Path, n_sentences: int = 1500) -> Path:
    """Write some of the demo's sentences, one a line."""
    texts = [sentence.text for sentence in training_sentences(demo.load_facts())]
    path.write_text("\n".join(texts[:n_sentences]) + "\n", "utf-8")
    return path
