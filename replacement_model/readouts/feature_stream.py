"""The active features of many contexts at once, and nothing else of the pass: what reading a whole corpus needs.

Letters: B contexts of a batch, W positions of the longest, n active entries, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.hooks import hooked
from crosstrace.replacement_model.model import ReplacementModel

Sink = Callable[[int, Tensor, Tensor, Tensor], None]


def stream_features(model: ReplacementModel, tokens_bw: Tensor, wanted_bw: Tensor, sink: Sink) -> None:
    """Run a batch of contexts through the original model and hand on what is active, layer by layer.

    Contexts are padded on the right: attention is causal, so that no real position ever sees the padding. Each layer's
    transcoder input is encoded and dropped while the pass goes on; one layer's is held at a time.

    Args:
        tokens_bw: (B, W) token ids; anything that is in the vocabulary as padding.
        wanted_bw: (B, W) bool, the positions whose features count: real ones past the excluded first positions.
        sink: called as ``sink(layer, places_n, features_n, values_n)`` for every layer in turn: places in the flat
            (B * W), features within the layer, float32 activations; ascending by (feature, place).
    """
    transcoders, device = model.transcoders, model.device
    places_x = wanted_bw.flatten().nonzero().flatten().to(device)
    site = transcoders.reads

    def encoder_of(layer: int) -> Any:
        def encode(args: tuple[Tensor, ...], kwargs: Any, output: Tensor) -> None:
            input_bwd = site.value_in(args, output)
            input_xd = input_bwd.flatten(0, 1).to(device)[places_x]
            positions_n, features_n, values_n = transcoders.encode(layer, input_xd, excluded_first=0)
            order_n = torch.argsort(features_n, stable=True)  # positions ascend within each feature
            sink(layer, places_x[positions_n[order_n]], features_n[order_n], values_n[order_n])

        return encode

    hooks = [(layer.module(site), encoder_of(index)) for index, layer in enumerate(model.sites.layers)]
    with hooked(hooks):
        model.sites.run(model.sites.embed(tokens_bw))
