"""Whether an answer runs through the reasoning before it: graph mass and interventions, step by step.

The reasoning is cut into steps, and what stands after the last lead-in ("Answer :") is the answer. For each step:

- **graph mass**: the share of the influence on the answer's tokens that passes through nodes at the step's positions. Paths
  only lead back in the text, so each enters a step once: the mass is the sum of the influence along edges from nodes there to
  nodes outside. What leaves a step for earlier positions is divided among question, hint, earlier steps and template;
- **interventions**: the change of log p(answer), in nats, when the step is removed from the text, when no later position may
  attend to it, and when its entities are replaced by others of their kind (the same in every step);
- **early answering**: log p(answer) when the lead-in follows the first steps at once.

The same is read for all steps together, and for a hint in the question: log p(answer) without it.

Letters: k steps.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosstrace.graphs.analysis.flow import flow_to, places
from crosstrace.graphs.sparse_rows import rows_of
from crosstrace.replacement_model import Conversation, ReplacementModel, weight_fingerprints
from crosstrace.replacement_model.conversations import Record, ending
from crosstrace.tracer.attribution.targets import Logit
from crosstrace.tracer.attribution.tracing import trace
from crosstrace.tracer.chat.ledger import Ledger
from crosstrace.tracer.chat.passes import Run, answer_all, force_all, token_log_probabilities
from crosstrace.tracer.probes.fit import area
from crosstrace.tracer.validation.total_effects import RankCorrelation, rank_correlation

STEP = r"[^.!?\n]*[.!?\n]+"
LEAD_IN = r"(?i)\banswer\s*:\s*"
MAX_FEATURE_NODES = 1024
_ROLES = ("question", "hint", "steps", "template")
_HALF = math.log(2)  # nats: the probability is halved
_DEPENDENT = "dependent"


@dataclass(frozen=True)
class StepResult:
    """One step.

    Attributes:
        text: The step.
        mass: Share of the influence on the answer that passes through it.
        enters_from: Of what leaves it for earlier positions, the share that goes to each role.
        removed: Δ log p(answer) without it, in nats.
        cut: Δ log p(answer) when later positions do not attend to it.
        replaced: Δ log p(answer) with its entities replaced; None where none is known.
        false_text: The step with other entities, or "".
    """

    text: str
    mass: float
    enters_from: Mapping[str, float]
    removed: float
    cut: float
    replaced: float | None
    false_text: str


@dataclass(frozen=True)
class ReasoningResult:
    """One conversation.

    Attributes:
        place: Where it came from.
        question: The user's last words.
        answer: The answer, after the lead-in.
        log_probability: Of the answer, in nats.
        steps: The steps.
        mass: Share of the influence that passes through any step.
        removed: Δ log p(answer) without any step.
        cut: Δ log p(answer) when nothing later attends to any step.
        replaced: Δ log p(answer) with the entities of all steps replaced; None where none is known.
        early: log p(answer) after the first 0, 1, … k steps.
        hint: What is known of the hint, if there is one: `text`, `followed`, `mentioned`, `mass`, `removed`.
        verdict: `through the reasoning`, `through the question alone`, or `through the hint, unmentioned` (or `mentioned`).
        label: As the file has it, or "".
    """

    place: str
    question: str
    answer: str
    log_probability: float
    steps: Sequence[StepResult]
    mass: float
    removed: float
    cut: float
    replaced: float | None
    early: Sequence[float]
    hint: Mapping[str, Any] | None
    verdict: str
    label: str

    @property
    def effect(self) -> float:
        """How much log p(answer) falls when the steps say something else, or where that is not known, are not seen."""
        return -(self.cut if self.replaced is None else self.replaced)


@dataclass(frozen=True)
class ReasoningReport:
    """Conversations, and what holds over all of them.

    Attributes:
        first_line: How many answers run through what.
        model: The model.
        transcoders: Its transcoders.
        results: The conversations.
        correlation: Spearman's, of the mass of steps and how much replacing (or cutting) them costs.
        auroc: Of telling conversations labelled `dependent` from the others, by interventions and by graph mass alone; None
            without labels of both kinds.
        disagreements: Steps whose mass and effect rank furthest apart.
    """

    first_line: str
    model: str
    transcoders: str
    results: Sequence[ReasoningResult]
    correlation: RankCorrelation
    auroc: Mapping[str, float] | None
    disagreements: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as its JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class _Parts:
    """A conversation cut up: token ids, and spans within them."""

    conversation: Conversation
    steps: list[tuple[int, int]]
    texts: list[str]
    lead_in: tuple[int, int]
    answer: tuple[int, int]


def reasoning(
    model: ReplacementModel,
    records: Sequence[Record],
    *,
    answer: str | None = None,
    hint: str | None = None,
    step: str = STEP,
    lead_in: str = LEAD_IN,
    entities: Sequence[Sequence[str]] = (),
    max_feature_nodes: int = MAX_FEATURE_NODES,
    answer_tokens: int = 64,
    seed: int = 0,
    keep: Path | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> ReasoningReport:
    """Look at conversations whose answers reason first.

    Args:
        model: The replacement model, with a chat template.
        records: Conversations. What is answered is `answer`, or their last message if it is the assistant's, or their field
            `answer`, or what the model says.
        answer: An answer for all of them.
        hint: A text within the question that hints at an answer; a record's field `hint` comes first.
        step: A regular expression that a step matches.
        lead_in: One that stands before the answer; without a match the last step is the answer.
        entities: Groups of names of which one may stand for another, to make false steps.
        max_feature_nodes: How many features of a graph get a row.
        answer_tokens: The most tokens of a generated answer.
        seed: Of the false entities, and the bootstrap.
        keep: A file that keeps what is found, deleted by the caller once the report is safe.
        resume: Continue from it.
        progress: Called with what is done, how many steps of it, and of how many.

    Raises:
        ValueError: A conversation has no steps, or cannot be written; the message names it. What is kept is of another run.
    """
    settings = [
        answer,
        hint,
        step,
        lead_in,
        [list(names) for names in entities],
        max_feature_nodes,
        answer_tokens,
        seed,
    ]
    asked = [[list(map(dict, record.messages)), dict(record.fields)] for record in records]
    identity = {"settings": settings, "model": model.name, "weights": weight_fingerprints(model), "asked": asked}
    ledger = Ledger(keep, identity, resume)

    def found(record: Record) -> dict[str, Any]:
        try:
            told = _told(model, record, answer, answer_tokens)
            parts = _cut_up(model, told, step, lead_in)
            own = record.fields.get("hint")
            return asdict(
                _result(model, record, parts, own if isinstance(own, str) else hint, entities, max_feature_nodes, seed)
            )
        except ValueError as problem:
            raise ValueError(f"{record.place}: {problem}") from None

    results = []
    for number, record in enumerate(records):
        progress("reasoning", number, len(records))
        kept = ledger.step(f"conversation {number}", partial(found, record))
        results.append(ReasoningResult(**{**kept, "steps": [StepResult(**one) for one in kept["steps"]]}))
    ledger.keep()
    progress("reasoning", len(records), len(records))
    steps = [(result, one) for result in results for one in result.steps]
    masses = [one.mass for _, one in steps]
    effects = [-(one.cut if one.replaced is None else one.replaced) for _, one in steps]
    ranks = [np.argsort(np.argsort(values)) for values in (masses, effects)]
    apart: Sequence[int] = np.argsort(-np.abs(ranks[0] - ranks[1]), kind="stable")[:5].tolist() if steps else []
    kinds = [result.verdict for result in results]
    said = [f"{kinds.count(kind)}{'' if number else ' run'} {kind}" for number, kind in enumerate(dict.fromkeys(kinds))]
    return ReasoningReport(
        first_line=f"of {len(results)} answers {', '.join(said)}",
        model=model.name,
        transcoders=model.transcoders.name,
        results=results,
        correlation=rank_correlation(masses, effects, seed),
        auroc=_auroc(results),
        disagreements=[
            {"place": steps[i][0].place, "step": steps[i][1].text, "mass": masses[i], "effect": effects[i]}
            for i in apart
        ],
    )


def _auroc(results: Sequence[ReasoningResult]) -> dict[str, float] | None:
    labels = np.array([result.label == _DEPENDENT for result in results])
    if not any(result.label for result in results) or labels.all() or not labels.any():
        return None
    return {
        "interventions": float(area(np.array([result.effect for result in results]), labels)),
        "graph mass": float(area(np.array([result.mass for result in results]), labels)),
    }


def _told(model: ReplacementModel, record: Record, answer: str | None, answer_tokens: int) -> Conversation:
    if record.messages[-1]["role"] == "assistant" and answer is None:
        return model.conversation(record.messages)
    given = answer if answer is not None else record.fields.get("answer")
    if isinstance(given, str):
        return model.conversation(record.messages, given)
    asked = model.conversation(record.messages)
    (answered,) = answer_all(model, [Run(asked.tokens)], answer_tokens, ending(model.tokenizer))
    return asked.answered(answered.tokens)


def _cut_up(model: ReplacementModel, conversation: Conversation, step: str, lead_in: str) -> _Parts:
    """Find the steps and the answer among the tokens that are said."""
    assert conversation.answer is not None
    start, stop = conversation.answer
    text = ""
    offsets: list[tuple[int, int]] = []
    for _ in conversation.answer_tokens:  # each token's text stands where it ends up when the answer is decoded
        more = model.tokenizer.decode(conversation.tokens[start : start + len(offsets) + 1])
        offsets.append((len(text), len(more)))
        text = more
    leads = list(re.finditer(lead_in, text))
    spans = [match.span() for match in re.finditer(step, text) if match[0].strip()]
    if leads:
        lead = leads[-1].span()
        spans = [span for span in spans if span[1] <= lead[0]] or ([(0, lead[0])] if text[: lead[0]].strip() else [])
        final = (lead[1], len(text))
    else:
        if not spans:
            raise ValueError(f"{text!r} has no steps")
        final, spans = (spans[-1][0], len(text)), spans[:-1]
        lead = (final[0], final[0])

    def tokens(span: tuple[int, int]) -> tuple[int, int]:
        inside = [start + i for i, (a, b) in enumerate(offsets) if (a + b) / 2 > span[0] and (a + b) / 2 <= span[1]]
        return (inside[0], inside[-1] + 1) if inside else (stop, stop)

    if not spans:
        raise ValueError(f"{text!r} has no steps before its answer")
    ended = tokens(final)
    if ended[0] >= ended[1]:
        raise ValueError(f"{text!r} has no answer after its steps")
    return _Parts(
        conversation, [tokens(span) for span in spans], [text[slice(*span)].strip() for span in spans],
        tokens(lead) if lead[1] > lead[0] else (ended[0], ended[0]), ended,
    )  # fmt: skip


def _result(
    model: ReplacementModel,
    record: Record,
    parts: _Parts,
    hint: str | None,
    entities: Sequence[Sequence[str]],
    max_feature_nodes: int,
    seed: int,
) -> ReasoningResult:
    tokens, (begin, end) = parts.conversation.tokens, parts.answer
    before, said = tokens[:begin], tokens[begin:end]
    first, last = parts.steps[0][0], parts.steps[-1][1]
    false = _false_steps(model, parts, entities, seed)
    runs = [Run(before), Run((*before[:first], *before[last:])), Run(before, cut=(first, last))]
    for start, stop in parts.steps:
        runs += [Run((*before[:start], *before[stop:])), Run(before, cut=(start, stop))]
    lead = tokens[slice(*parts.lead_in)]
    runs += [Run((*tokens[:stop], *lead)) for stop in (first, *(stop for _, stop in parts.steps))]
    extra: list[Run] = []
    if false is not None:
        extra.append(Run(_with_steps(before, parts, false)))
        extra += [Run(_with_steps(before, parts, {i: false[i]} if i in false else {})) for i in range(len(parts.steps))]
    plain = None
    if hint is not None and any(hint in message["content"] for message in record.messages):
        messages = [{**message, "content": _without(message["content"], hint)} for message in record.messages]
        prompt = model.conversation(messages).unanswered()
        assert parts.conversation.answer is not None
        plain = Run((*prompt.tokens, *before[parts.conversation.answer[0] :]))
        extra.append(plain)
    values = _log_probabilities(model, [*runs, *extra], said)
    base, k = values[0], len(parts.steps)
    singles, early = values[3 : 3 + 2 * k], values[3 + 2 * k : 4 + 3 * k]
    others = values[4 + 3 * k :]
    replaced = None if false is None else others[0] - base
    roles = _roles(model, parts, hint)
    masses, sources, hint_mass, total = _masses(model, parts, roles, max_feature_nodes)
    steps = [
        StepResult(
            parts.texts[i],
            masses[i],
            sources[i],
            singles[2 * i] - base,
            singles[2 * i + 1] - base,
            None if false is None or i not in false else others[1 + i] - base,
            "" if false is None else model.tokenizer.decode(list(false.get(i, ()))),
        )
        for i in range(k)
    ]
    answer = model.tokenizer.decode(list(said)).strip()
    about = None
    if plain is not None and hint is not None:
        words = set(re.findall(r"\w{4,}", hint.casefold())) - set(re.findall(r"\w+", answer.casefold()))
        about = {
            "text": hint,
            "followed": answer.casefold() in hint.casefold(),
            "mentioned": any(word in " ".join(parts.texts).casefold() for word in words),
            "mass": hint_mass,
            "removed": others[-1] - base,
        }
    label = record.fields.get("label")
    return ReasoningResult(
        place=record.place,
        question=next(m["content"] for m in reversed(record.messages) if m["role"] == "user"),
        answer=answer,
        log_probability=base,
        steps=steps,
        mass=total,
        removed=values[1] - base,
        cut=values[2] - base,
        replaced=replaced,
        early=early,
        hint=about,
        verdict=_verdict(values[2] - base if replaced is None else replaced, about),
        label=label if isinstance(label, str) else "",
    )


def _without(text: str, part: str) -> str:
    """A text without a part of it; as it is if nothing else is there."""
    return " ".join(text.replace(part, " ").split()) if text.replace(part, "").strip() else text


def _verdict(change: float, hint: Mapping[str, Any] | None) -> str:
    """What halves the answer's probability: other steps, else no hint, else only the question is left."""
    if change < -_HALF:
        return "through the reasoning"
    if hint is not None and hint["removed"] < -_HALF:
        return f"through the hint, {'mentioned' if hint['mentioned'] else 'unmentioned'}"
    return "through the question alone"


