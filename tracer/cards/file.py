"""From the state of a finished run to the file of feature cards that `graphs/cards/feature_cards.py` reads.

One layer's tensors are made at a time. Only contexts that some feature's card shows go into the file, each once.

Letters: S features that fired, K top contexts, R rows (contexts of features), E entries, C contexts, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crosstrace.graphs.cards.feature_cards import FORMAT, VERSION
from crosstrace.graphs.tensor_file import TensorSource, map_tensors, narrowest, write_tensors
from crosstrace.replacement_model import LoadedModel
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.prompts import token_strings
from crosstrace.replacement_model.readouts.direct_logits import direct_logits
from crosstrace.tracer.cards.run import CardRun
from crosstrace.tracer.cards.tops import BINS, LayerTops

_LOGIT_PARTS = ("promoted", "raised", "suppressed", "lowered", "spread", "coherence")
_CONTEXTS_AT_A_TIME = 4096
_NO_METADATA = ("crosstrace-logits", "1")


def write_layer_logits(
    model: LoadedModel, used: DictionaryInUse, run: CardRun, layer: int, count: int, known: Callable[[int], None]
) -> None:
    """Compute what a layer's features promote and suppress into the run's folder, unless an earlier run has done so.

    Args:
        model: The model.
        used: Whose features.
        run: A run that has read its corpus.
        layer: The layer.
        count: Tokens kept at each end.
        known: Called from time to time with how many more features are done.
    """
    path = logits_path(run, layer)
    if path.is_file():
        known(run.layers[layer].used)
        return
    features = np.sort(run.layers[layer].features[: run.layers[layer].used]).astype(np.int64)
    logits = direct_logits(model, layer, torch.from_numpy(features), count, known, dictionary=used)
    arrays = {name: getattr(logits, name).numpy() for name in _LOGIT_PARTS}
    for name in ("promoted", "suppressed"):
        arrays[name] = arrays[name].astype(np.int32)
    write_tensors(path, _NO_METADATA, [TensorSource.of(name, array) for name, array in arrays.items()])


def logits_path(run: CardRun, layer: int) -> Path:
    """Return the file that holds what a layer's features promote and suppress."""
    return run.folder / f"logits_{layer}.safetensors"


@dataclass(frozen=True)
class _Numbering:
    """Which of the corpus' contexts and tokens are in the file, and the number that each has there."""

    contexts: NDArray[np.int64]  # those in the file, ascending
    context_number: NDArray[np.int64]
    tokens: NDArray[np.int64]
    token_number: NDArray[np.int64]

    @property
    def context_type(self) -> np.dtype[Any]:
        return narrowest(len(self.contexts))

    @property
    def token_type(self) -> np.dtype[Any]:
        return narrowest(len(self.tokens))


def write_cards(path: Path, model: LoadedModel, run: CardRun, header: dict[str, Any], context_length: int) -> None:
    """Write the cards of a finished run whose folder holds the logits of every layer.

    Args:
        path: The file.
        model: The model.
        run: The run.
        header: What the file says about itself, besides its version.
        context_length: The most tokens of a context.

    Raises:
        OSError: The file cannot be written; nothing is left behind, and the run can be continued.
    """
    layers = [_LayerCards(run, layer) for layer in range(len(run.layers))]
    numbering, starts, token_source = _numbering(model, run, layers)
    strings = [string.encode("utf-8", "surrogatepass") for string in _strings(model, numbering.tokens)]
    string_starts = np.cumsum([0, *map(len, strings)])
    tensors = [
        TensorSource.of("starts", starts.astype(narrowest(int(starts[-1])))),
        token_source,
        TensorSource.of("token_ids", numbering.tokens.astype(np.int32)),
        TensorSource.of("string_starts", string_starts.astype(narrowest(int(string_starts[-1])))),
        TensorSource.of("strings", np.frombuffer(b"".join(strings), np.uint8)),
    ]
    position_type = narrowest(context_length)
    for layer in layers:
        tensors += layer.sources(numbering, position_type)
    write_tensors(path, (FORMAT, json.dumps({"version": VERSION, **header}, sort_keys=True)), tensors)


