"""Adam's state of every weight.

Letters: L trained layers, F features of a layer, D d_model, J layers a feature writes to.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crosstrace.kernels.backward.row_updates import AdamStep, RowGradients, RowMoments, adam_rows
from crosstrace.replacement_model.training.parameters import Parameters


class WholeMoments:
    """Adam's state of a weight of which every row (L, ...) has a gradient in every step."""

    def __init__(self, weight: Tensor) -> None:
        self.rows = RowMoments.zeros_like(weight)

    def step(self, weight: Tensor, gradient: Tensor, adam: AdamStep) -> None:
        """Update a weight, in place, with its gradient."""
        touched = torch.arange(weight.shape[0], device=weight.device)
        adam_rows(weight, RowGradients(touched, gradient), self.rows, adam)


class Moments:
    """Adam's state: encoders, their biases and decoders by row; decoder biases and skip connections whole."""

    def __init__(self, parameters: Parameters, dtype: torch.dtype) -> None:
        """Make the state before the first step.

        Args:
            parameters: The weights.
            dtype: Of encoders' and decoders' moments; the small ones are float32.
        """
        self.encoder = [RowMoments.zeros_like(encoder_fd, dtype) for encoder_fd in parameters.encoder_fd]
        self.decoder = [RowMoments.zeros_like(rows_fjd, dtype) for rows_fjd in parameters.rows_ujd()]
        self.encoder_bias = [RowMoments.zeros_like(bias_f) for bias_f in parameters.encoder_bias_lf]
        self.decoder_bias = WholeMoments(parameters.decoder_bias_ld)
        self.skip = None if parameters.skip_ldd is None else WholeMoments(parameters.skip_ldd)

    def forget(self, layer: int, features_u: Tensor) -> None:
        """Set some features of a layer back to the state before their first step."""
        for moments in (self.encoder, self.decoder, self.encoder_bias):
            moments[layer].forget(features_u)

    def clear(self) -> None:
        """Go back to the state before the first step."""
        for _, tensor in self.named():
            tensor.zero_()

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name."""
        groups = {"encoder": self.encoder, "decoder": self.decoder, "encoder_bias": self.encoder_bias}
        groups["decoder_bias"] = [self.decoder_bias.rows]
        if self.skip is not None:
            groups["skip"] = [self.skip.rows]
        for name, moments in groups.items():
            for layer, state in enumerate(moments):
                for part in ("first", "second", "steps"):
                    yield f"adam.{name}.{layer}.{part}", getattr(state, part)
