"""The decoder rows of a prompt's active features, wherever they are held.

Letters: L layers, P positions, D d_model, J layers a feature writes to, N active features, n of a layer, U stored rows,
B target rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations, decode, scores

# memory: the distinct rows on the device. entries: a float32 row for each entry, in order (CPU). whole: entire decoders on
# the device. mapped: in the mapped files (CPU). host: the distinct rows in host memory, a layer at a time on the device.
Place = Literal["memory", "entries", "whole", "mapped", "host"]


@dataclass(frozen=True, eq=False)
class ActiveRows:
    """For each layer stored rows (U, J, D) and, for each of its active features, which of them is its own.

    Attributes:
        rows_ujd: a tensor a layer, in the dtype of the weights.
        index_n: (n,) int64 a layer: the stored row of each entry. A feature that fires at many positions is stored once.
            None: each entry has a row of its own, in order.
        place: where ``rows_ujd`` are.
        device: where products are computed.
    """

    rows_ujd: Sequence[Tensor]
    index_n: Sequence[Tensor] | None
    place: Place
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Memory of the rows, or for ``mapped`` the size of the files' part they are in."""
        return sum(rows.numel() * rows.element_size() for rows in self.rows_ujd)

    def decode(self, activations: SparseActivations) -> Tensor:
        """(L, P, D) float32: what the active features write to every layer."""
        if self.place != "host":
            return decode(activations, self.rows_ujd, self.index_n)
        d_model = self.rows_ujd[0].shape[-1]
        out_lpd = torch.zeros(activations.n_layers, activations.n_positions, d_model, device=self.device)
        for layer in range(activations.n_layers):
            out_lpd += decode(*self._one_layer(activations, layer))
        return out_lpd

    def scores(
        self, activations: SparseActivations, gradients_bpld: Tensor, tops: Sequence[int] | None = None
    ) -> Tensor:
        """(B, N) direct effects on targets with these gradients (B, P', L', D) at the MLP outputs; ``tops``: as for
        :func:`crosstrace.kernels.scores`."""
        if self.place != "host":
            return scores(activations, self.rows_ujd, gradients_bpld, self.index_n, tops)
        out_bn = torch.zeros(len(gradients_bpld), len(activations), device=self.device)
        for layer in range(gradients_bpld.shape[2]):
            part, rows, index = self._one_layer(activations, layer)
            out_bn[:, activations.layer(layer)] = scores(part, rows, gradients_bpld, index, tops)
        return out_bn

    def _one_layer(
        self, activations: SparseActivations, layer: int
    ) -> tuple[SparseActivations, list[Tensor], list[Tensor]]:
        """The entries of one layer alone, with their rows moved to the device."""
        assert self.index_n is not None
        entries = activations.layer(layer)
        part = SparseActivations(
            activations.positions[entries],
            activations.features[entries],
            activations.values[entries],
            activations.offsets.clamp(entries.start, entries.stop) - entries.start,
            activations.n_layers,
            activations.n_positions,
        )
        moved = self.rows_ujd[layer].to(self.device)
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        rows = [moved if at == layer else moved[:0, :1] for at in range(activations.n_layers)]
        index = [self.index_n[layer] if at == layer else none for at in range(activations.n_layers)]
        return part, rows, index