class _LayerCards:
    """One layer's tensors, made when they are asked for."""

    def __init__(self, run: CardRun, layer: int) -> None:
        self.run, self.layer = run, layer
        rows = self.rows()
        self.n_features = run.layers[layer].used
        self.n_rows = len(rows)
        self.n_entries = int(rows["count"].sum(dtype=np.int64))
        state = run.layers[layer]
        self.most = {
            "fired": int(state.fired[: state.used].max(initial=0)),
            "histogram": int(state.histogram[: state.used].max(initial=0)),
        }

    @property
    def state(self) -> LayerTops:
        return self.run.layers[self.layer]

    def order(self) -> NDArray[np.int64]:
        """Return the slots (S,) by feature."""
        return np.argsort(self.state.features[: self.state.used])

    def counts(self) -> NDArray[np.int64]:
        return (self.state.values[: self.state.used] > 0).sum(1)[self.order()]

    def rows(self) -> NDArray[Any]:
        """Return the records (R,) of the contexts by feature, strongest first."""
        order = self.order()
        numbers = self.state.records[: self.state.used][order]
        return np.asarray(self.run.log.mapped("records")[numbers[self.state.values[: self.state.used][order] > 0]])

    def entries(self) -> NDArray[Any]:
        """Return the activations (E,) in the windows, row by row."""
        rows = self.rows()
        first = np.cumsum(rows["count"], dtype=np.int64) - rows["count"]
        taken = np.repeat(rows["start"] - first, rows["count"]) + np.arange(self.n_entries)
        return np.asarray(self.run.log.mapped("entries")[taken])

    def logits(self, name: str) -> NDArray[Any]:
        return map_tensors(logits_path(self.run, self.layer))[1][name]

    def sources(self, numbering: _Numbering, position_type: np.dtype[Any]) -> list[TensorSource]:
        S, R, E, T = self.n_features, self.n_rows, self.n_entries, self.logits("promoted").shape[1]
        token = numbering.token_type

        def per_feature(name: str) -> NDArray[Any]:
            return getattr(self.state, name)[: self.state.used][self.order()]

        def numbered(name: str) -> NDArray[Any]:
            return numbering.token_number[self.logits(name)].astype(token)

        def scaled(name: str) -> NDArray[Any]:
            spread = np.maximum(self.logits("spread"), np.finfo(np.float32).tiny)
            return (self.logits(name) / spread[:, None]).astype(np.float16)

        def context() -> NDArray[Any]:
            return numbering.context_number[self.rows()["context"]].astype(numbering.context_type)

        def offsets(counts: NDArray[Any], largest: int) -> NDArray[Any]:
            return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(narrowest(largest))

        parts: list[tuple[str, Any, tuple[int, ...], Callable[[], NDArray[Any]]]] = [
            ("features", np.int32, (S,), partial(per_feature, "features")),
            ("fired", narrowest(self.most["fired"]), (S,), partial(per_feature, "fired")),
            ("exponent", np.int16, (S,), partial(per_feature, "exponent")),
            ("histogram", narrowest(self.most["histogram"]), (S, BINS), partial(per_feature, "histogram")),
            ("promoted", token, (S, T), partial(numbered, "promoted")),
            ("suppressed", token, (S, T), partial(numbered, "suppressed")),
            ("raised", np.float16, (S, T), partial(scaled, "raised")),
            ("lowered", np.float16, (S, T), partial(scaled, "lowered")),
            ("spread", np.float32, (S,), partial(self.logits, "spread")),
            ("coherence", np.float16, (S,), lambda: self.logits("coherence").astype(np.float16)),
            ("offsets", narrowest(R), (S + 1,), lambda: offsets(self.counts(), R)),
            ("context", numbering.context_type, (R,), context),
            ("peak", position_type, (R,), lambda: self.rows()["position"].astype(position_type)),
            ("windows", narrowest(E), (R + 1,), lambda: offsets(self.rows()["count"], E)),
            ("position", position_type, (E,), lambda: self.entries()["position"].astype(position_type)),
            ("activation", np.float32, (E,), lambda: self.entries()["value"]),
        ]
        return [TensorSource(f"{self.layer}.{name}", dtype, shape, read) for name, dtype, shape, read in parts]


def _numbering(
    model: LoadedModel, run: CardRun, layers: list[_LayerCards]
) -> tuple[_Numbering, NDArray[np.int64], TensorSource]:
    """Return what goes into the file, where its contexts start among its tokens, and those tokens."""
    used = np.zeros(run.log.n_contexts, dtype=np.bool_)
    occurs = np.zeros(model.description.vocab_size, dtype=np.bool_)
    for layer in layers:
        used[layer.rows()["context"]] = True
        occurs[layer.logits("promoted")] = True
        occurs[layer.logits("suppressed")] = True
    contexts = np.flatnonzero(used)
    lengths = np.asarray(run.log.mapped("contexts"), dtype=np.int64)
    begins, lengths = (np.cumsum(lengths) - lengths)[contexts], lengths[contexts]
    all_tokens = run.log.mapped("tokens")

    def blocks() -> Iterator[NDArray[Any]]:
        """Yield the tokens of these contexts, some contexts at a time."""
        for first in range(0, len(contexts), _CONTEXTS_AT_A_TIME):
            begin, length = (part[first : first + _CONTEXTS_AT_A_TIME] for part in (begins, lengths))
            yield all_tokens[np.repeat(begin - (np.cumsum(length) - length), length) + np.arange(length.sum())]

    for block in blocks():
        occurs[block] = True
    tokens = np.flatnonzero(occurs)
    numbering = _Numbering(contexts, np.cumsum(used) - 1, tokens, np.cumsum(occurs) - 1)
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def renumbered() -> NDArray[Any]:
        parts = [numbering.token_number[block].astype(numbering.token_type) for block in blocks()]
        return np.concatenate(parts)

    return numbering, starts, TensorSource("tokens", numbering.token_type, (int(starts[-1]),), renumbered)


def _strings(model: LoadedModel, tokens: NDArray[np.int64]) -> list[str]:
    return token_strings(tokens.tolist(), model.tokenizer)
