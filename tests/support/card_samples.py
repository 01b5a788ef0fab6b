"""A file of feature cards written by hand: two layers, three features that fired, strings of any kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crosstrace.graphs.cards.feature_cards import FORMAT
from crosstrace.graphs.tensor_file import TensorSource, write_tensors

STRINGS = ("<bos>", " Dallas", " is", " Austin", " Texas", " Paris")
HEADER = {
    "version": 1,
    "model": "some/model",
    "transcoders": "some/transcoders",
    "fingerprints": {"model": "m1", "transcoders": "t1"},
    "corpus": {"names": ["texts.txt"], "digest": "d", "texts": 2, "contexts": 2, "tokens": 7},
    "positions": 5,
    "settings": {"context_length": 4, "excluded_first": 1, "contexts": 2, "before": 1, "after": 1, "logits": 2},
    "n_features": [4, 3],
    "vocabulary_size": 100,
}


def sample_tensors(strings: Sequence[str] = STRINGS) -> dict[str, np.ndarray]:
    """Contexts "<bos> Dallas is Austin" and "<bos> Dallas is".

    L0/1 fires at " Dallas" in both (2.5 and 1.0), L0/3 at " is" of the first and the token after it, L1/0 at " is".
    """
    encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
    histogram = np.zeros((2, 8), np.uint8)
    histogram[0, [2, 5]] = 1  # 1.0 and 2.5 in bins of half
    histogram[1, [1, 4]] = 1  # 0.25 and 1.0 in bins of a quarter
    tensors = {
        "starts": [0, 4, 7],
        "tokens": [0, 1, 2, 3, 0, 1, 2],
        "token_ids": [2, 40, 41, 42, 43, 44],
        "strings": list(b"".join(encoded)),
        "string_starts": np.cumsum([0, *map(len, encoded)]),
        "0.features": [1, 3],
        "0.fired": [2, 2],
        "0.exponent": [2, 1],
        "0.histogram": histogram,
        "0.promoted": [[4, 3], [3, 4]],
        "0.suppressed": [[5, 0], [5, 1]],
        "0.raised": np.array([[1.0, 0.5], [8.0, 1.0]], np.float16),
        "0.lowered": np.array([[-2.0, -1.0], [-0.5, -0.25]], np.float16),
        "0.spread": np.array([0.5, 0.25], np.float32),
        "0.offsets": [0, 2, 3],
        "0.context": [0, 1, 0],
        "0.peak": [1, 1, 3],
        "0.windows": [0, 1, 2, 4],
        "0.position": [1, 1, 2, 3],
        "0.activation": np.array([2.5, 1.0, 0.25, 1.0], np.float32),
        "1.features": [0],
        "1.fired": [1],
        "1.exponent": [-1],
        "1.histogram": np.eye(8, dtype=np.uint8)[[7]],
        "1.promoted": [[3, 4]],
        "1.suppressed": [[5, 0]],
        "1.raised": np.array([[4.0, 3.0]], np.float16),
        "1.lowered": np.array([[-1.0, -1.0]], np.float16),
        "1.spread": np.array([1.0], np.float32),
        "1.offsets": [0, 1],
        "1.context": [1],
        "1.peak": [2],
        "1.windows": [0, 1],
        "1.position": [2],
        "1.activation": np.array([0.46875], np.float32),
    }
    signed = ("token_ids", "features", "exponent")
    return {
        name: values
        if isinstance(values, np.ndarray) and values.dtype != np.int64
        else np.array(values, np.int16 if name.endswith(signed) else np.uint8)
        for name, values in tensors.items()
    }


def write_sample(path: Path, strings: Sequence[str] = STRINGS, header: dict[str, Any] | None = None) -> Path:
    tensors = [TensorSource.of(name, array) for name, array in sample_tensors(strings).items()]
    write_tensors(path, (FORMAT, json.dumps({**HEADER, **(header or {})})), tensors)
    return path
