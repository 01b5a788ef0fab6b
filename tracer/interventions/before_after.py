"""A prompt before and after interventions: its top tokens, and what is generated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from crosstrace.graphs import FeatureCards, write_atomically
from crosstrace.graphs.files import check_writable
from crosstrace.graphs.numbers import plain
from crosstrace.graphs.text import short
from crosstrace.replacement_model import (
    Ablate,
    Add,
    FeatureAt,
    Freeze,
    Intervention,
    LocalReplacementModel,
    ReplacementModel,
    Scale,
    Set,
    Supernode,
    SwapIn,
)
from crosstrace.replacement_model.conversations import Conversation
from crosstrace.replacement_model.interventions.edits import resolve
from crosstrace.replacement_model.interventions.freeze import Errors
from crosstrace.replacement_model.interventions.references import name_and_positions
from crosstrace.replacement_model.prompts import Prompt
from crosstrace.tracer.attribution.tracing import answer_log_probabilities
from crosstrace.tracer.cards.naming import FeatureNames
from crosstrace.tracer.progress import generation_progress

SHOWN = 3  # active features named for an intervention
_NUMERIC: dict[str, Callable[[str, float], Intervention]] = {"set": Set, "scale": Scale, "add": Add}
# A reference may be a quoted label, which may hold an equals sign.
_ASSIGNMENT = re.compile(r'\s*("[^"]*"[^=]*|[^=]*)=(.*)', re.DOTALL)


@dataclass(frozen=True)
class TokenChange:
    """One output token before and after interventions.

    Attributes:
        token: Its id.
        string: Its text.
        before: Its probability before.
        after: Its probability after.
        logit_change: The change of its logit, less the mean change over the vocabulary, which changes no probability.
        log_probability_change: log(after / before), in nats: its own logit against all others'.
    """

    token: int
    string: str
    before: float
    after: float
    logit_change: float
    log_probability_change: float


@dataclass(frozen=True)
class AnswerToken:
    """One token of an answer that is read, before and after interventions.

    Attributes:
        string: Its text.
        position: Where in the prompt it stands.
        before: Its log-probability before, in nats.
        after: Its log-probability after.
    """

    string: str
    position: int
    before: float
    after: float


@dataclass(frozen=True)
class BeforeAfter:
    """A prompt before and after interventions.

    Attributes:
        prompt: The text, or the tokens' texts where it was given as ids.
        token_strings: (P,) each token as text.
        interventions: The interventions in words.
        found: For each intervention, which of the features it names were active in the unchanged prompt, and how much.
        freeze: What was held, in words.
        errors: What became of the transcoders' errors.
        became_active: How many features fired that the unchanged prompt does not have, those intervened on aside.
        became_inactive: How many of the unchanged prompt's features did not fire any more, likewise.
        before: The top tokens before.
        after: The top tokens after.
        generated_before: The text generated without interventions, if any was wanted.
        generated_after: The text generated under them.
        answer: The tokens of a conversation's answer; then the top tokens are those where it begins.
        asked: The tokens that were asked for, whatever their probability.
    """

    prompt: str
    token_strings: list[str]
    interventions: list[str]
    found: list[str]
    freeze: str
    errors: str
    became_active: int
    became_inactive: int
    before: list[TokenChange]
    after: list[TokenChange]
    generated_before: str | None
    generated_after: str | None
    answer: list[AnswerToken] = field(default_factory=list)
    asked: list[TokenChange] = field(default_factory=list)


def parse_intervention(verb: str, text: str) -> Intervention:
    """Read an intervention as it is written on the command line: `L3/417@7=0` or `"Texas"=2`; `ablate` has no value.

    Args:
        verb: `set`, `scale`, `add`, `ablate` or `swap-in`.
        text: The features and the value.

    Raises:
        ValueError: Nothing follows `=`, or it is not a number where one is needed.

    Example:
        >>> parse_intervention("scale", '"Texas"@5:=-2')
        Scale(where='"Texas"@5:', factor=-2.0)
    """
    if verb == "ablate":
        return Ablate(text)
    match = _ASSIGNMENT.fullmatch(text)
    if match is None or not match[1].strip() or not match[2].strip():
        example = (
            "FEATURE=PROMPT, as in L3/417@7='another prompt'"
            if verb == "swap-in"
            else "FEATURE=VALUE, as in L3/417@7=2"
        )
        raise ValueError(f"--{verb} {text!r}: write {example}; FEATURE may be a label, as in '\"Texas\"@5:'")
    where, value = match[1].strip(), match[2].strip()
    if verb == "swap-in":
        return SwapIn(where, value)
    try:
        return _NUMERIC[verb](where, float(value))
    except ValueError:
        raise ValueError(f"--{verb} {text!r}: {value!r} is not a number") from None


def before_and_after(
    model: ReplacementModel,
    prompt: Prompt,
    interventions: Sequence[Intervention],
    freeze: str = "iterative",
    free_attention: bool = False,
    errors: str = "frozen",
    top: int = 10,
    max_new_tokens: int = 0,
    cards: FeatureCards | None = None,
    excluded_first: int | None = None,
    asked: Sequence[int] = (),
) -> BeforeAfter:
    """Run a prompt with and without interventions.

    Args:
        model: The replacement model.
        prompt: Text, token ids taken as they are, or a conversation, whose answer is read.
        interventions: What to change; see `crosstrace.replacement_model.Intervention`.
        freeze: What is held: `direct`, `constrained:LAYER` or `iterative`.
        free_attention: Recompute attention patterns too, whatever `freeze` says of features.
        errors: What becomes of the transcoders' errors: `frozen`, `recomputed` or `dropped`.
        top: How many of the top tokens to list before and after.
        max_new_tokens: How many tokens to generate before and after.
        cards: Feature cards, whose automatic labels name the features that are found active.
        excluded_first: How many first positions carry no features; None for the model's own choice.
        asked: Token ids to report on, whatever their probability.

    Raises:
        ValueError: Prompt, interventions or settings cannot be used.

    Example:
        >>> before_and_after(model, "The capital of the state containing Dallas is", [Ablate("Texas")]).after[0].string
    """
    held = Freeze.parse(freeze)
    if free_attention:
        if held.name == "direct":
            raise ValueError("direct effects are read with attention frozen; free it under constrained or iterative")
        held = replace(held, attention=False)
    if excluded_first is not None:
        model = model.excluding(excluded_first)
    local = model.local(prompt)
    localize = model.localizer()  # other prompts are run once, so that their activations can be reported too
    named = list(interventions)
    interventions = [replace(one, source=localize(one.source)) if isinstance(one, SwapIn) else one for one in named]
    names = FeatureNames(model, cards)
    treatment = cast(Errors, errors)  # checked by the passes
    answer: list[AnswerToken] = []
    place = local.n_positions - 1
    if isinstance(prompt, Conversation) and prompt.answer is not None:
        if max_new_tokens:
            raise ValueError("the conversation has an answer already: nothing is generated after it")
        place = prompt.answer[0] - 1
    if max_new_tokens:  # an open end means generated tokens too, and interventions may name them
        with generation_progress("generating with interventions", max_new_tokens) as told:
            after = model.generate(
                local, interventions, max_new_tokens, held, treatment, return_logits=True, stopping_criteria=told
            )
        with generation_progress("generating without", max_new_tokens) as told:
            before = model.generate(local, (), max_new_tokens=max_new_tokens, stopping_criteria=told)
        assert after.logits_rtv is not None
        logits_v, texts = after.logits_rtv[0, 0], [before.texts[0], after.texts[0]]
        flips = after.became_active, after.became_inactive
    else:
        places = range(
            place, max(place + 1, local.n_positions - 1)
        )  # of an answer, where each of its tokens is predicted
        outcome = model.intervene(local, interventions, held, treatment, positions=places)
        logits_v, texts = outcome.logits_qv[0], []
        if isinstance(prompt, Conversation) and prompt.answer is not None:
            answer = _answer(model, local, prompt, outcome.logits_qv)
        flips = outcome.became_active, outcome.became_inactive
    if not bool(logits_v.isfinite().all()):
        raise ValueError("the logits are no longer finite: these values are too large for float32 arithmetic")
    before_v = local.logits(place)
    tops = [
        _changes(model, before_v, logits_v, logits.topk(min(top, len(logits))).indices)
        for logits in (before_v, logits_v)
    ]
    return BeforeAfter(
        prompt=prompt if isinstance(prompt, str) else " ".join(model.token_strings(local.tokens_p)),
        token_strings=model.token_strings(local.tokens_p),
        interventions=[_describe(intervention) for intervention in named],
        found=[_found(intervention, local, max_new_tokens, names) for intervention in interventions],
        freeze=freeze + (", attention free" if free_attention else ""),
        errors=errors,
        became_active=flips[0],
        became_inactive=flips[1],
        before=tops[0],
        after=tops[1],
        generated_before=texts[0] if texts else None,
        generated_after=texts[1] if texts else None,
        answer=answer,
        asked=_changes(model, before_v, logits_v, torch.tensor(asked, dtype=torch.long, device=before_v.device)),
    )


def _answer(
    model: ReplacementModel, local: LocalReplacementModel, conversation: Conversation, after_qv: Tensor
) -> list[AnswerToken]:
    """Each token of an answer, whose logits after interventions are (Q, V)."""
    before = answer_log_probabilities(local, conversation)
    ids = conversation.answer_tokens
    after = [float(row_v.double().log_softmax(-1)[token]) for row_v, token in zip(after_qv, ids, strict=True)]
    strings = model.token_strings(Tensor(ids).long())
    assert conversation.answer is not None
    places = range(*conversation.answer)
    return [AnswerToken(*row) for row in zip(strings, places, before, after, strict=True)]


def _changes(model: ReplacementModel, before_v: Tensor, after_v: Tensor, tokens_t: Tensor) -> list[TokenChange]:
    """Return what became of some tokens (T,)."""
    change_v = (after_v - before_v).double()
    change_v -= change_v.mean()
    log_before_v, log_after_v = before_v.double().log_softmax(-1), after_v.double().log_softmax(-1)
    more_likely_v = log_after_v - log_before_v
    columns = (log_before_v.exp(), log_after_v.exp(), change_v, more_likely_v)
    values = zip(*(column[tokens_t].tolist() for column in columns), strict=True)
    named = zip(tokens_t.tolist(), model.token_strings(tokens_t.cpu()), values, strict=True)
    return [TokenChange(token, string, *changes) for token, string, changes in named]


def _describe(intervention: Intervention) -> str:
    where = intervention.where
    match intervention:
        case Set(value=value):
            values = value if isinstance(value, tuple) else (value,)
            return f"set {where} to {', '.join(f'{one:g}' for one in values)}"
        case Scale(factor=factor):
            return f"scale {where} by {factor:g}"
        case Add(amount=amount):
            return f"add {amount:g} to {where}"
        case Ablate():
            return f"ablate {where}"
        case SwapIn(source=source):
            prompt = repr(source) if isinstance(source, str) else "another prompt"
            return f"swap in {where} from {prompt}"


def _found(intervention: Intervention, local: LocalReplacementModel, n_generated: int, names: FeatureNames) -> str:
    """Say which of the named features were active: an intervention may change nothing because none was.

    For features that are swapped in, say which are active in the prompt they come from.
    """
    where = intervention.where
    if not isinstance(where, (str, FeatureAt, Supernode)):
        return ""
    read, at = local, "here"
    places = list(resolve([Ablate(where)], local, lambda _: local, n_generated).features)
    features = {(layer, feature) for layer, _, feature in places}
    if isinstance(intervention, SwapIn) and isinstance(intervention.source, LocalReplacementModel):
        read, at = intervention.source, "there"
        if intervention.source_position is not None:
            there = intervention.source_position % read.n_positions
            places = [(layer, there, feature) for layer, feature in sorted(features)]
    activations = zip(map(tuple, read.activations.indices.tolist()), read.activations.values.tolist(), strict=True)
    wanted = set(places)
    active = [(place, value) for place, value in activations if place in wanted]
    name = names.of(features)[next(iter(features))] if len(features) == 1 else ""
    said = f'"{name}", ' if name else f"{len(features)} features, " if len(features) > 1 else ""
    if not active:
        return f"{said}not active {at}"
    if len(places) == 1:
        return f"{said}{plain(active[0][1])} {at}"
    named = names.of({(layer, feature) for (layer, _, feature), _ in active[:SHOWN]}) if len(features) > 1 else {}
    asked = name_and_positions(where)[0] if isinstance(where, str) else getattr(where, "name", "")
    shown = []
    for (layer, position, feature), value in active[:SHOWN]:
        own = named.get((layer, feature), "")
        alike = not own or own == asked
        shown.append(f"L{layer}/{feature}@{position}{'' if alike else f' ({short(own, 32)})'} {plain(value)}")
    more = [f"and {len(active) - SHOWN} more"] if len(active) > SHOWN else []
    return f"{said}active {at}: {', '.join(shown + more)}"


def check_report_file(path: Path | None) -> None:
    """Find a wrong suffix or folder before the model is loaded.

    Raises:
        ValueError: The suffix is not `.json`.
        OSError: The folder does not exist or may not be written to.
    """
    if path is None:
        return
    if path.suffix.lower() != ".json":
        raise ValueError(f"cannot write {str(path)!r}: the result is written as .json")
    check_writable(path)


def write_before_after(result: BeforeAfter, path: Path) -> None:
    """Write a prompt before and after interventions as JSON, whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    content = json.dumps(asdict(result), indent=1, ensure_ascii=True, allow_nan=False)
    write_atomically(path, content.encode())
