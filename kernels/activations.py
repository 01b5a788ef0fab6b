"""The one sparse type for feature activations.

Letters: L layers, P positions, F features of a layer, N active features of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparseActivations:
    """The active features of one prompt, in ascending order of (layer, position, feature).

    Attributes:
        positions: (N,) int64, the position each entry fires at.
        features: (N,) int64, the feature's index within its layer.
        values: (N,) float32, its activation, never zero.
        offsets: (L * P + 1,) int64 on the CPU: the entries of layer l at position p are
            ``offsets[l * P + p] : offsets[l * P + p + 1]``.
        n_layers: L.
        n_positions: P.
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
        return self.features.device

    @property
    def layers(self) -> Tensor:
        """(N,) int64, the layer of each entry."""
        per_layer = self.layer_offsets.diff()
        return torch.repeat_interleave(torch.arange(self.n_layers), per_layer).to(self.device)

    @property
    def layer_offsets(self) -> Tensor:
        """(L + 1,) int64 on the CPU: the entries of layer l are ``layer_offsets[l] : layer_offsets[l + 1]``."""
        if not self.n_positions:
            return torch.zeros(self.n_layers + 1, dtype=torch.int64)
        return self.offsets[:: self.n_positions]

    @property
    def indices(self) -> Tensor:
        """(N, 3) int64 rows (layer, position, feature)."""
        return torch.stack([self.layers, self.positions, self.features], dim=1)

    def layer(self, layer: int) -> slice:
        """The slice of the entries of one layer."""
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
        """The entries in ascending order of (position, layer, feature), for what goes token by token.

        Returns:
            (N,) int64 which entry comes when; (P * L + 1,) int64 on the CPU, the entries of position p and layer l are
            ``[p * L + l] : [p * L + l + 1]`` of that order.
        """
        counts_pl = self.offsets.diff().view(self.n_layers, self.n_positions).T
        offsets = torch.zeros(self.n_layers * self.n_positions + 1, dtype=torch.int64)
        torch.cumsum(counts_pl.flatten(), 0, out=offsets[1:])
        return torch.argsort(self.positions, stable=True), offsets

    def to_dense(self, n_features: int) -> Tensor:
        """(L, P, F) float32. For tests and small layers: a real one is far too large."""
        dense_lpf = torch.zeros(self.n_layers, self.n_positions, n_features, device=self.device)
        dense_lpf[self.layers, self.positions, self.features] = self.values
        return dense_lpf

    @staticmethod
    def from_layers(layers: Sequence[tuple[Tensor, Tensor, Tensor]], n_positions: int) -> SparseActivations:
        """Join the (positions, features, values) of every layer, each already sorted by (position, feature)."""
        if not layers:
            none = torch.zeros(0, dtype=torch.int64)
            return SparseActivations(none, none, torch.zeros(0), torch.zeros(1, dtype=torch.int64), 0, n_positions)
        positions, features, values = (torch.cat(parts) for parts in zip(*layers, strict=True))
        starts = torch.arange(len(layers)) * n_positions
        groups = torch.repeat_interleave(starts, torch.tensor([len(part) for part, _, _ in layers]))
        # bincount of everything at once, so that a GPU is waited for once and not a layer at a time
        counts = torch.bincount(groups.to(positions.device) + positions, minlength=len(layers) * n_positions).cpu()
        offsets = torch.zeros(len(layers) * n_positions + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=offsets[1:])
        return SparseActivations(positions, features, values, offsets, len(layers), n_positions)

    @staticmethod
    def from_indices(indices: Tensor, values: Tensor, n_layers: int, n_positions: int) -> SparseActivations:
        """From rows (layer, position, feature) in any order.

        Args:
            indices: (N, 3) int64, no row twice.
            values: (N,) activations.

        Raises:
            ValueError: a shape does not fit, an index is out of range, or a row comes twice.
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