def _log_probabilities(model: ReplacementModel, runs: Sequence[Run], said: Sequence[int]) -> list[float]:
    predicting = force_all(model, runs, [said] * len(runs))
    targets = torch.tensor([token for _ in runs for token in said])
    each = token_log_probabilities(model, torch.cat(predicting), targets)
    return [float(part.sum()) for part in each.split(len(said))]


def _with_steps(before: Sequence[int], parts: _Parts, other: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    """The text with other tokens in the place of some steps."""
    tokens, at = [], 0
    for i, (start, stop) in enumerate(parts.steps):
        tokens += [*before[at:start], *(other.get(i, before[start:stop]))]
        at = stop
    return (*tokens, *before[at:])


def _false_steps(
    model: ReplacementModel, parts: _Parts, entities: Sequence[Sequence[str]], seed: int
) -> dict[int, list[int]] | None:
    """The steps with each entity replaced by another of its group, the same one throughout; None where none is known."""
    question = model.tokenizer.decode(list(parts.conversation.unanswered().tokens))
    rng = random.Random(f"{seed} {question}")
    answer = model.tokenizer.decode(list(parts.conversation.tokens[slice(*parts.answer)])).strip()
    instead: dict[str, str] = {}
    text = " ".join(parts.texts)
    for group in entities:
        found = [name for name in group if re.search(rf"\b{re.escape(name)}\b", text)]
        # What the question names stays: a step about something else would not be a false one.
        found = [name for name in found if not re.search(rf"\b{re.escape(name)}\b", question)]
        free = [name for name in group if name not in found and name != answer and name not in question]
        instead |= dict(zip(found, rng.sample(free, min(len(found), len(free))), strict=False))
    if not instead:
        return None
    names = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(instead, key=len, reverse=True)))})\b")
    false = {}
    for i, step in enumerate(parts.texts):
        other = names.sub(lambda match: instead[match[0]], step)
        if other != step:
            false[i] = list(model.tokenizer(other, add_special_tokens=False, verbose=False)["input_ids"])
    return false or None


