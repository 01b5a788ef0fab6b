"""A dictionary in training as it would be in use: by its thresholds, on activations held out.

Letters: L trained layers, B tokens, F features of a layer, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations, encode
from crosstrace.replacement_model.training.core import Trainer
from crosstrace.replacement_model.training.measures import Unexplained
from crosstrace.replacement_model.training.passes import affine, decode_into


@dataclass(frozen=True, eq=False)
class HeldOut:
    """How well held-out activations are reconstructed.

    Attributes:
        fvu_l: (L,) float32 fraction of variance unexplained, raw units.
        fvu_weighted_l: (L,) float32 with each dimension scaled as in training.
        l0_l: (L,) float32 active features of a token.
    """

    fvu_l: Tensor
    fvu_weighted_l: Tensor
    l0_l: Tensor


@torch.no_grad()
def encode_normalised(trainer: Trainer, x_lbd: Tensor) -> SparseActivations:
    """Return what is active for normalised inputs (L, B, D_in) by the thresholds that would be exported."""
    p, thresholds_lf = trainer.parameters, trainer.thresholds()
    layers = [
        encode(x_bd, p.encoder_fd[layer].T, p.encoder_bias_lf[layer], thresholds_lf[layer])
        for layer, x_bd in enumerate(x_lbd)
    ]
    return SparseActivations.from_layers(layers, x_lbd.shape[1])


@torch.no_grad()
def reconstruct(trainer: Trainer, inputs_lbd: Tensor) -> tuple[SparseActivations, Tensor]:
    """Reconstruct raw outputs.

    Args:
        trainer: The trainer; it is left as it is.
        inputs_lbd: (L, B, D_in) raw inputs.

    Returns:
        The active features, and the reconstruction (L, B, D) float32.
    """
    scaling = trainer.normalisation
    x_lbd = scaling.inputs(inputs_lbd.to(trainer.device))
    entries = encode_normalised(trainer, x_lbd)
    y_lbd = affine(trainer.parameters, x_lbd)
    decode_into(y_lbd, entries, trainer.parameters.decoder_jfd)
    return entries, y_lbd.div_(scaling.scale_out_ld[:, None]).add_(scaling.mean_out_ld[:, None])


@torch.no_grad()
def evaluate(trainer: Trainer, inputs_lbd: Tensor, outputs_lbd: Tensor) -> HeldOut:
    """Measure a trainer on activations that it has not seen, which leaves it as it is.

    Args:
        trainer: The trainer.
        inputs_lbd: (L, B, D_in) raw inputs.
        outputs_lbd: (L, B, D) raw outputs.
    """
    entries, got_lbd = reconstruct(trainer, inputs_lbd)
    scaling = trainer.normalisation
    y_lbd = scaling.outputs(outputs_lbd.to(trainer.device))
    unexplained = Unexplained.of(scaling.outputs(got_lbd) - y_lbd, y_lbd)
    return HeldOut(
        unexplained.fvu(scaling.scale_out_ld), unexplained.fvu(), entries.layer_offsets.diff() / inputs_lbd.shape[1]
    )
