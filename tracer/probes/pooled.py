"""What a probe is trained on: the latents and the raw activations of texts, each pooled over the text's tokens.

Letters: E texts, P positions of one, X those of a batch that count, C columns (the latents of all layers side by side),
D the widths of all sites side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosstrace.replacement_model import LoadedModel
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse, Features
from crosstrace.replacement_model.prompts import prompt_ids
from crosstrace.replacement_model.readouts.feature_stream import stream_dictionaries
from crosstrace.tracer.probes.examples import Example
from crosstrace.tracer.progress import token_progress

_BATCH_TOKENS = 2048


class Pooling(Enum):
    """How the tokens of a text become one vector."""

    MEAN = "mean"
    LAST = "last"
    MAX = "max"


def pooled_rows(rows_px: NDArray[Any], pooling: Pooling) -> NDArray[Any]:
    """Return one vector (X,) for the tokens of a text, from their rows (P', X)."""
    match pooling:
        case Pooling.LAST:
            return rows_px[-1]
        case Pooling.MAX:
            return np.asarray(rows_px.max(0))
        case Pooling.MEAN:
            return np.asarray(rows_px.mean(0))


@dataclass(frozen=True)
class Columns:
    """The latents of some dictionaries, all side by side.

    Attributes:
        offsets: For each (dictionary, layer) its first column.
        total: C.
    """

    offsets: dict[tuple[int, int], int]
    total: int

    @staticmethod
    def of(used: Sequence[DictionaryInUse]) -> Columns:
        """Return the columns of some dictionaries."""
        offsets, total = {}, 0
        for number, dictionary in enumerate(used):
            for layer in dictionary.layers:
                offsets[number, layer] = total
                total += dictionary.n_features[layer]
        return Columns(offsets, total)

    def latent(self, column: int) -> tuple[int, int, int]:
        """Return which (dictionary, layer, feature) a column is."""
        where, first = max(((key, at) for key, at in self.offsets.items() if at <= column), key=lambda pair: pair[1])
        return (*where, column - first)


@dataclass(frozen=True)
class Pooled:
    """Texts as a probe sees them.

    Attributes:
        latents_ec: (E, C) sparse, pooled activations.
        raw_ed: (E, D) pooled activations of the model at the same sites.
        tokens: The token ids of each text, `<bos>` included.
    """

    latents_ec: scipy.sparse.csr_array
    raw_ed: NDArray[np.float32]
    tokens: list[list[int]]


def pool(
    model: LoadedModel,
    examples: Sequence[Example],
    used: Sequence[DictionaryInUse],
    pooling: Pooling,
    progress: bool | None = None,
) -> Pooled:
    """Run texts through the model and pool what dictionaries read, and what the model has there.

    Args:
        model: The model.
        examples: The texts.
        used: The dictionaries.
        pooling: How tokens become one vector. Excluded first positions are not among them.
        progress: Show progress on standard error; None: on a terminal.

    Raises:
        ValueError: A text is too long, or has no token that counts; file and line are named.
    """
    columns, size = Columns.of(used), model.description
    ids, firsts = [], []
    for example in examples:
        try:
            tokens = prompt_ids(example.text, model.tokenizer, model.name, size.vocab_size, size.max_positions).tolist()
        except ValueError as problem:
            raise ValueError(f"{example.place}: {problem}") from None
        firsts.append(size.excluded_first_of(tokens))
        if len(tokens) <= firsts[-1]:
            raise ValueError(
                f"{example.place}: no token counts: the first {firsts[-1]} of {len(tokens)} carry no latents"
            )
        ids.append(tokens)
    latents: list[scipy.sparse.csr_array] = [None] * len(examples)
    raw: list[NDArray[np.float32]] = [None] * len(examples)  # type: ignore[list-item]
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))  # alike in length: little padding
    total = sum(map(len, ids))
    with token_progress("reading", total, total, progress) as advance:
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and len(ids[order[stop]]) * (stop + 1 - start) <= _BATCH_TOKENS:
                stop += 1
            some = order[start:stop]
            batch = _Batch(model, [ids[number] for number in some], [firsts[number] for number in some], used, columns)
            for row, number in enumerate(some):
                latents[number], raw[number] = batch.pooled(row, pooling)
            advance(sum(len(ids[number]) for number in some))
            start = stop
    return Pooled(scipy.sparse.csr_array(scipy.sparse.vstack(latents, format="csr")), np.stack(raw), ids)


