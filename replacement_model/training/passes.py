"""The parts of a forward pass in training: entries, the affine part, and decoding into every written layer.

Letters: L trained layers, B tokens of a batch, F features of a layer, D d_model, J layers a feature writes to, n entries of a
layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations, decode_layer
from crosstrace.replacement_model.training.parameters import Parameters
from crosstrace.replacement_model.training.sparsity import Listed


def entries_of(listed: Sequence[Listed], n_tokens: int) -> SparseActivations:
    """Return the listed entries of all layers; those that are not active have the value 0."""
    return SparseActivations.from_layers([(part.positions, part.features, part.values) for part in listed], n_tokens)


def affine(parameters: Parameters, x_lbd: Tensor) -> Tensor:
    """Return what is not features: decoder biases and skip connections (L, B, D), a new tensor."""
    bias_l1d = parameters.decoder_bias_ld[:, None]
    if parameters.skip_ldd is None:
        return bias_l1d.repeat(1, x_lbd.shape[1], 1)
    return torch.baddbmm(bias_l1d, x_lbd, parameters.skip_ldd)


def decode_into(out_lbd: Tensor, entries: SparseActivations, decoder_jfd: Sequence[Tensor]) -> None:
    """Add what the active features write to `out_lbd` (L, B, D), in place.

    Args:
        out_lbd: The reconstructions so far.
        entries: The active features.
        decoder_jfd: For each layer (J, F, D).
    """
    for layer, own_jfd in enumerate(decoder_jfd):
        decode_layer_into(out_lbd[layer : layer + len(own_jfd)], entries, layer, own_jfd)


def decode_layer_into(out_jbd: Tensor, entries: SparseActivations, layer: int, decoder_jfd: Tensor) -> None:
    """Add what one layer's active features write to `out_jbd`, the layers they write to, in place."""
    own = entries.layer(layer)
    positions_n, values_n, features_n = entries.positions[own], entries.values[own], entries.features[own]
    # One written layer at a time: its rows lie side by side.
    for out_bd, written_fd in zip(out_jbd, decoder_jfd, strict=True):
        decode_layer(out_bd[None], positions_n, values_n, written_fd[:, None], features_n)
