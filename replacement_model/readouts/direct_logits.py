"""What a feature promotes and suppresses: the direct effect of its decoder on the output.

A feature's decoder rows, summed over all layers it writes to, pass the final norm's gain and the centred unembedding (the
"logit lens" applied to a decoder, nostalgebraist 2020; for cross-layer transcoders Ameisen et al. 2025, "Circuit
Tracing"). This is the path through the residual stream alone, per unit of activation. It leaves out the final norm's
denominator, which is one number for all tokens of a position, and everything that later attention and features add.

Letters: n features, D d_model, V vocabulary, T tokens kept at each end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model.model import ReplacementModel

LOGITS_AT_A_TIME = 1 << 26  # held by a block of features: 256 MB of float32


@dataclass(frozen=True)
class DirectLogits:
    """The tokens that features of one layer raise and lower most.

    Attributes:
        promoted: (n, T) int64 token ids with the largest logits, strongest first.
        raised: (n, T) float32 their logits per unit of activation, centred over the vocabulary.
        suppressed: (n, T) int64 token ids with the smallest logits, strongest first.
        lowered: (n, T) float32 their logits, likewise.
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
    done: Callable[[int], None] = lambda more: None,
    block_size: int | None = None,
) -> DirectLogits:
    """Compute the strongest direct logits of features, at both ends.

    Args:
        model: The replacement model.
        layer: The layer of the features.
        features_n: (n,) int64 features within the layer.
        count: The number of tokens T kept at each end; at most the whole vocabulary.
        done: Called after each block with the number of its features.
        block_size: The number of features in a block; None chooses by memory. The result does not depend on it.

    Returns:
        Tokens, logits and spreads of the features, in the order given, on the CPU.

    Example:
        >>> direct_logits(model, 3, torch.tensor([417])).promoted[0, 0]
    """
    count = min(count, model.description.vocab_size)
    block_size = block_size or max(1, LOGITS_AT_A_TIME // model.description.vocab_size)
    final_gain = model.sites.gain(model.sites.final_norm).to(model.device)
    mean = model.sites.mean_unembedding.to(model.device)
    parts = []
    for some in features_n.split(block_size):
        rows_nd = model.transcoders.decoder_rows(layer, some.to(model.device)).float().sum(1) * final_gain
        logits_nv = model.sites.unembed(rows_nd)
        logits_nv -= (rows_nd @ mean)[:, None]
        raised, promoted = logits_nv.topk(count, dim=-1)
        lowered, suppressed = logits_nv.topk(count, dim=-1, largest=False)
        spread = logits_nv.square().mean(-1).sqrt()
        done(len(some))
        parts.append([tensor.cpu() for tensor in (promoted, raised, suppressed, lowered, spread)])
    if not parts:
        none = torch.zeros(0, count)
        return DirectLogits(none.long(), none, none.long(), none, torch.zeros(0))
    return DirectLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))
