"""Feature activations of a batch as sparse entries, and edits applied to them.

Letters: B rows of a batch, W positions of a row in a pass, X = B * W flattened, L layers, D d_model, F features of a
layer, J layers a feature writes to, n entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.interventions.edits import Edits

# Decoder rows gathered at a time, in bytes.
_ROW_BYTES = 256 * 2**20


class Entries(NamedTuple):
    """The activations of one layer, ascending by (where, feature), each pair once.

    Attributes:
        where: (n,) int64 index into the X positions.
        features: (n,) int64 feature within the layer.
        values: (n,) float32 activation.
    """

    where: Tensor
    features: Tensor
    values: Tensor

    def keys(self, n_features: int) -> Tensor:
        """Number every (where, feature): (n,) int64, ascending, for a layer of `n_features`."""
        return self.where * n_features + self.features

    def part(self, kept: Tensor) -> Entries:
        """Return the entries that a mask (n,) keeps."""
        return Entries(self.where[kept], self.features[kept], self.values[kept])

    @staticmethod
    def from_keys(keys: Tensor, values: Tensor, n_features: int) -> Entries:
        """Make entries from ascending keys (n,) and their values (n,)."""
        return Entries(keys // n_features, keys % n_features, values)


def difference(new: Entries, old: Entries, n_features: int) -> Entries:
    """Subtract `old` from `new`, both of a layer with `n_features`, and drop zeros."""
    keys, place = torch.unique(torch.cat([new.keys(n_features), old.keys(n_features)]), return_inverse=True)
    values = torch.zeros(len(keys), device=keys.device)
    values[place[: len(new.where)]] = new.values  # each key is in either part at most once
    values[place[len(new.where) :]] -= old.values
    kept = values != 0
    return Entries.from_keys(keys[kept], values[kept], n_features)


def write(transcoders: Transcoders, layer: int, entries: Entries, written_lxd: Tensor) -> None:
    """Add the decoder vectors of one layer's entries into the MLP outputs (L, X, D) they write to, in place."""
    at_a_time = max(1, _ROW_BYTES // (4 * transcoders.d_model * transcoders.reader.n_written(layer)))
    for start in range(0, len(entries.where), at_a_time):
        part = slice(start, start + at_a_time)
        transcoders.write(layer, (entries.where[part], entries.features[part], entries.values[part]), written_lxd)


def row_activations(layers: Sequence[Entries], start: int, n_positions: int) -> SparseActivations:
    """Take the activations of one row out of a batch.

    Args:
        layers: The batch's entries, layer by layer.
        start: The row's first position among the X.
        n_positions: The number of its positions.
    """
    parts = []
    for entries in layers:
        first, stop = torch.searchsorted(
            entries.where, torch.tensor([start, start + n_positions], device=entries.where.device)
        )
        here = slice(int(first), int(stop))
        parts.append((entries.where[here] - start, entries.features[here], entries.values[here]))
    return SparseActivations.from_layers(parts, n_positions)


@dataclass(frozen=True)
class PassWindow:
    """The positions that a pass covers.

    Attributes:
        shift_b: (B,) int64, index in the row minus position in the prompt.
        live_bw: (B, W) bool, the positions that carry features: neither padding nor excluded.
    """

    shift_b: Tensor
    live_bw: Tensor

    @property
    def n_rows(self) -> int:
        """The number of rows B."""
        return self.live_bw.shape[0]

    @property
    def width(self) -> int:
        """The number of positions W."""
        return self.live_bw.shape[1]

    @cached_property
    def live(self) -> Tensor:
        """The indices of live positions among the X, int64."""
        return self.live_bw.flatten().nonzero().flatten()

    def encode(self, transcoders: Transcoders, layer: int, input_xd: Tensor) -> Entries:
        """Encode the inputs (X, D) of a layer's transcoder at live positions."""
        rows, features, values = transcoders.encode(layer, input_xd[self.live], 0)
        return Entries(self.live[rows], features, values)


class EditTable:
    """The edits of B rows as tensors, one table per layer.

    Attributes:
        edits: The edits of each row.
        n_features: The number of features in each layer.
    """

    def __init__(self, edits: Sequence[Edits], n_features: Sequence[int], device: torch.device) -> None:
        self.edits = list(edits)
        self.n_features = n_features
        self._others_b = torch.tensor([edit.others for edit in edits], device=device)
        places: list[list[tuple[int, int, int]]] = [[] for _ in n_features]
        changes: list[list[tuple[float, float]]] = [[] for _ in n_features]
        for row, edit in enumerate(edits):
            for (layer, position, feature), change in edit.features.items():
                places[layer].append((row, position, feature))
                changes[layer].append(change)
        self._places = [torch.tensor(p, dtype=torch.int64, device=device).view(-1, 3) for p in places]
        self._changes = [torch.tensor(c, dtype=torch.float32, device=device).view(-1, 2) for c in changes]

    def apply(self, layer: int, own: Entries, window: PassWindow) -> Entries:
        """Apply the edits to a layer's activations.

        Args:
            layer: The layer.
            own: Its activations without the edits.
            window: The positions that the pass covers; edits elsewhere are ignored.

        Returns:
            The activations with the edits, without zeros.
        """
        n_features, width = self.n_features[layer], window.width
        row, position, feature = self._places[layer].unbind(1)
        index = position + window.shift_b[row]
        inside = (index >= 0) & (index < width)
        keys, order = (((row * width + index) * n_features) + feature)[inside].sort()
        factor, offset = self._changes[layer][inside][order].unbind(1)
        own_keys = own.keys(n_features)
        before = torch.zeros_like(factor)
        if len(own_keys):
            place = torch.searchsorted(own_keys, keys).clamp(max=len(own_keys) - 1)
            before = torch.where(own_keys[place] == keys, own.values[place], before)
        untouched = ~torch.isin(own_keys, keys)
        others = own.values[untouched] * self._others_b[own.where[untouched] // width]
        keys = torch.cat([own_keys[untouched], keys])
        values = torch.cat([others, factor * before + offset])
        keys, order = keys[values != 0].sort()
        return Entries.from_keys(keys, values[values != 0][order], n_features)
