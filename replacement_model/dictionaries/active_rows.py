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

# Rows widened to float64 at a time, in bytes.
_WIDENED_BYTES = 64 * 2**20

RowsPlace = Literal["memory", "entries", "whole", "mapped", "host"]
"""Where rows are held: the distinct ones on the device (`memory`); a float32 row for each entry, in order (`entries`, CPU);
entire decoders on the device (`whole`); in the mapped files (`mapped`, CPU); or the distinct ones in host memory, of which
the device gets one layer at a time (`host`)."""


@dataclass(frozen=True, eq=False)
class ActiveRows:
    """The stored rows (U, J, D) of each layer, and which of them belongs to each of its active features.

    Attributes:
        rows_ujd: One tensor per layer, in the dtype of the weights.
        index_n: (n,) int64 per layer, the stored row of each entry: a feature that fires at many positions is stored
            once. None: each entry has its own row, in order.
        place: Where `rows_ujd` are.
        device: Where products are computed.
    """

    rows_ujd: Sequence[Tensor]
    index_n: Sequence[Tensor] | None
    place: RowsPlace
    device: torch.device

    @property
    def nbytes(self) -> int:
        """The memory of the rows in bytes; if they are `mapped`, the size of the part of the files that holds them."""
        return sum(rows.numel() * rows.element_size() for rows in self.rows_ujd)

    def decode(self, activations: SparseActivations) -> Tensor:
        """Return what the active features write to every layer (L, P, D) float32."""
        if self.place != "host":
            return decode(activations, self.rows_ujd, self.index_n)
        d_model = self.rows_ujd[0].shape[-1]
        out_lpd = torch.zeros(activations.n_layers, activations.n_positions, d_model, device=self.device)
        for layer in range(activations.n_layers):
            out_lpd += decode(*self._one_layer(activations, layer))
        return out_lpd

    def subtract(self, activations: SparseActivations, values_n: Tensor, out_lpd: Tensor) -> None:
        """Subtract what the active features write from `out_lpd` (L, P, D) float64, in place and in float64.

        Args:
            activations: The active features.
            values_n: (N,) float64, their activations before rounding.
            out_lpd: Such as the MLP outputs.
        """
        for layer, rows_ujd in enumerate(self.rows_ujd):
            entries, (_, written, d_model) = activations.layer(layer), rows_ujd.shape
            at_a_time = max(1, _WIDENED_BYTES // (2 * 8 * written * d_model))
            for start in range(entries.start, entries.stop, at_a_time):
                part = slice(start, min(start + at_a_time, entries.stop))
                stored = slice(part.start - entries.start, part.stop - entries.start)
                rows_njd = rows_ujd[stored] if self.index_n is None else self._rows(layer, stored)
                vectors_jnd = rows_njd.to(self.device, torch.float64).transpose(0, 1) * values_n[part, None]
                out_lpd[layer : layer + written].index_add_(1, activations.positions[part], vectors_jnd, alpha=-1)

    def rows_of(self, layer: int, entries_n: Tensor) -> Tensor:
        """Return the rows (n, J, D) float32 of some of a layer's entries, on the device.

        Args:
            layer: The layer.
            entries_n: (n,) int64 indices into the layer's entries.
        """
        rows_ujd = self.rows_ujd[layer]
        stored_n = entries_n if self.index_n is None else self.index_n[layer][entries_n.to(self.index_n[layer].device)]
        return rows_ujd[stored_n.to(rows_ujd.device)].to(self.device, torch.float32)

    def _rows(self, layer: int, entries: slice) -> Tensor:
        assert self.index_n is not None
        rows_ujd = self.rows_ujd[layer]
        return rows_ujd[self.index_n[layer][entries].to(rows_ujd.device)]

    def scores(
        self, activations: SparseActivations, gradients_bpld: Tensor, tops: Sequence[int] | None = None
    ) -> Tensor:
        """Return the direct effects (B, N) of the active features on targets.

        Args:
            activations: The active features.
            gradients_bpld: (B, P', L', D) gradients of the targets at the MLP outputs.
            tops: As for `crosstrace.kernels.scores`.
        """
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
