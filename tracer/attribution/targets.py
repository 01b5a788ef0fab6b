"""What a trace explains: logits, contrasts, features, and directions in the residual stream, at any position.

Letters: P positions, D d_model, V vocabulary, L layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.graphs.numbers import probability
from crosstrace.graphs.text import distinct
from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel, Target, prompts
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.latents import LatentReference, parse_latent, sae_of
from crosstrace.replacement_model.dictionaries.saes import Saes
from crosstrace.replacement_model.interventions.references import parse_feature


@dataclass(frozen=True)
class Logit:
    """The logit of one output token.

    Attributes:
        token: An id, or a string that is a single token.
        position: Where to read it; negative numbers count from the end. None: where the trace reads its targets.
    """

    token: int | str
    position: int | None = None


@dataclass(frozen=True)
class Contrast:
    """The difference of two tokens' logits: what makes `plus` more likely than `minus`.

    Attributes:
        plus: An id, or a string that is a single token.
        minus: Another token.
        position: As in `Logit`.
    """

    plus: int | str
    minus: int | str
    position: int | None = None


@dataclass(frozen=True)
class Feature:
    """The pre-activation of a transcoder feature, whether it is active or not.

    Attributes:
        layer: Its layer.
        feature: Its number in the layer.
        position: As in `Logit`.
    """

    layer: int
    feature: int
    position: int | None = None


@dataclass(frozen=True, eq=False)
class Direction:
    """The residual stream that enters a layer, projected on a vector.

    Attributes:
        vector: (D,), any floating dtype.
        layer: 0 to L; L means what the final norm reads.
        position: As in `Logit`.
        label: What the graph calls it.
    """

    vector: Tensor
    layer: int
    position: int | None = None
    label: str = "direction"


@dataclass(frozen=True, eq=False)
class Combination:
    """A weighted sum of logits at one position, such as the gradient of a margin between sets of tokens.

    Attributes:
        weights: By token id. The graph's edges add up to the sum only if they sum to 0, or of centred logits.
        position: As in `Logit`.
        label: What the graph calls it.
    """

    weights: Mapping[int, float]
    position: int | None = None
    label: str = "combination"


Spec = Logit | Contrast | Combination | Feature | LatentReference | Direction
TargetSpec = int | str | Spec
_POSITIONS_AT_A_TIME = 64  # whose logits are read together: 67 MB of them with a vocabulary of 262k
_SPECS = (int, str, Logit, Contrast, Combination, Feature, LatentReference, Direction)


@dataclass(frozen=True)
class ResolvedTarget:
    """A target ready to trace, with what the graph says about it.

    Attributes:
        target: The row to compute.
        token: The token's id; -1 if the target is not a single token.
        string: The target in words.
        weight: Its weight in influence: the probability of a token that was not named; 1 for every target named by
            hand.
        probability: The model's probability of the token; 0 if the target is not a single token.
        contrast: The two tokens of a contrast, the one that counts positive first.
    """

    target: Target
    token: int
    string: str
    weight: float
    probability: float = 0.0
    contrast: tuple[int, int] | None = None


_TOKEN = r'("(?:[^"\\]|\\.)*"|#\d+)'
_AT = r"(?:@(-?\d+))?"
_CONTRAST = re.compile(rf"\s*{_TOKEN}\s*-\s*{_TOKEN}\s*{_AT}\s*", re.DOTALL)
_LOGIT = re.compile(rf"\s*{_TOKEN}\s*{_AT}\s*", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}
# How much more likely another spelling must be to be pointed out.
_MUCH_LIKELIER = 20
# What people write without quotation marks for the token that it stands for within them.
_NAMES = {"\\n": "a line break", "\\t": "a tab"}


def parse_target(text: str) -> Logit | Contrast | Feature | LatentReference:
    r"""Read a target as it is written.

    A token is `" Austin"` or, by its id, `#24278`; a contrast `" Austin" - " Dallas"`, a feature `L3/417` or `3/417`, a
    latent of an SAE `resid_post/12/417`; each may end in `@position`. Between quotation marks, JSON's escapes `\n`, `\t`,
    `\uXXXX`, `\"` and `\\` stand for what they do in JSON, and `"<0x0A>"` is a byte token. Any other text is a token string
    as it stands.

    Args:
        text: The target.

    Raises:
        ValueError: An escape, a feature's numbers or its position cannot be read, or it names several positions.

    Example:
        >>> parse_target('" Austin" - " Dallas" @ -1'.replace(" @ ", "@"))
        Contrast(plus=' Austin', minus=' Dallas', position=-1)
    """

    def place(group: str | None) -> int | None:
        return None if group is None else int(group)

    if match := _CONTRAST.fullmatch(text):
        return Contrast(_token(match[1], text), _token(match[2], text), place(match[3]))
    if match := _LOGIT.fullmatch(text):
        return Logit(_token(match[1], text), place(match[2]))
    if latent := parse_latent(text):
        return latent
    if feature := parse_feature(text):
        if feature.positions is not None and not isinstance(feature.positions, int):
            raise ValueError(f"target {text.strip()!r} must name one position, as in L3/417@7")
        return Feature(feature.layer, feature.feature, feature.positions)
    return Logit(text)


def _token(written: str, target: str) -> int | str:
    """The id or the text of a token as it is written in a target: `#24278`, or between quotation marks."""
    if written.startswith("#"):
        return int(written[1:])

    def meant(match: re.Match[str]) -> str:
        escape = match[1]
        if escape in _ESCAPES:
            return _ESCAPES[escape]
        if len(escape) == 5:
            return chr(int(escape[1:], 16))
        raise ValueError(
            f"target {target.strip()}: \\{escape} is not an escape; known are \\n, \\t, \\uXXXX (four digits, as in \\u00e9), "
            '\\" and \\\\'
        )

    # Two escapes may be one character, as in JSON: the halves of a surrogate pair.
    text = _ESCAPE.sub(meant, written[1:-1]).encode("utf-16-le", "surrogatepass")
    try:
        return text.decode("utf-16-le")
    except UnicodeDecodeError:
        raise ValueError(f"target {target.strip()}: it holds half of a surrogate pair, which is not text") from None


def resolve_targets(
    model: ReplacementModel,
    local: LocalReplacementModel,
    targets: TargetSpec | Sequence[TargetSpec] | None,
    position: int,
    max_logits: int,
    logit_probability: float,
    saes: Sequence[Saes] = (),
) -> list[ResolvedTarget]:
    """Turn what the user asked for into rows to trace; by default the most probable tokens.

    Args:
        model: The replacement model.
        local: The prompt's local replacement model.
        targets: One target, a list of them, or None.
        position: Where targets without a position of their own are read.
        max_logits: The most tokens to explain when `targets` is None.
        logit_probability: The probability they should reach together.
        saes: The SAEs whose latents may be targets.

    Raises:
        ValueError: A text is not a single token, or a position, layer, feature or vector is out of range; the message
            names it.
    """
    probabilities: dict[int, Tensor] = {}
    if targets is None:
        place = _position(position, local)
        logits_v = local.logits(place)
        probabilities[place] = logits_v.softmax(-1)
        tokens, _ = top_logits(logits_v, max_logits, logit_probability)
        specs: list[Spec] = [Logit(token, place) for token in tokens.tolist()]
    elif isinstance(targets, _SPECS):
        specs = [_spec(targets)]
    else:
        specs = [_spec(target) for target in targets]
    if not specs:
        raise ValueError("targets is empty; give at least one, or None for the most probable tokens")
    weight = 1.0  # of targets named by hand, whatever their probability
    places = [_position(position if spec.position is None else spec.position, local) for spec in specs]
    read = {place for place, spec in zip(places, specs, strict=True) if isinstance(spec, Logit)} - set(probabilities)
    for place, logits_v in logits_at(local, sorted(read)):
        probabilities[place] = logits_v.softmax(-1)
    resolved = []
    for place, spec in zip(places, specs, strict=True):
        match spec:
            case Logit():
                token = token_id(model, spec.token)
                likely = probabilities[place][token].item()
                string = model.token_strings(torch.tensor([token]))[0]
                target = local.logit_target({token: 1.0}, place)
                share = likely if targets is None else weight
                resolved.append(ResolvedTarget(target, token, string, share, likely))
            case Contrast():
                plus, minus = token_id(model, spec.plus), token_id(model, spec.minus)
                if plus == minus:
                    raise ValueError(f"a contrast needs two different tokens, not {spec.plus!r} twice")
                names = distinct(model.token_strings(torch.tensor([plus, minus])), [plus, minus])
                target = local.logit_target({plus: 1.0, minus: -1.0}, place)
                name = f"{names[0]} − {names[1]}"
                resolved.append(ResolvedTarget(target, -1, name, weight, contrast=(plus, minus)))
            case Combination():
                if not spec.weights:
                    raise ValueError(f"target {spec.label!r} has no tokens")
                weights = {token_id(model, token): float(share) for token, share in spec.weights.items()}
                resolved.append(ResolvedTarget(local.logit_target(weights, place), -1, spec.label, weight))
            case Feature():
                resolved.append(_feature(local, spec, place, weight))
            case LatentReference():
                resolved.append(_latent(local, spec, sae_of(spec, saes), place, weight))
            case Direction():
                resolved.append(_direction(local, spec, place, weight))
    return resolved


def _spec(target: TargetSpec) -> Spec:
    """A target as it was asked for, read if it is a text or the id of a token."""
    if isinstance(target, str):
        return parse_target(target)
    return Logit(target) if isinstance(target, int) else target


def logits_at(local: LocalReplacementModel, positions: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield each position with its logits (V,) float32; some are read together, since each reading takes the whole unembedding.

    Args:
        local: The prompt's local replacement model.
        positions: Where.
    """
    for start in range(0, len(positions), _POSITIONS_AT_A_TIME):
        some = positions[start : start + _POSITIONS_AT_A_TIME]
        yield from zip(some, local.logits(torch.tensor(some, device=local.residuals_lpd.device)), strict=True)


