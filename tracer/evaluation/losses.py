"""The next-token losses of several runs of a model on the same tokens, without a row of logits in memory.

The vocabulary is gone through once, in blocks. Of each block only the maximum, the sum of exponentials and what else a loss
needs is kept, as in a softmax computed online (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").

Letters: R runs, X tokens, D d_model, V vocabulary, v tokens of a block of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crosstrace.replacement_model import ModelSites
from crosstrace.replacement_model.architectures.float32 import float32_arithmetic

# Logits held at a time: 64 MB of float32 for a run.
_LOGITS_AT_A_TIME = 1 << 24
_FEWEST_TOKENS = 1 << 10


@dataclass(frozen=True)
class Losses:
    """What runs predict at X tokens.

    Attributes:
        cross_entropy_rx: (R, X) float64, in nats.
        top_rx: (R, X) int64, the most probable token.
        kl_x: (X,) float64, KL(first run ‖ second run) in nats.
    """

    cross_entropy_rx: Tensor
    top_rx: Tensor
    kl_x: Tensor


class _Softmax:
    """The logits of one run, as far as the vocabulary has been gone through."""

    def __init__(self, n_tokens: int, device: torch.device) -> None:
        self.largest_x = torch.full((n_tokens,), -torch.inf, device=device)
        self.sum_x = torch.zeros(n_tokens, dtype=torch.float64, device=device)
        self.difference_x = torch.zeros(n_tokens, dtype=torch.float64, device=device)  # Σ exp(l) (l - l of another run)
        self.wanted_x = torch.zeros(n_tokens, device=device)
        self.top_x = torch.zeros(n_tokens, dtype=torch.int64, device=device)

    def add(self, logits_xv: Tensor, first: int, targets_x: Tensor, other_xv: Tensor | None = None) -> None:
        """Add the logits of a block of the vocabulary that begins with the token `first`; they are overwritten."""
        block_largest_x, where_x = logits_xv.max(1)
        self.top_x = torch.where(block_largest_x > self.largest_x, where_x + first, self.top_x)
        inside_x = (targets_x >= first) & (targets_x < first + logits_xv.shape[1])
        place_x = (targets_x - first).clamp(0, logits_xv.shape[1] - 1)
        self.wanted_x = torch.where(inside_x, logits_xv.gather(1, place_x[:, None])[:, 0], self.wanted_x)
        largest_x = torch.maximum(self.largest_x, block_largest_x)
        shrunk_x = (self.largest_x - largest_x).double().exp()
        difference_xv = None if other_xv is None else logits_xv - other_xv
        exponentials_xv = logits_xv.sub_(largest_x[:, None]).exp_()
        self.sum_x = self.sum_x * shrunk_x + exponentials_xv.sum(1)
        if difference_xv is not None:
            self.difference_x = self.difference_x * shrunk_x + difference_xv.mul_(exponentials_xv).sum(1)
        self.largest_x = largest_x

    @property
    def log_sum_x(self) -> Tensor:
        return self.largest_x.double() + self.sum_x.log()


def next_token_losses(
    sites: ModelSites,
    normed_rxd: Sequence[Tensor],
    targets_x: Tensor,
    done: Callable[[float], None] = lambda share: None,
) -> Losses:
    """Compute the losses of several runs.

    Args:
        sites: The live modules of the model.
        normed_rxd: R final-norm outputs (X, D) at the same tokens, two or more; the first two are compared.
        targets_x: (X,) int64 the tokens that follow.
        done: Called after each block with the share of the vocabulary that it is.

    Returns:
        The losses, on the device of the unembedding.
    """
    unembedding_vd = sites.unembedding
    device, n_tokens = unembedding_vd.device, len(targets_x)
    runs = [normed_xd.to(device, torch.float32) for normed_xd in normed_rxd]
    targets_x = targets_x.to(device)
    softmaxes = [_Softmax(n_tokens, device) for _ in runs]
    first = 0
    with float32_arithmetic():
        for block_vd in unembedding_vd.split(max(_FEWEST_TOKENS, _LOGITS_AT_A_TIME // max(n_tokens, 1))):
            widened_vd = block_vd.float()
            second_xv = F.linear(runs[1], widened_vd)
            softmaxes[0].add(F.linear(runs[0], widened_vd), first, targets_x, second_xv)
            softmaxes[1].add(second_xv, first, targets_x)
            for run_xd, softmax in zip(runs[2:], softmaxes[2:], strict=True):
                softmax.add(F.linear(run_xd, widened_vd), first, targets_x)
            first += len(block_vd)
            done(len(block_vd) / len(unembedding_vd))
    own, other = softmaxes[0], softmaxes[1]
    kl_x = own.difference_x / own.sum_x - own.log_sum_x + other.log_sum_x
    return Losses(
        torch.stack([softmax.log_sum_x - softmax.wanted_x for softmax in softmaxes]),
        torch.stack([softmax.top_x for softmax in softmaxes]),
        kl_x,
    )
