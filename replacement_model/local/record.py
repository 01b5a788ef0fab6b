"""What one forward pass of a prompt leaves behind for its local replacement model.

Letters: L layers, P positions, D d_model, N active features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.dictionaries.active_rows import ActiveRows
from crosstrace.replacement_model.local.frozen import FrozenLayer, FrozenNorm


@dataclass(frozen=True, eq=False)
class PassRecord:
    """Everything that is linear between feature activations, frozen at one prompt.

    Attributes:
        description: The sizes and conventions of the base model.
        tokens_p: (P,) int64, the prompt.
        layers: Each layer with attention and norms frozen.
        final_norm: The final norm, frozen.
        activations: The N active features.
        active_rows: Their decoder rows.
        errors_lpd: (L, P, D) float32 MLP output minus reconstruction; zero at excluded positions.
        constants_lpd: (L, P, D) float32, what is written without a source: decoder biases, and at excluded positions
            the MLP's own output minus the skip connection, which is live at every position.
        residuals_lpd: (L + 1, P, D) float32 residual stream that enters each layer: first the token vectors, last what
            the final norm reads.
        mids_lpd: (L, P, D) float32 residual stream after each layer's attention.
    """

    description: ModelDescription
    tokens_p: Tensor
    layers: Sequence[FrozenLayer]
    final_norm: FrozenNorm
    activations: SparseActivations
    active_rows: ActiveRows
    errors_lpd: Tensor
    constants_lpd: Tensor
    residuals_lpd: Tensor
    mids_lpd: Tensor
