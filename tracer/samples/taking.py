"""Taking the sample while a corpus streams by, in bounded memory.

Contexts are kept or not by a hash of their number. Once they hold more tokens than the sample may, the rule becomes twice
as strict and those that no longer meet it are dropped. What remains depends on the corpus alone, not on batches or on where a
run was interrupted; it is a fair sample of contexts, and the whole corpus where that is small enough.

Letters: B contexts of a batch, W positions of the longest, n active entries, L layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosstrace.graphs.tensor_file import TensorSource, map_tensors, narrowest, write_tensors
from crosstrace.replacement_model.readouts.norm_scales import NORMS
from crosstrace.tracer.samples.sample import FORMAT, VERSION

_STATE = "crosstrace-sample-state/1"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class _Kept:
    """One context: its tokens, where counting starts, sums of norms (L, 3), and each layer's entries."""

    number: int
    tokens: NDArray[np.int32]
    first: int
    norms: NDArray[np.float64]
    entries: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]] = field(default_factory=list)
    """For each layer position, feature and activation (n,), ascending by (position, feature)."""


class SampleTaker:
    """The sample so far.

    Attributes:
        tokens: The most tokens that it may hold.
        strictness: One in 2 ** strictness contexts is kept.
    """

    def __init__(self, n_features: Sequence[int], tokens: int) -> None:
        """
        Args:
            n_features: Features of each layer.
            tokens: The most tokens that the sample may hold; at least one context is always kept.
        """
        self.n_features, self.tokens, self.strictness = list(n_features), tokens, 0
        self._kept: dict[int, _Kept] = {}
        self._batch: list[_Kept | None] = []
        self._width = 0

    def begin(self, tokens_bw: NDArray[np.int64], wanted_bw: NDArray[np.bool_], first_number: int) -> None:
        """Begin a batch.

        Args:
            tokens_bw: (B, W) token ids, padded on the right.
            wanted_bw: (B, W) the positions that count; those of a context are its last ones.
            first_number: The number of the first context in the corpus.
        """
        n_layers = len(self.n_features)
        self._width = tokens_bw.shape[1]
        self._wanted_bw = wanted_bw
        self._batch = []
        for row, (tokens_w, wanted_w) in enumerate(zip(tokens_bw, wanted_bw, strict=True)):
            number = first_number + row
            counted = np.flatnonzero(wanted_w)
            if not len(counted) or not _passes(number, self.strictness):
                self._batch.append(None)
                continue
            tokens = tokens_w[: counted[-1] + 1].astype(np.int32)
            kept = _Kept(number, tokens, int(counted[0]), np.zeros((n_layers, len(NORMS))))
            kept.entries = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))] * n_layers
            self._batch.append(kept)

    def see_norm(self, layer: int, norm: int, inverse_x: Any) -> None:
        """Add 1 / rms (X,) of a layer's norm at the batch's positions that count; see `watched_norms`."""
        if layer >= len(self.n_features):
            return
        row_x = np.nonzero(self._wanted_bw)[0]
        sums = np.bincount(row_x, weights=inverse_x.double().numpy(), minlength=len(self._batch))
        for kept, total in zip(self._batch, sums.tolist(), strict=True):
            if kept is not None:
                kept.norms[layer, norm] = total

    def add(self, layer: int, places_n: Any, features_n: Any, values_n: Any) -> None:
        """Add a layer's active entries in the batch: places in the flat (B * W), features, activations."""
        positive = values_n > 0
        places_n, features_n, values_n = places_n[positive], features_n[positive], values_n[positive]
        order = np.lexsort((features_n, places_n))
        places_n, features_n, values_n = places_n[order], features_n[order], values_n[order]
        bounds = np.searchsorted(places_n, np.arange(len(self._batch) + 1) * self._width)
        for row, kept in enumerate(self._batch):
            if kept is not None:
                part = slice(bounds[row], bounds[row + 1])
                positions = (places_n[part] - row * self._width).astype(np.int32)
                kept.entries[layer] = (
                    positions,
                    features_n[part].astype(np.int32),
                    values_n[part].astype(np.float32),
                )

    def end(self) -> None:
        """End the batch: its contexts are in, and others may have to go."""
        self._kept |= {kept.number: kept for kept in self._batch if kept is not None}
        self._batch = []
        while len(self._kept) > 1 and sum(len(kept.tokens) for kept in self._kept.values()) > self.tokens:
            self.strictness += 1
            passing = {n: kept for n, kept in self._kept.items() if _passes(n, self.strictness)}
            self._kept = passing or dict(list(self._kept.items())[:1])

    def save(self, path: Path) -> None:
        """Save the state of a run, from which `restore` continues."""
        write_tensors(path, (_STATE, json.dumps({"strictness": self.strictness})), self._sources(lambda ids: []))

    def restore(self, path: Path, n_contexts: int) -> None:
        """Continue from what `save` wrote, without contexts that were read after the state of the run was saved.

        Args:
            path: The file.
            n_contexts: How many contexts of the corpus the run knows.

        Raises:
            ValueError: The file is not such a state.
        """
        metadata, tensors = map_tensors(path)
        if _STATE not in metadata:
            raise ValueError(f"{path} is not the state of a sample; delete {path.parent}")
        self.strictness = int(json.loads(metadata[_STATE])["strictness"])
        ids, starts = tensors["token_ids"], tensors["starts"].astype(np.int64)
        for row, number in enumerate(tensors["number"].tolist()):
            if number >= n_contexts:
                continue
            begin, end = starts[row : row + 2].tolist()
            kept = _Kept(
                number,
                ids[tensors["tokens"][begin:end]].astype(np.int32),
                int(tensors["first"][row]),
                np.array(tensors["norms"][row]),
            )
            for layer in range(len(self.n_features)):
                offsets = tensors[f"{layer}.offsets"][begin : end + 1].astype(np.int64)
                part = slice(int(offsets[0]), int(offsets[-1]))
                kept.entries.append(
                    (
                        np.repeat(np.arange(end - begin), np.diff(offsets)).astype(np.int32),
                        tensors[f"{layer}.features"][part].astype(np.int32),
                        np.array(tensors[f"{layer}.values"][part]),
                    )
                )
            self._kept[number] = kept

    def write(self, path: Path, header: dict[str, Any], strings: Callable[[NDArray[np.int64]], list[str]]) -> None:
        """Write the sample.

        Args:
            path: The file.
            header: What it says about itself, besides its version and how it was drawn.
            strings: Gives tokens' texts.

        Raises:
            OSError: The file cannot be written; nothing is left behind.
        """
        told = {"version": VERSION, **header, "n_features": self.n_features, "share": 0.5**self.strictness}
        write_tensors(path, (FORMAT, json.dumps(told, sort_keys=True)), self._sources(strings))

    def _sources(self, strings: Callable[[NDArray[np.int64]], list[str]]) -> list[TensorSource]:
        kept = [self._kept[number] for number in sorted(self._kept)]
        lengths = np.array([len(one.tokens) for one in kept], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.concatenate([np.zeros(0, np.int32), *(one.tokens for one in kept)])
        ids, numbers = np.unique(tokens, return_inverse=True)
        texts = [text.encode("utf-8", "surrogatepass") for text in strings(ids.astype(np.int64))]
        string_starts = np.cumsum([0, *map(len, texts)])
        shape = (0, len(self.n_features), len(NORMS))
        sources = [
            TensorSource.of("starts", starts),
            TensorSource.of("first", np.array([one.first for one in kept], dtype=np.int32)),
            TensorSource.of("number", np.array([one.number for one in kept], dtype=np.int64)),
            TensorSource.of("norms", np.stack([one.norms for one in kept]) if kept else np.zeros(shape)),
            TensorSource.of("tokens", numbers.astype(narrowest(len(ids)))),
            TensorSource.of("token_ids", ids.astype(np.int32)),
            TensorSource.of("strings", np.frombuffer(b"".join(texts), np.uint8)),
            TensorSource.of("string_starts", string_starts.astype(np.int64)),
        ]
        for layer, width in enumerate(self.n_features):
            parts = [one.entries[layer] for one in kept]
            counts = np.zeros(int(starts[-1]), dtype=np.int64)
            for begin, (positions, _, _) in zip(starts.tolist(), parts, strict=False):
                np.add.at(counts, begin + positions.astype(np.int64), 1)
            features = np.concatenate([np.zeros(0, np.int32), *(part[1] for part in parts)])
            values = np.concatenate([np.zeros(0, np.float32), *(part[2] for part in parts)])
            sources += [
                TensorSource.of(f"{layer}.offsets", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
                TensorSource.of(f"{layer}.features", features.astype(narrowest(width))),
                TensorSource.of(f"{layer}.values", values),
            ]
        return sources


def _passes(number: int, strictness: int) -> bool:
    """Whether a context is among the one in 2 ** strictness that are kept."""
    if not strictness:
        return True
    with np.errstate(over="ignore"):
        mixed = int(np.uint64(number + 1) * _MULTIPLIER)
    return mixed >> (64 - strictness) == 0
