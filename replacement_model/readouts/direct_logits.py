"""What a feature promotes and suppresses: the direct effect of its decoder on the output.

A feature's decoder rows, summed over all layers it writes to, pass the final norm's gain and the centred unembedding (the
"logit lens" applied to a decoder, nostalgebraist 2020; for cross-layer transcoders Ameisen et al. 2025, "Circuit
Tracing"). This is the path through the residual stream alone, per unit of activation. It leaves out the final norm's
denominator, which is one number for all tokens of a position, and everything that later attention and features add.

Letters: n features, D d_model, V vocabulary, T tokens kept at each end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model.model import ReplacementModel

LOGITS_AT_A_TIME = 1 << 26  # held by a block of features: 256 MB of float32
_TOKENS_AT_A_TIME, _FEATURES_AT_A_TIME = 1 << 12, 1 << 10  # of `promoted_tokens`: 16 MB of float32
_NUMBERS_AT_A_TIME = 1 << 24  # of decoders: 64 MB of float32
_GROUP = 64  # tokens of which at first only the largest logit is looked at


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


@dataclass(frozen=True)
class PromotedTokens:
    """The tokens that features of any layers raise most.

    Attributes:
        promoted: (n, T) int64 token ids with the largest logits, strongest first.
        raised: (n, T) float32 their logits per unit of activation, centred over the vocabulary.
        spread: (n,) float32 standard deviation of the feature's logits over the vocabulary.
    """

    promoted: Tensor
    raised: Tensor
    spread: Tensor


def promoted_tokens(model: ReplacementModel, features: Sequence[tuple[int, int]], count: int = 10) -> PromotedTokens:
    """Compute the upper end of the direct logits of some features, whatever their layers.

    For a handful of features this is several times faster than `direct_logits` layer by layer: the vocabulary is gone
    through once, in blocks, for all of them.

    Args:
        model: The replacement model.
        features: The features, as (layer, feature).
        count: The number of tokens T; at most the whole vocabulary.

    Returns:
        Tokens, logits and spreads of the features, in the order given, on the CPU.

    Raises:
        ValueError: A layer or a feature does not exist.

    Example:
        >>> promoted_tokens(model, [(3, 417), (0, 5)]).promoted[:, 0]
    """
    vocab_size = model.description.vocab_size
    count = min(count, vocab_size)
    if not features:
        none = torch.zeros(0, count)
        return PromotedTokens(none.long(), none, torch.zeros(0))
    parts = [
        _promoted_by(model, _written(model, features[start : start + _FEATURES_AT_A_TIME]), count)
        for start in range(0, len(features), _FEATURES_AT_A_TIME)
    ]
    return PromotedTokens(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _written(model: ReplacementModel, features: Sequence[tuple[int, int]]) -> Tensor:
    """(n, D) what features of any layers write into the residual stream, all layers added up."""
    written_nd = torch.empty(len(features), model.description.d_model, device=model.device)
    for layer in sorted({layer for layer, _ in features}):
        if not 0 <= layer < model.description.n_layers:
            raise ValueError(f"the model has layers 0 to {model.description.n_layers - 1}, not {layer}")
        rows_n = torch.tensor([row for row, (own, _) in enumerate(features) if own == layer])
        features_n = torch.tensor([feature for own, feature in features if own == layer])
        n_features = model.transcoders.reader.n_features[layer]
        if wrong := [feature for feature in features_n.tolist() if not 0 <= feature < n_features]:
            raise ValueError(f"layer {layer} has features 0 to {n_features - 1}, not {wrong[0]}")
        per_feature = model.transcoders.reader.n_written(layer) * model.description.d_model
        for some in torch.arange(len(rows_n)).split(max(1, _NUMBERS_AT_A_TIME // per_feature)):
            numbers = features_n[some].to(model.device)
            written_nd[rows_n[some].to(model.device)] = model.transcoders.decoder_rows(layer, numbers).float().sum(1)
    return written_nd


def _promoted_by(model: ReplacementModel, written_nd: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    unembedding_vd = model.sites.unembedding
    device = unembedding_vd.device
    rows_nd = (written_nd * model.sites.gain(model.sites.final_norm).to(written_nd.device)).to(device)
    mean_n = rows_nd @ model.sites.mean_unembedding.to(device)
    squares_n = torch.zeros(len(rows_nd), dtype=torch.float64, device=device)
    best_nt = torch.empty(len(rows_nd), 0, device=device)
    tokens_nt = torch.empty(len(rows_nd), 0, dtype=torch.int64, device=device)
    first = 0
    for some_vd in unembedding_vd.split(_TOKENS_AT_A_TIME):
        logits_nv = torch.addmm(-mean_n[:, None], rows_nd, some_vd.float().T)
        squares_n += torch.linalg.vector_norm(logits_nv, dim=-1).double().square()
        raised_nt, promoted_nt = _largest(logits_nv, count)
        # Merged at once: what is kept is small however large the vocabulary is.
        best_nt = torch.cat([best_nt, raised_nt], 1)
        tokens_nt = torch.cat([tokens_nt, promoted_nt + first], 1)
        best_nt, kept_nt = best_nt.topk(min(count, best_nt.shape[1]), dim=-1)
        tokens_nt = tokens_nt.gather(1, kept_nt)
        first += len(some_vd)
    return tokens_nt, best_nt, (squares_n / first).sqrt().float()


def _largest(values_nv: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and where they are. They lie within the groups with the largest maxima."""
    n, width = values_nv.shape
    if width % _GROUP or width <= count * _GROUP:
        largest = values_nv.topk(min(count, width), dim=-1)
        return largest.values, largest.indices
    groups_ngw = values_nv.view(n, -1, _GROUP)
    chosen_nt = groups_ngw.amax(-1).topk(count, dim=-1).indices
    values, places = groups_ngw.gather(1, chosen_nt[..., None].expand(-1, -1, _GROUP)).flatten(1).topk(count, dim=-1)
    return values, chosen_nt.gather(1, places // _GROUP) * _GROUP + places % _GROUP
