"""The active features of many contexts at once, and nothing else of the pass: what reading a whole corpus needs.

Letters: B contexts of a batch, W positions of the longest, X those of the B * W that are wanted, n active entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.hooks import Hook, hooked
from crosstrace.replacement_model.model import ReplacementModel

# Called with a layer and its active entries: where, which feature, how strongly.
Sink = Callable[[int, Tensor, Tensor, Tensor], None]


def stream_features(model: ReplacementModel, tokens_bw: Tensor, wanted_bw: Tensor, sink: Sink) -> None:
    """Run a batch of contexts through the original model and pass on the active features, layer by layer.

    Contexts are padded on the right: attention is causal, so no real position ever sees the padding. The transcoder's
    input at each layer is encoded and dropped during the pass, so that memory holds one layer's at a time.

    Args:
        model: The replacement model.
        tokens_bw: (B, W) int64 token ids; any token of the vocabulary serves as padding.
        wanted_bw: (B, W) bool, the positions whose features count: real ones after the excluded first positions.
        sink: Called for every layer in turn as `sink(layer, places_n, features_n, values_n)`: (n,) int64 places in the
            flattened (B * W), (n,) int64 features within the layer, (n,) float32 activations; ascending by
            (feature, place).

    Example:
        >>> def count(layer, places_n, features_n, values_n):
        ...     print(f"layer {layer}: {len(features_n)} active features")
        >>> stream_features(model, tokens_bw, wanted_bw, count)
    """
    transcoders, device = model.transcoders, model.device
    places_x = wanted_bw.flatten().nonzero().flatten().to(device)
    site = transcoders.reads

    def encoder_of(layer: int) -> Hook:
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
