"""Dead features start again at tokens that are reconstructed badly.

Letters: L trained layers, B tokens of a batch, F features of a layer, U features that start again, D d_model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crosstrace.replacement_model.training.starting import start_features

if TYPE_CHECKING:
    from crosstrace.replacement_model.training.core import Trainer


def reset_dead(trainer: Trainer, x_lbd: Tensor, errors_lbd: Tensor) -> int:
    """Start dead features again, in place; features that are not dead are left as they are.

    Each takes a token drawn in proportion to its squared error, reads its input and writes a part of what is missing.

    Args:
        trainer: The trainer.
        x_lbd: (L, B, D_in) normalised inputs of a batch.
        errors_lbd: (L, B, D) its reconstruction minus its outputs, normalised.

    Returns:
        How many features were started again.
    """
    settings, n_reset = trainer.settings, 0
    for layer, dead_f in enumerate(trainer.dead()):
        dead_u = dead_f.nonzero()[:, 0][: settings.resets_per_step]
        if not len(dead_u):
            continue
        weights_b = errors_lbd[layer].square().sum(1).cpu()
        repeats = len(dead_u) > len(weights_b)
        tokens_u = torch.multinomial(weights_b, len(dead_u), repeats, generator=trainer.generator).to(x_lbd.device)
        start_features(
            trainer.parameters,
            layer,
            dead_u,
            x_lbd[layer, tokens_u],
            lambda written, tokens_u=tokens_u: -errors_lbd[written, tokens_u],
            settings.reset_decoder_scale,
            settings,
            trainer.generator,
        )
        trainer.moments.forget(layer, dead_u)
        trainer.last_active_lf[layer, dead_u] = trainer.tokens_seen
        n_reset += len(dead_u)
    if n_reset:
        trainer.norms_lf = trainer.parameters.decoder_norms()
    return n_reset
