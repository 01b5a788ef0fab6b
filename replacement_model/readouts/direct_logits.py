"""What a feature promotes and suppresses: its decoder's direct effect on the output, as far as it is the same everywhere.

A feature's decoder rows, summed over all layers it writes to, pass the final norm's gain and the centred unembedding
(the "logit lens" of a decoder, nostalgebraist 2020; for cross-layer transcoders Ameisen et al. 2025). That is the path
through the residual stream alone, per unit of activation; the final norm's denominator, which is one number for all
tokens of a position, is left out, and so is everything that later attention and features make of it.

Letters: n features, J layers a feature writes to, D d_model, V vocabulary, T tokens kept at each end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model.model import ReplacementModel

# Logits held at a time: 256 MB of float32.
_LOGITS_AT_A_TIME = 1 << 26


@dataclass(frozen=True)
class DirectLogits:
    """The tokens that some features of a layer raise and lower most.

    Attributes:
        promoted, suppressed: (n, T) int64 tokens, strongest first.
        raised, lowered: (n, T) float32 their logits per unit of activation, centred over the vocabulary.
        spread: (n,) float32 standard deviation of the feature's logits over the vocabulary.
    """

    promoted: Tensor
    raised: Tensor
    suppressed: Tensor
    lowered: Tensor
    spread: Tensor


def direct_logits(
    model: ReplacementModel,
    layer: int,
    features_n: Tensor,
    count: int = 10,
    known: Callable[[int], None] = lambda more: None,
) -> DirectLogits:
    """The ``count`` tokens at each end of the direct logits of a layer's features; see the module.

    Args:
        features_n: (n,) int64, features within the layer.
        known: is told, a block at a time, how many more features are done.

    Example:
        >>> direct_logits(model, 3, torch.tensor([417])).promoted[0, 0]
    """
    count = min(count, model.description.vocab_size)
    block = max(1, _LOGITS_AT_A_TIME // model.description.vocab_size)
    final_gain = model.sites.gain(model.sites.final_norm).to(model.device)
    mean = model.sites.mean_unembedding.to(model.device)
    parts = []
    for some in features_n.split(block):
        rows_nd = model.transcoders.decoder_rows(layer, some.to(model.device)).float().sum(1) * final_gain
        logits_nv = model.sites.unembed(rows_nd)
        logits_nv -= (rows_nd @ mean)[:, None]
        raised, promoted = logits_nv.topk(count, dim=-1)
        lowered, suppressed = logits_nv.topk(count, dim=-1, largest=False)
        spread = logits_nv.square().mean(-1).sqrt()
        known(len(some))
        parts.append([tensor.cpu() for tensor in (promoted, raised, suppressed, lowered, spread)])
    if not parts:
        none = torch.zeros(0, count)
        return DirectLogits(none.long(), none, none.long(), none, torch.zeros(0))
    return DirectLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))
