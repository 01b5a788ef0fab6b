"""The entries of one layer, and their groups by feature, for work that goes row by row.

Letters: P positions, n entries of a layer, u touched rows, J layers a feature writes to, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerEntries:
    """One layer's entries with their weights, and the sources that they are multiplied with.

    Attributes:
        positions: (n,) int64, ascending.
        features: (n,) int64, the row of each entry.
        weights: (n,) float32.
        source: (J, P, D) float32, the last dimension contiguous.
    """

    positions: Tensor
    features: Tensor
    weights: Tensor
    source: Tensor

    def contiguous(self) -> LayerEntries:
        """Return them with lists that are one run of memory each, as torch's and the compiled code want them."""
        lists = (self.positions.contiguous(), self.features.contiguous(), self.weights.float().contiguous())
        return LayerEntries(*lists, self.source)


@dataclass(frozen=True, eq=False)
class EntriesByFeature:
    """The entries of one layer in ascending order of (feature, position).

    Attributes:
        order: (n,) int64, puts entries ordered by (position, feature) into this order.
        rows: (u,) int64 touched features, ascending.
        offsets: (u + 1,) int64; the entries of `rows[i]` are `offsets[i] : offsets[i + 1]` of this order.
    """

    order: Tensor
    rows: Tensor
    offsets: Tensor

    @staticmethod
    def of(features_n: Tensor) -> EntriesByFeature:
        """Group entries. The sort is stable, so that sums over a feature's positions have a fixed order."""
        sorted_n, order = features_n.sort(stable=True)
        rows, counts = torch.unique_consecutive(sorted_n, return_counts=True)
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64, device=features_n.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return EntriesByFeature(order, rows, offsets)
