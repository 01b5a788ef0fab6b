"""Dead features start again at tokens that are reconstructed badly.

Letters: L trained layers, B tokens of a batch, F features of a layer, U features that start again, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crosstrace.replacement_model.training.moments import Moments
from crosstrace.replacement_model.training.parameters import Parameters
from crosstrace.replacement_model.training.settings import TrainingSettings
from crosstrace.replacement_model.training.starting import start_features


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

        start_features(
            parameters,
            layer,
            dead_u,
            x_lbd[layer, tokens_u],
            missing,
            settings.reset_decoder_scale,
            settings,
            generator,
        )
        moments.forget(layer, dead_u)
        reset_lf[layer, dead_u] = True
    return reset_lf