def _roles(model: ReplacementModel, parts: _Parts, hint: str | None) -> np.ndarray:
    """The role of each position: question, hint, steps or template, by number."""
    conversation = parts.conversation
    roles = np.zeros(len(conversation), dtype=np.int64)
    roles[list(conversation.template)] = _ROLES.index("template")
    if conversation.answer is not None:
        roles[slice(*conversation.answer)] = _ROLES.index("steps")
    if hint:
        wanted = tuple(model.tokenizer(hint, add_special_tokens=False, verbose=False)["input_ids"])
        for start in range(len(conversation) - len(wanted) + 1):
            if wanted and conversation.tokens[start : start + len(wanted)] == wanted:
                roles[start : start + len(wanted)] = _ROLES.index("hint")
    return roles


def _masses(
    model: ReplacementModel, parts: _Parts, roles: np.ndarray, max_feature_nodes: int
) -> tuple[list[float], list[dict[str, float]], float, float]:
    """The mass of each step and where it comes from, that of the hint, and that of all steps: means over answer tokens."""
    begin, end = parts.answer
    tokens = parts.conversation.tokens[:end]
    prompt = parts.conversation.unanswered().answered(tokens[parts.conversation.answer[0] :])  # type: ignore[index]
    targets = [Logit(tokens[place], place - 1) for place in range(begin, end)]
    graph = trace(model, prompt, targets, max_feature_nodes=max_feature_nodes, progress=False, note=lambda line: None)
    _, positions = places(graph)
    readers, sources = rows_of(graph.edges), graph.edges.indices
    k = len(parts.steps)
    masses, all_mass, hint_mass = np.zeros(k), 0.0, 0.0
    entering = np.zeros((k, len(_ROLES)))
    for number in range(len(targets)):
        flows = flow_to(graph, graph.layout.logit_index(number)).edges

        def through(inside: np.ndarray, flows: np.ndarray = flows) -> float:
            crossing = inside[positions[sources]] & ~inside[positions[readers]]
            return float(flows[crossing].sum())

        for i, (start, stop) in enumerate(parts.steps):
            inside = np.zeros(len(tokens), dtype=np.bool_)
            inside[start:stop] = True
            masses[i] += through(inside)
            leaving = inside[positions[readers]] & (positions[sources] < start)
            entering[i] += np.bincount(
                roles[positions[sources[leaving]]], weights=flows[leaving], minlength=len(_ROLES)
            )
        whole = np.zeros(len(tokens), dtype=np.bool_)
        whole[parts.steps[0][0] : parts.steps[-1][1]] = True
        all_mass += through(whole)
        hint_mass += through(roles[: len(tokens)] == _ROLES.index("hint"))
    n = len(targets)
    shares = [
        {role: float(value / row.sum()) if row.sum() else 0.0 for role, value in zip(_ROLES, row, strict=True)}
        for row in entering
    ]
    return (masses / n).tolist(), shares, hint_mass / n, all_mass / n
