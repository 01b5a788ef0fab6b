"""The sparse type for feature activations.

Letters: L layers, P positions, F features of a layer, N active features of a prompt, R distinct ones (layer, feature).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ByFeature:
    """The entries of all layers in groups that have one feature, R of them.

    Attributes:
        order: (N,) int64, puts the entries into ascending order of (layer, feature, position).
        layers: (R,) int64 layer of each group, ascending.
        features: (R,) int64 its feature, ascending within a layer.
        offsets: (R + 1,) int64; the entries of group r are `offsets[r] : offsets[r + 1]` of this order.
    """

    order: Tensor
    layers: Tensor
    features: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class SparseActivations:
    """The active features of one prompt, in ascending order of (layer, position, feature).

    Attributes:
        positions: (N,) int64 position of each entry.
        features: (N,) int64 feature within its layer.
        values: (N,) float32 activation, never zero.
        offsets: (L * P + 1,) int64 on the CPU; the entries of layer l at position p are
            `offsets[l * P + p] : offsets[l * P + p + 1]`.
        n_layers: The number of layers L.
        n_positions: The number of positions P.
    """

    positions: Tensor
    features: Tensor
    values: Tensor
    offsets: Tensor
    n_layers: int
    n_positions: int

    def __len__(self) -> int:
        return int(self.features.numel())

    @property
    def device(self) -> torch.device:
        """The device of the entries; `offsets` are always on the CPU."""
        return self.features.device

    @property
    def layers(self) -> Tensor:
        """The layer of each entry, (N,) int64."""
        per_layer = self.layer_offsets.diff().to(self.device)
        layers = torch.arange(self.n_layers, device=self.device)
        return torch.repeat_interleave(layers, per_layer, output_size=len(self))

    @property
    def layer_offsets(self) -> Tensor:
        """Where layers begin, (L + 1,) int64 on the CPU; layer l has the entries `layer_offsets[l] : layer_offsets[l + 1]`."""
        if not self.n_positions:
            return torch.zeros(self.n_layers + 1, dtype=torch.int64)
        return self.offsets[:: self.n_positions]

    @property
    def indices(self) -> Tensor:
        """The entries as rows (layer, position, feature), (N, 3) int64."""
        return torch.stack([self.layers, self.positions, self.features], dim=1)

    def layer(self, layer: int) -> slice:
        """Return the slice of one layer's entries."""
        start, stop = self.layer_offsets[layer : layer + 2].tolist()
        return slice(start, stop)

    def at(self, indices: Tensor) -> Tensor:
        """Look up single activations.

        Args:
            indices: (M, 3) int64 rows (layer, position, feature), in any order.

        Returns:
            (M,) float32, zero where the feature is not active.
        """
        found = torch.zeros(len(indices), device=self.device)
        if not len(self) or not len(indices):
            return found
        indices = indices.to(self.device)
        n_features = int(torch.maximum(self.features.max(), indices[:, 2].max())) + 1
        keys_n, keys_m = (
            (layers * self.n_positions + positions) * n_features + features
            for layers, positions, features in (
                (self.layers, self.positions, self.features),
                indices.unbind(1),
            )
        )
        place_m = torch.searchsorted(keys_n, keys_m).clamp(max=len(self) - 1)
        return torch.where(keys_n[place_m] == keys_m, self.values[place_m].float(), found)

    def by_position(self) -> tuple[Tensor, Tensor]:
        """Order the entries by (position, layer, feature), ascending, for work that goes token by token.

        Returns:
            (N,) int64 indices that put the entries in this order, and (P * L + 1,) int64 offsets on the CPU: position p
            and layer l have the entries `offsets[p * L + l] : offsets[p * L + l + 1]` of this order.
        """
        counts_pl = self.offsets.diff().view(self.n_layers, self.n_positions).T
        offsets = torch.zeros(self.n_layers * self.n_positions + 1, dtype=torch.int64)
        torch.cumsum(counts_pl.flatten(), 0, out=offsets[1:])
        return torch.argsort(self.positions, stable=True), offsets

    @cached_property
    def by_feature(self) -> ByFeature:
        """The entries in ascending order of (layer, feature, position), for work that goes row by row.

        Sorted once, however often it is asked for: the passes of a training step share it.
        """
        n_features = int(self.features.max()) + 1 if len(self) else 1
        keys_n = self.layers * n_features + self.features
        if self.n_layers * n_features < 2**31:
            keys_n = keys_n.int()  # half the passes of a GPU's radix sort
        sorted_n, order_n = keys_n.sort(stable=True)  # so that sums over a feature's positions have a fixed order
        keys_r, counts_r = torch.unique_consecutive(sorted_n, return_counts=True)
        offsets = torch.zeros(len(keys_r) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(counts_r, 0, out=offsets[1:])
        keys_r = keys_r.long()
        return ByFeature(order_n, keys_r // n_features, keys_r % n_features, offsets)

    def to_dense(self, n_features: int) -> Tensor:
        """Return the activations as (L, P, F) float32, for F = `n_features`; for tests, as real layers are far too large."""
        dense_lpf = torch.zeros(self.n_layers, self.n_positions, n_features, device=self.device)
        dense_lpf[self.layers, self.positions, self.features] = self.values
        return dense_lpf

    @staticmethod
    def from_layers(layers: Sequence[tuple[Tensor, Tensor, Tensor]], n_positions: int) -> SparseActivations:
        """Join the layers.

        Args:
            layers: For every layer its (n,) int64 positions, (n,) int64 features and (n,) float32 values, in ascending
                order of (position, feature).
            n_positions: The number of positions P.
        """
        if not layers:
            none = torch.zeros(0, dtype=torch.int64)
            return SparseActivations(none, none, torch.zeros(0), torch.zeros(1, dtype=torch.int64), 0, n_positions)
        positions, features, values = (torch.cat(parts) for parts in zip(*layers, strict=True))
        starts = torch.arange(len(layers)) * n_positions
        groups = torch.repeat_interleave(starts, torch.tensor([len(part) for part, _, _ in layers]))
        # one bincount of all layers, so that a GPU is waited for once and not once per layer
        counts = torch.bincount(groups.to(positions.device) + positions, minlength=len(layers) * n_positions).cpu()
        offsets = torch.zeros(len(layers) * n_positions + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=offsets[1:])
        return SparseActivations(positions, features, values, offsets, len(layers), n_positions)

    @staticmethod
    def from_indices(indices: Tensor, values: Tensor, n_layers: int, n_positions: int) -> SparseActivations:
        """Make activations from rows (layer, position, feature) in any order.

        Args:
            indices: (N, 3) int64 distinct rows.
            values: (N,) their activations.
            n_layers: The number of layers L.
            n_positions: The number of positions P.

        Raises:
            ValueError: A shape does not fit, an index is out of range, or a row is repeated.
        """
        if indices.ndim != 2 or indices.shape[1] != 3 or indices.dtype != torch.int64:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)} and dtype {indices.dtype}; expected (N, 3) int64"
            )
        if values.shape != indices.shape[:1]:
            raise ValueError(f"values has shape {tuple(values.shape)}; expected ({indices.shape[0]},)")
        for name, column, limit in (("layer", 0, n_layers), ("position", 1, n_positions), ("feature", 2, None)):
            wrong = indices[:, column] < 0
            if limit is not None:
                wrong |= indices[:, column] >= limit
            if wrong.any():
                limits = f"0 to {limit - 1}" if limit is not None else "0 or more"
                raise ValueError(f"indices holds {name} {int(indices[wrong, column][0])}; expected {limits}")
        order = torch.arange(len(values), device=values.device)
        for column in (2, 1, 0):  # least significant first: every sort is stable
            order = order[torch.argsort(indices[order, column], stable=True)]
        indices = indices[order]
        twice = (indices[1:] == indices[:-1]).all(1)
        if twice.any():
            raise ValueError(f"indices holds the row {tuple(indices[1:][twice][0].tolist())} twice; expected it once")
        layers, positions, features = indices.unbind(1)
        counts = torch.bincount(layers * n_positions + positions, minlength=n_layers * n_positions).cpu()
        offsets = torch.zeros(n_layers * n_positions + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=offsets[1:])
        return SparseActivations(positions, features, values.float()[order], offsets, n_layers, n_positions)
