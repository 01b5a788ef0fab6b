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

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.base_model import LoadedModel
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.model import dictionary_of

_FEATURES_AT_A_TIME = 1 << 10
_TOKENS_AT_A_TIME = 1 << 12  # 16 MB of float32 logits: what follows a product finds them in the cache
_NUMBERS_AT_A_TIME = 1 << 24  # of decoders and of candidates: 64 MB of float32
COHERENT_TOKENS = 10
"""Of how many promoted tokens the coherence is taken."""
_SHARE_BELOW = 0.95  # of the coherence that chance gives
_GROUP = 16  # tokens of which at first only the largest and the smallest logit are kept


@dataclass(frozen=True)
class DirectLogits:
    """The tokens that features of one layer raise and lower most.

    Attributes:
        promoted: (n, T) int64 token ids with the largest logits, strongest first.
        raised: (n, T) float32 their logits per unit of activation, centred over the vocabulary.
        suppressed: (n, T) int64 token ids with the smallest logits, strongest first.
        lowered: (n, T) float32 their logits, likewise.
        spread: (n,) float32 standard deviation of the feature's logits over the vocabulary.
        coherence: (n,) float32 how alike the promoted tokens are; see `coherence`.
    """

    promoted: Tensor
    raised: Tensor
    suppressed: Tensor
    lowered: Tensor
    spread: Tensor
    coherence: Tensor


