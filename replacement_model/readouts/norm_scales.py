"""The denominators of the norms that linear paths between features pass, as they are over a corpus.

A feature's output reaches later features through three norms of a layer: before attention, after it, and before the MLP
(Gemma 3 has a fourth, after the MLP; what transcoders write lies behind it). Their gains are weights; their denominators
change from token to token. A weight that holds for no one prompt needs typical ones: here the mean of 1 / rms.

Letters: L layers, D d_model, X positions that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.float32 import inverse_rms
from crosstrace.replacement_model.architectures.hooks import changed
from crosstrace.replacement_model.base_model import LoadedModel

NORMS = ("input", "attention", "mlp")
"""The norms of a layer in the order of `NormScales.inverse_rms_l3`: before attention, after it, before the MLP."""
See = Callable[[int, int, Tensor], None]
"""Called with a layer, the index of one of its norms in `NORMS`, and 1 / rms (X,) float32 of the positions that count."""


@dataclass(frozen=True)
class NormScales:
    """Typical denominators of a model's norms.

    Attributes:
        inverse_rms_l3: (L, 3) float32, 1 / rms of the norms before attention, after it, and before the MLP.
    """

    inverse_rms_l3: Tensor

    def __post_init__(self) -> None:
        if not bool((torch.isfinite(self.inverse_rms_l3) & (self.inverse_rms_l3 > 0)).all()):
            raise ValueError("typical denominators of norms must be above 0 and finite")


@contextmanager
def watched_norms(model: LoadedModel, wanted_bw: Tensor, see: See) -> Iterator[None]:
    """Show the denominators of every layer's norms while contexts run through the model.

    Args:
        model: The base model, or a replacement model.
        wanted_bw: (B, W) bool, the positions that count.
        see: Called as the pass reaches each norm.
    """
    places_x = wanted_bw.flatten().nonzero().flatten()
    epsilon = model.description.rms_norm_eps

    def look(layer: int, norm: int) -> Callable[[Tensor], None]:
        def seen(input_bwd: Tensor) -> None:
            input_xd = input_bwd.flatten(0, 1)[places_x.to(input_bwd.device)]
            see(layer, norm, inverse_rms(input_xd, epsilon).float()[:, 0].cpu())

        return seen

    hooks = [
        (module, True, look(index, norm))
        for index, layer in enumerate(model.sites.layers)
        for norm, module in enumerate((layer.input_norm, layer.post_attention_norm, layer.pre_feedforward_norm))
    ]
    with changed(hooks):
        yield