def top_logits(logits_v: Tensor, max_logits: int, logit_probability: float) -> tuple[Tensor, Tensor]:
    """Return the fewest top tokens whose probabilities together reach a share, with those probabilities.

    Args:
        logits_v: (V,) logits.
        max_logits: At most this many tokens.
        logit_probability: The share, above 0 and at most 1.

    Returns:
        (k,) int64 ids and (k,) float64 probabilities, descending.
    """
    probabilities, tokens = logits_v.double().softmax(-1).topk(min(max_logits, len(logits_v)))
    enough = int((probabilities.cumsum(0) < logit_probability).sum()) + 1
    return tokens[:enough], probabilities[:enough]


def token_id(model: ReplacementModel, token: int | str) -> int:
    """Return the id of a target token.

    Args:
        model: The replacement model.
        token: An id, or a text.

    Raises:
        ValueError: The id is out of range, or the text is not exactly one token of the vocabulary.
    """
    if isinstance(token, int):
        if not 0 <= token < model.description.vocab_size:
            raise ValueError(
                f"target token id {token} is out of range; the vocabulary has ids 0 to {model.description.vocab_size - 1}"
            )
        return token
    if model.tokenizer is None:
        raise ValueError(f"model {model.name} has no tokenizer; give the target {token!r} as a token id")
    prompts.check_text(token, "target")
    if (found := prompts.single_token(token, model.tokenizer)) is not None:
        return found
    ids = model.tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [quoted(text) for text in prompts.variants(token, model.tokenizer)]
    meant = (
        f"; {' and '.join(tokens[:2])} {'is one token' if len(tokens) == 1 else 'are one token each'}" if tokens else ""
    )
    if len(ids) != 1:
        pieces = prompts.token_strings(ids, model.tokenizer)
        raise ValueError(f"target {token!r} is not a single token but {len(ids)}: {pieces}{meant}")
    if close := [] if tokens else model.close_tokens(token):
        meant = f"; close: {', '.join(map(repr, close))}"
    raise ValueError(f"target {token!r} is not in the vocabulary of model {model.name}{meant}")