class _Batch:
    """Some texts, run together."""

    def __init__(
        self,
        model: LoadedModel,
        ids: Sequence[Sequence[int]],
        firsts: Sequence[int],
        used: Sequence[DictionaryInUse],
        columns: Columns,
    ) -> None:
        width = max(map(len, ids))
        tokens_bw = torch.zeros(len(ids), width, dtype=torch.int64)
        wanted_bw = torch.zeros(len(ids), width, dtype=torch.bool)
        for row, (tokens, first) in enumerate(zip(ids, firsts, strict=True)):
            tokens_bw[row, : len(tokens)] = torch.tensor(tokens)
            wanted_bw[row, first : len(tokens)] = True
        counts = wanted_bw.sum(1).tolist()
        self._ends = np.cumsum(counts)
        parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        raw: dict[tuple[int, int], NDArray[np.float32]] = {}

        def take(number: int, layer: int, input_xd: Tensor, features: Features) -> None:
            positions_n, features_n, values_n = (part.cpu().numpy() for part in features)
            parts.append((positions_n, features_n + columns.offsets[number, layer], values_n))
            raw[number, layer] = input_xd.float().cpu().numpy()

        stream_dictionaries(model, used, tokens_bw, wanted_bw, take)
        rows, cols, values = (np.concatenate([part[i] for part in parts]) for i in range(3))
        shape = (int(self._ends[-1]), columns.total)
        self._latents_xc = scipy.sparse.csr_array((values.astype(np.float32), (rows, cols)), shape=shape)
        self._raw_xd = np.concatenate([raw[key] for key in columns.offsets], axis=1)

    def latents(self, row: int) -> scipy.sparse.csr_array:
        """Return the latents (P', C) of the tokens of one text that count."""
        start, stop = self._tokens(row)
        return self._latents_xc[start:stop]

    def _tokens(self, row: int) -> tuple[int, int]:
        return (int(self._ends[row - 1]) if row else 0), int(self._ends[row])

    def pooled(self, row: int, pooling: Pooling) -> tuple[scipy.sparse.csr_array, NDArray[np.float32]]:
        """Return the latents (1, C) and the raw activations (D,) of one text."""
        start, stop = self._tokens(row)
        latents_pc, raw_d = self._latents_xc[start:stop], pooled_rows(self._raw_xd[start:stop], pooling)
        match pooling:
            case Pooling.LAST:
                return latents_pc[[-1]], raw_d
            case Pooling.MAX:
                return scipy.sparse.csr_array(latents_pc.max(axis=0).reshape(1, -1)), raw_d
            case Pooling.MEAN:
                shares_1p = scipy.sparse.csr_array(np.full((1, stop - start), 1 / (stop - start), np.float32))
                return shares_1p @ latents_pc, raw_d


def token_latents(
    model: LoadedModel,
    ids: Sequence[Sequence[int]],
    firsts: Sequence[int],
    used: Sequence[DictionaryInUse],
    columns: Columns,
) -> list[scipy.sparse.csr_array]:
    """Return the latents (P', C) of every token of some texts that counts.

    Args:
        model: The model.
        ids: Token ids of each text.
        firsts: How many first positions of each do not count.
        used: The dictionaries.
        columns: Their columns.
    """
    batch = _Batch(model, ids, firsts, used, columns)
    return [batch.latents(row) for row in range(len(ids))]
