"""How much of the outputs a reconstruction leaves unexplained.

Letters: L trained layers, B tokens, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Unexplained:
    """Sums of squares over tokens, in normalised units; add those of several batches with `+`.

    Attributes:
        errors_ld: (L, D) float64: of reconstruction minus output.
        outputs_ld: (L, D) float64: of the outputs, whose mean over the sample is 0.
        sums_ld: (L, D) float64: the outputs' sums.
        n_tokens: The number of tokens.
    """

    errors_ld: Tensor
    outputs_ld: Tensor
    sums_ld: Tensor
    n_tokens: int

    @staticmethod
    def of(errors_lbd: Tensor, outputs_lbd: Tensor) -> Unexplained:
        """Measure a batch: normalised errors and outputs (L, B, D)."""
        errors_ld, outputs_ld = (
            torch.stack([torch.linalg.vector_norm(part_bd, dim=0) for part_bd in part]).double().square()
            for part in (errors_lbd, outputs_lbd)
        )
        return Unexplained(errors_ld, outputs_ld, outputs_lbd.sum(1).double(), outputs_lbd.shape[1])

    def __add__(self, other: Unexplained) -> Unexplained:
        return Unexplained(
            self.errors_ld + other.errors_ld,
            self.outputs_ld + other.outputs_ld,
            self.sums_ld + other.sums_ld,
            self.n_tokens + other.n_tokens,
        )

    def loss(self) -> float:
        """Return the squared error of a token, summed over layers and dimensions."""
        return float(self.errors_ld.sum()) / self.n_tokens

    def fvu(self, scale_ld: Tensor | None = None) -> Tensor:
        """Return the fraction of variance unexplained (L,) float32 on the CPU.

        Args:
            scale_ld: (L, D) the outputs' scale, to measure in raw units; None measures in normalised ones, which weigh
                dimensions more evenly.
        """
        weight_ld = 1.0 if scale_ld is None else scale_ld.double().square().reciprocal()
        variance_ld = self.outputs_ld - self.sums_ld.square() / self.n_tokens
        return ((self.errors_ld * weight_ld).sum(1) / (variance_ld * weight_ld).sum(1)).float().cpu()
