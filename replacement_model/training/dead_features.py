"""What is done for features that are no longer active: they start again, or a loss pulls them back.

- Resets: dead features start again at tokens that are reconstructed badly (our own recipe).
- An auxiliary loss: the k strongest dead features of a token reconstruct the error (Gao et al. 2024, "Scaling and evaluating
  sparse autoencoders", section A.2). Different here: the error is not divided by its own size, so that the loss has the
  main one's unit.
- A pre-activation loss: norm * relu(threshold - h), which draws pre-activations up to their thresholds (Conerly et al. 2025,
  "Dictionary Learning Optimization Techniques"). Different here: dead features alone have it.

Letters: L trained layers, B tokens of a batch, F features of a layer, U dead features of a layer, D d_model, n entries of a
layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.kernels import RowGradients, SparseActivations
from crosstrace.replacement_model.training.parameters import Moments, Parameters
from crosstrace.replacement_model.training.passes import Group, decode_into
from crosstrace.replacement_model.training.settings import TrainingSettings
from crosstrace.replacement_model.training.starting import start_features


def auxiliary_group(
    parameters: Parameters, x_lbd: Tensor, errors_lbd: Tensor, dead_lf: Tensor, settings: TrainingSettings
) -> tuple[Group | None, float]:
    """Let dead features reconstruct what the others miss.

    Args:
        parameters: The weights.
        x_lbd: (L, B, D_in) normalised inputs.
        errors_lbd: (L, B, D) reconstruction minus outputs, normalised; no gradient goes to it.
        dead_lf: (L, F) bool.
        settings: The loss's weight, and k.

    Returns:
        The dead features' entries with the gradient of what they write, or None where none is dead; and the loss.
    """
    n_tokens, layers = x_lbd.shape[1], []
    for layer, dead_f in enumerate(dead_lf):
        dead_u = dead_f.nonzero()[:, 0]
        rows_ud = parameters.encoder_fd[layer][dead_u]
        h_bu = torch.addmm(parameters.encoder_bias_lf[layer, dead_u], x_lbd[layer], rows_ud.T)
        kept = torch.zeros_like(h_bu, dtype=torch.bool)
        if len(dead_u):
            kept.scatter_(1, h_bu.topk(min(settings.aux_k, len(dead_u)), dim=1).indices, True)
        positions, columns = (kept & (h_bu > 0)).nonzero(as_tuple=True)
        layers.append((positions, dead_u[columns], h_bu[positions, columns]))
    entries = SparseActivations.from_layers(layers, n_tokens)
    if not len(entries):
        return None, 0.0
    gradient_lbd = errors_lbd.clone()
    decode_into(gradient_lbd, entries, parameters.decoder_jfd)
    loss = settings.aux_coefficient * float(gradient_lbd.double().square().sum()) / n_tokens
    return Group(entries, None, gradient_lbd.mul_(2 * settings.aux_coefficient / n_tokens)), loss


@dataclass(frozen=True, eq=False)
class DeadGradients:
    """What the pre-activation loss hands to one layer's dead features.

    Attributes:
        loss: The loss.
        encoder: Gradients of encoder rows (U, D_in).
        bias: Of their biases (U,).
        by_norm_f: (F,) of the decoder's norms.
        by_threshold_f: (F,) of thresholds.
    """

    loss: float
    encoder: RowGradients
    bias: RowGradients
    by_norm_f: Tensor
    by_threshold_f: Tensor


def pre_activation_gradients(
    parameters: Parameters,
    layer: int,
    x_bd: Tensor,
    dead_f: Tensor,
    threshold_f: Tensor,
    norms_f: Tensor,
    settings: TrainingSettings,
) -> DeadGradients | None:
    """Return the gradients of the pre-activation loss of one layer's dead features; None where none is dead.

    Args:
        parameters: The weights.
        layer: The layer.
        x_bd: (B, D_in) its normalised inputs.
        dead_f: (F,) bool.
        threshold_f: (F,).
        norms_f: (F,) decoder norms.
        settings: The loss's weight.
    """
    dead_u = dead_f.nonzero()[:, 0]
    if not len(dead_u):
        return None
    h_bu = torch.addmm(parameters.encoder_bias_lf[layer, dead_u], x_bd, parameters.encoder_fd[layer][dead_u].T)
    below_bu = (threshold_f[dead_u] - h_bu).clamp_min_(0)
    weight = settings.pre_activation_coefficient / len(x_bd)
    by_h_bu = (below_bu > 0) * (-weight * norms_f[dead_u])
    missing_u = below_bu.sum(0)
    by_norm_f, by_threshold_f = torch.zeros_like(norms_f), torch.zeros_like(norms_f)
    by_norm_f[dead_u] = weight * missing_u
    by_threshold_f[dead_u] = -by_h_bu.sum(0)
    return DeadGradients(
        weight * float((missing_u * norms_f[dead_u]).sum()),
        RowGradients(dead_u, by_h_bu.T @ x_bd),
        RowGradients(dead_u, by_h_bu.sum(0)),
        by_norm_f,
        by_threshold_f,
    )


def reset_dead(
    dead_lf: Tensor,
    parameters: Parameters,
    moments: Moments,
    x_lbd: Tensor,
    errors_lbd: Tensor,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> Tensor:
    """Start dead features again, in place; features that are not dead are left as they are.

    Each takes a token drawn in proportion to its squared error, reads its input and writes a part of what is missing.

    Args:
        dead_lf: (L, F) bool: which features are dead.
        parameters: The weights.
        moments: Adam's state, which forgets these features.
        x_lbd: (L, B, D_in) normalised inputs of a batch.
        errors_lbd: (L, B, D) its reconstruction minus its outputs, normalised.
        settings: How many at most, and how they start.
        generator: Where randomness comes from.

    Returns:
        (L, F) bool: the features that were started again.
    """
    reset_lf = torch.zeros_like(dead_lf)
    for layer, dead_f in enumerate(dead_lf):
        dead_u = dead_f.nonzero()[:, 0][: settings.resets_per_step]
        if not len(dead_u):
            continue
        weights_b = errors_lbd[layer].square().sum(1).cpu()
        repeats = len(dead_u) > int(weights_b.count_nonzero())
        tokens_u = torch.multinomial(weights_b, len(dead_u), repeats, generator=generator).to(x_lbd.device)

        def missing(written: int, tokens_u: Tensor = tokens_u) -> Tensor:
            return -errors_lbd[written, tokens_u]

        points_ud, scale = x_lbd[layer, tokens_u], settings.reset_decoder_scale
        start_features(parameters, layer, dead_u, points_ud, missing, scale, settings, generator)
        moments.forget(layer, dead_u)
        reset_lf[layer, dead_u] = True
    return reset_lf
