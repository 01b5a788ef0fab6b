"""What passes a base model's sites, in the model's own dtype, with nothing computed beyond the last one that is wanted.

Letters: B windows of a batch, W positions of the longest, D width of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.hooks import Hook, hooked
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.training.settings import TrainingSettings

_SAE_SITES = {"resid_post": Site.RESIDUAL, "mlp_out": Site.MLP_OUTPUT, "attn_out": Site.ATTENTION_HEADS}


class _ReadAllError(Exception):
    """Every wanted site of a pass has been read."""


def sites_of(settings: TrainingSettings) -> tuple[Site, ...]:
    """Return the sites that a dictionary reads and writes; only one where they are the same."""
    if settings.kind == "sae":
        return (_SAE_SITES[settings.site],)
    return Site.MLP_INPUT_NORMED, Site.MLP_OUTPUT


def to_fast_dtype(base: BaseModel) -> None:
    """Widen a model's weights to float32 where the processor multiplies narrower numbers slowly.

    A CPU without AVX-512 has no bfloat16 products: torch emulates them, and a pass takes seven times as long as in float32.
    """
    weight = base.sites.embedding.get_parameter("weight")
    if (
        weight.device.type == "cpu"
        and weight.dtype != torch.float32
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        base.model.float()


def read_sites(
    base: BaseModel,
    tokens_bw: Tensor,
    sites: Sequence[Site],
    layers: Sequence[int],
    sink: Callable[[int, int, Tensor], None],
) -> None:
    """Run windows through a model up to the last wanted site, without the unembedding.

    Args:
        base: The model.
        tokens_bw: (B, W) int64 token ids, padded on the right: attention is causal, so no real position sees the padding.
        sites: What is read in each layer.
        layers: The layers.
        sink: Called as `sink(site, layer, value_bwd)`, both as numbers within what was asked for; values are in the
            model's dtype.
    """
    missing = {(number, place) for number in range(len(sites)) for place in range(len(layers))}

    def hook_of(number: int, place: int) -> Hook:
        def take(args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            sink(number, place, sites[number].value_in(args, output))
            missing.discard((number, place))
            if not missing:
                raise _ReadAllError

        return take

    hooks = [
        (base.sites.layers[layer].module(site), hook_of(number, place))
        for number, site in enumerate(sites)
        for place, layer in enumerate(layers)
    ]
    device = base.sites.embedding.get_parameter("weight").device
    with torch.no_grad(), hooked(hooks), suppress(_ReadAllError):
        base.sites.text_model(input_ids=tokens_bw.to(device), use_cache=False)