def quoted(text: str) -> str:
    """Return a token's text as it is written in a target: in quotation marks, with escapes where it needs them."""
    return '"' + "".join(_written(character) for character in text) + '"'


def _written(character: str) -> str:
    for escape, meant in _ESCAPES.items():
        if character == meant:
            return f"\\{escape}"
    if character.isprintable():
        return character
    # JSON's short escapes that targets do not know: \\b, \\f, \\r.
    return f"\\u{ord(character):04x}" if character.isascii() else json.dumps(character)[1:-1]


def target_notes(
    model: ReplacementModel,
    local: LocalReplacementModel,
    targets: TargetSpec | Sequence[TargetSpec] | None,
    position: int,
) -> list[str]:
    """Return what somebody who names targets may have meant otherwise, one line each.

    A token is pointed out where one that differs from it in a leading space or in case alone is much likelier.

    Args:
        model: The replacement model.
        local: The prompt's local replacement model.
        targets: As `resolve_targets` takes them, all of them valid.
        position: Where targets without a position of their own are read.
    """
    if targets is None or model.tokenizer is None:
        return []
    one = isinstance(targets, _SPECS)
    notes: list[str] = []
    for given in [targets] if one else list(targets):  # type: ignore[arg-type]
        spec = parse_target(given) if isinstance(given, str) else given
        if not isinstance(spec, Logit | Contrast):
            continue
        logits_v = local.logits(_position(position if spec.position is None else spec.position, local)).double()
        share_v = logits_v.softmax(-1)
        for text in (spec.token,) if isinstance(spec, Logit) else (spec.plus, spec.minus):
            if not isinstance(text, str):
                continue
            if text in _NAMES and isinstance(given, str) and given.strip() == text:
                notes.append(
                    f"target {text} is read as a backslash and a letter; in quotation marks it is {_NAMES[text]}"
                )
            token = token_id(model, text)
            likely = prompts.variants(text, model.tokenizer)
            best = max(likely, key=lambda other: share_v[likely[other]].item(), default=None)
            if best is None:
                continue
            times = (logits_v[likely[best]] - logits_v[token]).exp().item()
            if times >= _MUCH_LIKELIER:
                notes.append(
                    f"{quoted(best)} (p={probability(share_v[likely[best]].item())}) is {times:,.0f} times as likely as the "
                    f"target {quoted(text)} (p={probability(share_v[token].item())})"
                )
    return list(dict.fromkeys(notes))