def direct_logits(
    model: LoadedModel,
    layer: int,
    features_n: Tensor,
    count: int = 10,
    done: Callable[[int], None] = lambda more: None,
    block_size: int | None = None,
    dictionary: DictionaryInUse | None = None,
) -> DirectLogits:
    """Compute the strongest direct logits of features, at both ends.

    The vocabulary is gone through once for a block of features, at about the speed of that matrix product.

    Args:
        model: The replacement model, or a base model.
        layer: The layer of the features.
        features_n: (n,) int64 features within the layer.
        count: The number of tokens T kept at each end; at most the whole vocabulary.
        done: Called after each block with the number of its features.
        block_size: The number of features in a block; None chooses. The result depends on it through rounding alone.
        dictionary: Whose features; None for the replacement model's transcoders.

    Returns:
        Tokens, logits and spreads of the features, in the order given, on the CPU.

    Example:
        >>> direct_logits(model, 3, torch.tensor([417])).promoted[0, 0]
    """
    used = dictionary_of(model, dictionary)
    count = min(count, model.description.vocab_size)
    if not len(features_n):
        none, flat = torch.zeros(0, count), torch.zeros(0)
        return DirectLogits(none.long(), none, none.long(), none, flat, flat)
    parts = []
    for some in features_n.split(block_size or _FEATURES_AT_A_TIME):
        written_nd = written_rows(model, used, layer, some)
        ends = _Ends(model, written_nd, lowest=True)
        *highest, alike_n = _promoted(model, ends, count)
        done(len(some))
        parts.append([part.cpu() for part in (*highest, *ends.strongest(count, -1.0), ends.spread_n, alike_n)])
    return DirectLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def coherence(model: LoadedModel, tokens_nt: Tensor) -> Tensor:
    """Return how alike some tokens are: the mean cosine between their rows of the unembedding, over all pairs of them.

    Rows are centred over the vocabulary, as logits are. Fang et al. 2016, "Using Word Embedding to Evaluate the Coherence
    of Topics from Twitter Data", measure the words of topics so; here the words are what a feature promotes. How far the
    largest logits stand out from the others says less: in Gemma 3 270M the logits of all layers' features are nearly
    normally distributed, whether or not their largest have a meaning in common.

    Args:
        model: The replacement model.
        tokens_nt: (n, T) int64 token ids.

    Returns:
        (n,) float32, -1 to 1; 0 for fewer than two tokens.
    """
    n_tokens = tokens_nt.shape[1]
    if n_tokens < 2:
        return torch.zeros(len(tokens_nt))
    unembedding_vd = model.sites.unembedding
    mean_d = model.sites.mean_unembedding.to(unembedding_vd.device)
    parts = []
    for some_nt in tokens_nt.to(unembedding_vd.device).split(max(1, _NUMBERS_AT_A_TIME // (n_tokens * len(mean_d)))):
        unit_ntd = torch.nn.functional.normalize(unembedding_vd[some_nt].float() - mean_d, dim=-1)
        # The sum over all pairs, a token with itself among them, is the square of the sum.
        parts.append((unit_ntd.sum(1).square().sum(-1) - unit_ntd.square().sum((1, 2))) / (n_tokens * (n_tokens - 1)))
    return torch.cat(parts) if parts else torch.zeros(0)


def coherence_by_chance(model: LoadedModel, directions: int = 512) -> float:
    """Return the coherence below which the tokens that a random direction promotes stay, in 19 of 20 cases.

    Token vectors are not spread evenly, so what a random direction promotes is a little alike already.

    Args:
        model: The replacement model.
        directions: Of how many directions, always the same ones. Each takes as long as a feature's direct logits.
    """
    generator = torch.Generator().manual_seed(0)
    directions_nd = torch.randn(directions, model.description.d_model, generator=generator)
    tokens_nt, _ = _Ends(model, directions_nd.to(model.device)).strongest(
        min(COHERENT_TOKENS, model.description.vocab_size)
    )
    return float(coherence(model, tokens_nt).quantile(_SHARE_BELOW))


@dataclass(frozen=True)
class PromotedTokens:
    """The tokens that features of any layers raise most.

    Attributes:
        promoted: (n, T) int64 token ids with the largest logits, strongest first.
        raised: (n, T) float32 their logits per unit of activation, centred over the vocabulary.
        spread: (n,) float32 standard deviation of the feature's logits over the vocabulary.
        coherence: (n,) float32 how alike the promoted tokens are; see `coherence`.
    """

    promoted: Tensor
    raised: Tensor
    spread: Tensor
    coherence: Tensor


def promoted_tokens(
    model: LoadedModel,
    features: Sequence[tuple[int, int]],
    count: int = 10,
    dictionary: DictionaryInUse | None = None,
) -> PromotedTokens:
    """Compute the upper end of the direct logits of some features, whatever their layers.

    For a handful of features this is several times faster than `direct_logits` layer by layer: the vocabulary is gone
    through once, in blocks, for all of them.

    Args:
        model: The replacement model, or a base model.
        features: The features, as (layer, feature).
        count: The number of tokens T; at most the whole vocabulary.
        dictionary: Whose features; None for the replacement model's transcoders.

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
        return PromotedTokens(none.long(), none, torch.zeros(0), torch.zeros(0))
    parts = []
    for start in range(0, len(features), _FEATURES_AT_A_TIME):
        features_written_nd = _written(
            model, dictionary_of(model, dictionary), features[start : start + _FEATURES_AT_A_TIME]
        )
        ends = _Ends(model, features_written_nd)
        tokens_nt, raised_nt, alike_n = _promoted(model, ends, count)
        parts.append((tokens_nt, raised_nt, ends.spread_n, alike_n))
    return PromotedTokens(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _promoted(model: LoadedModel, ends: _Ends, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(n, T) tokens, (n, T) their logits, and the coherence (n,), which is of the same number of tokens whatever T is."""
    tokens, raised = ends.strongest(max(count, min(COHERENT_TOKENS, model.description.vocab_size)))
    return tokens[:, :count], raised[:, :count], coherence(model, tokens[:, :COHERENT_TOKENS])


def written_rows(model: LoadedModel, used: DictionaryInUse, layer: int, features_n: Tensor) -> Tensor:
    """Return what features of a layer write into the residual stream (n, D) float32, all layers that they write to added up.

    A crosscoder of the residual stream writes the stream itself at each depth, so its deepest row alone counts.

    Of a dictionary that writes what the heads of attention read out, it is what the output projection makes of that, times
    the gain of the norm behind it; the norm's denominator, one number for a position, is left out.
    """
    rows_njd = used.decoder_rows(layer, features_n.to(used.device)).float()
    rows_nd = rows_njd[:, -1] if used.writes is Site.RESIDUAL else rows_njd.sum(1)
    if used.writes is not Site.ATTENTION_HEADS:
        return rows_nd
    sites = model.sites.layers[layer]
    projected_nd = rows_nd @ sites.output_weight().to(rows_nd).T
    return projected_nd * model.sites.gain(sites.post_attention_norm).to(rows_nd)


def _written(model: LoadedModel, used: DictionaryInUse, features: Sequence[tuple[int, int]]) -> Tensor:
    """(n, D) what features of any layers write into the residual stream."""
    written_nd = torch.empty(len(features), model.description.d_model, device=used.device)
    for layer in sorted({layer for layer, _ in features}):
        if layer not in used.n_features:
            raise ValueError(f"{used.name} has {_layer_names(used.layers)}, not {layer}")
        rows_n = torch.tensor([row for row, (own, _) in enumerate(features) if own == layer])
        features_n = torch.tensor([feature for own, feature in features if own == layer])
        n_features = used.n_features[layer]
        if wrong := [feature for feature in features_n.tolist() if not 0 <= feature < n_features]:
            raise ValueError(f"layer {layer} has features 0 to {n_features - 1}, not {wrong[0]}")
        per_feature = used.reader.n_written(layer) * used.d_model
        for some in torch.arange(len(rows_n)).split(max(1, _NUMBERS_AT_A_TIME // per_feature)):
            written_nd[rows_n[some].to(used.device)] = written_rows(model, used, layer, features_n[some])
    return written_nd


def _layer_names(layers: Sequence[int]) -> str:
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


class _Ends:
    """The direct logits of some features, of which only groups' largest and smallest are held.

    The `T` largest logits lie within the `T` groups with the largest maxima. So the product with the unembedding is made
    once, a block of tokens at a time, and the logits of those groups are computed again.

    Letters: G groups of tokens, C candidates.

    Attributes:
        spread_n: (n,) standard deviations over the vocabulary.
    """

    def __init__(self, model: LoadedModel, written_nd: Tensor, lowest: bool = False) -> None:
        """
        Args:
            model: The replacement model.
            written_nd: (n, D) what the features write into the residual stream.
            lowest: Whether the lower end is wanted too.
        """
        self._unembedding_vd = model.sites.unembedding
        device, vocab_size = self._unembedding_vd.device, model.description.vocab_size
        self._rows_nd = (written_nd * model.sites.gain(model.sites.final_norm).to(written_nd.device)).to(device)
        self._mean_n = self._rows_nd @ model.sites.mean_unembedding.to(device)
        n, n_groups = len(written_nd), -(-vocab_size // _GROUP)
        self._ends_gn = {1.0: written_nd.new_empty(n_groups, n, device=device)}
        if lowest:
            self._ends_gn[-1.0] = torch.empty_like(self._ends_gn[1.0])
        squares_n = torch.zeros(n, dtype=torch.float64, device=device)
        rows_dn = self._rows_nd.T.contiguous()
        for first in range(0, vocab_size, _TOKENS_AT_A_TIME):
            some_vd = self._unembedding_vd[first : first + _TOKENS_AT_A_TIME].float()
            logits_vn = torch.addmm(-self._mean_n, some_vd, rows_dn)
            for sign, ends_gn in self._ends_gn.items():
                groups_gn = ends_gn[first // _GROUP : -(-(first + len(some_vd)) // _GROUP)]
                _ends_of_groups(logits_vn, sign, groups_gn)
            squares_n += logits_vn.square_().sum(0)  # their last use
        self.spread_n = (squares_n / vocab_size).sqrt().float()

    def strongest(self, count: int, sign: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the tokens (n, T) at one end and their logits (n, T), strongest first.

        Args:
            count: T.
            sign: 1 for the largest logits, -1 for the smallest.
        """
        ends_gn = self._ends_gn[sign]
        groups_nt = (sign * ends_gn).T.contiguous().topk(min(count, len(ends_gn)), dim=-1).indices
        within = torch.arange(_GROUP, device=groups_nt.device)
        tokens_nc = (groups_nt[..., None] * _GROUP + within).flatten(1)
        tokens, logits = [], []
        n_vocabulary, width = self._unembedding_vd.shape
        for rows in torch.arange(len(tokens_nc)).split(max(1, _NUMBERS_AT_A_TIME // (tokens_nc.shape[1] * width))):
            some_nc = tokens_nc[rows]
            candidates_ncd = self._unembedding_vd[some_nc.clamp(max=n_vocabulary - 1)].float()
            logits_nc = torch.bmm(candidates_ncd, self._rows_nd[rows, :, None])[..., 0] - self._mean_n[rows, None]
            logits_nc.masked_fill_(some_nc >= n_vocabulary, -sign * torch.inf)
            found = (sign * logits_nc).topk(count, dim=-1)
            tokens.append(some_nc.gather(1, found.indices))
            logits.append(sign * found.values)
        return torch.cat(tokens), torch.cat(logits)


def _ends_of_groups(logits_vn: Tensor, sign: float, out_gn: Tensor) -> None:
    """Write the largest logits of groups of tokens, or the smallest if the sign is negative; the last may be short."""
    reduce = torch.amax if sign > 0 else torch.amin
    whole = len(logits_vn) // _GROUP
    reduce(logits_vn[: whole * _GROUP].view(whole, _GROUP, -1), 1, out=out_gn[:whole])
    if whole < len(out_gn):
        reduce(logits_vn[whole * _GROUP :], 0, out=out_gn[whole])
