"""The parts of a forward pass in training: entries, the affine part, and decoding into every written layer.

Letters: L trained layers, B tokens of a batch, F features of a layer, D d_model, J layers a feature writes to, n entries of a
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations, decode, decode_layer
from crosstrace.replacement_model.training.parameters import Parameters
from crosstrace.replacement_model.training.sparsity import Listed


@dataclass(frozen=True, eq=False)
class Group:
    """Entries whose decoders have one gradient of what they write; features are in one group only.

    Attributes:
        entries: They.
        mask_n: (N,) bool: which of all entries they are; None for all of them, or for none of them.
        gradient_lbd: (L, B, D) the loss's gradient by what they write, normalised.
    """

    entries: SparseActivations
    mask_n: Tensor | None
    gradient_lbd: Tensor


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
    if out_lbd.is_cuda:  # one launch for all layers
        rows = [own_jfd.transpose(0, 1) for own_jfd in decoder_jfd]
        out_lbd += decode(entries, rows, [entries.features[entries.layer(layer)] for layer in range(len(rows))])
        return
    for layer, own_jfd in enumerate(decoder_jfd):
        decode_layer_into(out_lbd[layer : layer + len(own_jfd)], entries, layer, own_jfd)


def decode_layer_into(out_jbd: Tensor, entries: SparseActivations, layer: int, decoder_jfd: Tensor) -> None:
    """Add what one layer's active features write to `out_jbd`, the layers they write to, in place."""
    own = entries.layer(layer)
    positions_n, values_n, features_n = entries.positions[own], entries.values[own], entries.features[own]
    decode_layer(out_jbd, positions_n, values_n, decoder_jfd.transpose(0, 1), features_n)


def split(listed: Sequence[Listed], n_tokens: int, n_features: int, shares: Sequence[float]) -> list[Group]:
    """Split entries into the parts by which nested prefixes of the features differ; gradients are empty.

    Args:
        listed: Each layer's entries.
        n_tokens: B.
        n_features: F.
        shares: The prefixes' shares of the features, ascending to 1; () for one part.
    """
    nothing = torch.empty(0)
    if len(shares) < 2:
        return [Group(entries_of(listed, n_tokens), None, nothing)]
    groups, start = [], 0
    for share in shares:
        stop = round(share * n_features)
        masks = [(part.features >= start) & (part.features < stop) for part in listed]
        parts = [part.part(mask_n) for part, mask_n in zip(listed, masks, strict=True)]
        groups.append(Group(entries_of(parts, n_tokens), torch.cat(masks), nothing))
        start = stop
    return groups


def prefix_errors(parameters: Parameters, x_lbd: Tensor, y_lbd: Tensor, groups: Sequence[Group]) -> list[Tensor]:
    """Return for each prefix the error (L, B, D) of its reconstruction: Matryoshka, from the first features to all.

    Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", equation 4, with fixed prefixes.
    """
    errors: list[Tensor] = []
    for group in groups:
        errors.append(affine(parameters, x_lbd).sub_(y_lbd) if not errors else errors[-1].clone())
        decode_into(errors[-1], group.entries, parameters.decoder_jfd)
    return errors


def prefix_gradients(errors: Sequence[Tensor], groups: Sequence[Group]) -> list[Group]:
    """Return the groups with their gradients, of the mean over prefixes of a token's squared error.

    What a group writes is part of every prefix that holds it. Errors are overwritten.
    """
    scale = 2 / (errors[0].shape[1] * len(errors))
    for gradient_lbd in errors:
        gradient_lbd.mul_(scale)
    for smaller, larger in zip(errors[-2::-1], errors[:0:-1], strict=True):
        smaller.add_(larger)
    return [Group(group.entries, group.mask_n, gradient) for group, gradient in zip(groups, errors, strict=True)]