def _position(position: int, local: LocalReplacementModel) -> int:
    if not -local.n_positions <= position < local.n_positions:
        raise ValueError(
            f"target position {position} is outside the prompt, which has {local.n_positions} tokens, <bos> included"
        )
    return position % local.n_positions


def _feature(local: LocalReplacementModel, spec: Feature, position: int, weight: float) -> ResolvedTarget:
    n_layers = local.description.n_layers
    if not 0 <= spec.layer < n_layers:
        raise ValueError(f"target feature L{spec.layer}/{spec.feature}: the model has layers 0 to {n_layers - 1}")
    n_features = local.transcoders.reader.n_features[spec.layer]
    if not 0 <= spec.feature < n_features:
        raise ValueError(
            f"target feature L{spec.layer}/{spec.feature}: layer {spec.layer} has features 0 to {n_features - 1}"
        )
    if position < local.description.excluded_first:
        raise ValueError(
            f"target feature L{spec.layer}/{spec.feature}@{position}: the first {local.description.excluded_first} "
            "positions carry no features"
        )
    name = f"L{spec.layer}/{spec.feature}@{position}"
    label = local.transcoders.labels.get((spec.layer, spec.feature), "")
    # What feeds the pre-activation of an inactive feature is just as well defined, but has no part in the computation.
    indices = local.activations.indices
    active = bool((indices == indices.new_tensor([spec.layer, position, spec.feature])).all(-1).any())
    target = local.feature_target(spec.layer, position, spec.feature)
    return ResolvedTarget(target, -1, f"{label} {name}{'' if active else ', not active there'}".strip(), weight)


def _latent(
    local: LocalReplacementModel, spec: LatentReference, sae: Saes, position: int, weight: float
) -> ResolvedTarget:
    if spec.site is not Site.RESIDUAL:
        raise ValueError(
            f"target {spec}: latents of {spec.site.short_name} cannot be traced; those of {Site.RESIDUAL.short_name} can, "
            "which read the residual stream alone"
        )
    if len(sae.reader.read_layers(spec.layer)) > 1:
        raise ValueError(
            f"target {spec}: it reads layers {', '.join(map(str, sae.reader.read_layers(spec.layer)))} of {sae.name} together; "
            "only latents that read one layer can be traced"
        )
    if position < local.description.excluded_first:
        raise ValueError(
            f"target {spec}: the first {local.description.excluded_first} positions carry no latents, and it is read at "
            f"position {position}"
        )
    input_d = local.residuals_lpd[spec.layer + 1, position]
    gradient_d = sae.gradient(spec.layer, spec.feature, input_d.to(sae.device))
    target = local.residual_target(gradient_d, spec.layer + 1, position)
    active = spec.feature in sae.encode(spec.layer, input_d[None].to(sae.device), 0)[1].tolist()
    label = sae.labels.get((spec.layer, spec.feature), "")
    name = f"{spec.site.short_name}/{spec.layer}/{spec.feature}@{position}"
    return ResolvedTarget(target, -1, f"{label} {name}{'' if active else ', not active there'}".strip(), weight)


def _direction(local: LocalReplacementModel, spec: Direction, position: int, weight: float) -> ResolvedTarget:
    n_layers, d_model = local.description.n_layers, local.description.d_model
    if not 0 <= spec.layer <= n_layers:
        raise ValueError(f"target {spec.label!r}: layer {spec.layer} is outside 0 to {n_layers}")
    if spec.vector.shape != (d_model,) or not spec.vector.isfinite().all():
        raise ValueError(
            f"target {spec.label!r}: its vector has shape {tuple(spec.vector.shape)}; expected ({d_model},), all finite"
        )
    return ResolvedTarget(local.residual_target(spec.vector, spec.layer, position), -1, spec.label, weight)
