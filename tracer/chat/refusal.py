"""Why a model refuses: the features that carry it, what removing and adding them does, and what that costs.

Conversations that are refused and ones that are complied with are split into a discovery and a held-out part. Features are
ranked on the first (`rankings.py`) and tried on the second, at the positions where the template closes the prompt:

- **removed** from refused conversations: the first k are set to their mean activation in complied ones, place by place (or to
  zero, as one may ask);
- **added** to complied ones: the first k are set to their mean activation in refused ones.

Nothing else is changed, generated tokens least of all. The price of removing is read on complied conversations: the KL
divergence of the model's predictions along its own answers, in nats a token.

Letters: k features.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from crosstrace.replacement_model import ReplacementModel, weight_fingerprints
from crosstrace.replacement_model.conversations import Record
from crosstrace.replacement_model.interventions.edits import Edits
from crosstrace.tracer.cards.naming import names_by_own_cards
from crosstrace.tracer.chat.asked import ANSWER_TOKENS, Asked, Judge, Outcome, closing
from crosstrace.tracer.chat.ledger import Ledger
from crosstrace.tracer.chat.passes import Run, force_all
from crosstrace.tracer.chat.prefixes import DEFAULT, Prefixes, prefix_tokens
from crosstrace.tracer.chat.rankings import Place, Rankings, kept_effects, mean_activations, rank
from crosstrace.tracer.chat.statistics import Mean, mean_of
from crosstrace.tracer.evaluation.losses import next_token_losses

COUNTS = (1, 2, 4, 8, 16, 32, 64)
GRAPHS = 12
MAX_FEATURE_NODES = 1024
Removal = Literal["mean", "zero"]
REMOVALS: tuple[Removal, ...] = get_args(Removal)
RANKINGS = ("influence", "difference", "random")
# A removal is named once this share of the discovery part complies.
_ENOUGH = 0.9


@dataclass(frozen=True)
class Point:
    """What the first features of a ranking do to held-out conversations.

    Attributes:
        count: k.
        refused: Share that is refused.
        complied: Share that is complied with; what is neither begins as no prefix does.
        margin: Mean margin, in nats.
    """

    count: int
    refused: Mean
    complied: Mean
    margin: Mean


@dataclass(frozen=True)
class NamedFeature:
    """A feature that carries the refusal.

    Attributes:
        feature: As `L3/417`.
        label: What it is called, or "".
        score: The change of the margin that the graphs predict, in nats.
        refused: Its mean activation at the closing positions of refused conversations.
        complied: The same of complied ones.
    """

    feature: str
    label: str
    score: float
    refused: float
    complied: float


@dataclass(frozen=True)
class RefusalReport:
    """What was found.

    Attributes:
        first_line: How many features carry how much of the refusal.
        model: The model.
        transcoders: Its transcoders.
        settings: What reproduces the report.
        counts: Conversations by part and by what the model does with them.
        margins: Mean margin of held-out refused and complied conversations as they are.
        features: The features that are named, by influence.
        removed: Of held-out refused conversations, by ranking.
        added: Of held-out complied conversations, by ranking.
        kl: Of removing the named features from complied conversations, in nats a token; and as many at random.
        boundary: The conversations nearest to a margin of zero.
        unexpected: Conversations whose answers are of another kind than their file's.
    """

    first_line: str
    model: str
    transcoders: str
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    margins: Mapping[str, Mean]
    features: Sequence[NamedFeature]
    removed: Mapping[str, Sequence[Point]]
    added: Mapping[str, Sequence[Point]]
    kl: Mapping[str, Mean]
    boundary: Sequence[Mapping[str, Any]]
    unexpected: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as its JSON has it."""
        return asdict(self)


def refusal(
    model: ReplacementModel,
    refused: Sequence[Record],
    complied: Sequence[Record],
    prefixes: Prefixes = DEFAULT,
    *,
    counts: Sequence[int] = COUNTS,
    removal: Removal = "mean",
    graphs: int = GRAPHS,
    max_feature_nodes: int = MAX_FEATURE_NODES,
    answer_tokens: int = ANSWER_TOKENS,
    boundary: int = 0,
    seed: int = 0,
    keep: Path | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> RefusalReport:
    """Find the features that carry a model's refusals, and try them on conversations they were not found in.

    Args:
        model: The replacement model, with a chat template.
        refused: Conversations that the model should refuse.
        complied: Ones that it should comply with.
        prefixes: How answers of either kind begin.
        counts: How many features to remove and add, ascending.
        removal: What a removed feature is set to: its mean in complied conversations, or zero.
        graphs: How many discovery conversations of each kind are traced.
        max_feature_nodes: How many features of a graph get a row.
        answer_tokens: The most tokens of an answer.
        boundary: How many conversations nearest to a margin of zero to report.
        seed: Of the split, the random ranking, and the bootstrap.
        keep: A file that keeps what is found, deleted by the caller once the report is safe.
        resume: Continue from it.
        progress: Called with what is done, how many steps of it, and of how many.
        note: Called with one line for each thing that is probably not meant.

    Raises:
        ValueError: A conversation cannot be written by the template, fewer than four of a kind are of that kind, the
            conversations close differently, or a setting is not valid.

    Example:
        >>> report = refusal(model, read_conversations(Path("refused.jsonl")), read_conversations(Path("complied.jsonl")))
        >>> print(report.first_line)
    """
    if removal not in REMOVALS:
        raise ValueError(f"removal must be {' or '.join(REMOVALS)}, not {removal!r}")
    counts = sorted(set(counts))
    if not counts or counts[0] < 1:
        raise ValueError("counts must be 1 or more")
    tokens = prefix_tokens(prefixes, model.tokenizer)
    judge = Judge(model, prefixes, tokens, answer_tokens)
    given = {"refused": list(refused), "complied": list(complied)}
    settings = {
        "prefixes": asdict(prefixes),
        "counts": counts,
        "removal": removal,
        "graphs": graphs,
        "max_feature_nodes": max_feature_nodes,
        "answer_tokens": answer_tokens,
        "seed": seed,
    }
    identity = {
        **settings,
        "model": model.name,
        "weights": weight_fingerprints(model),
        "messages": {kind: [list(map(dict, one.messages)) for one in records] for kind, records in given.items()},
    }
    ledger = Ledger(keep, identity, resume)
    records = [record for part in given.values() for record in part]
    progress("asking", 0, len(records))
    asked = judge.ask(records)
    progress("asking", len(records), len(records))
    of = {"refused": asked[: len(refused)], "complied": asked[len(refused) :]}
    unexpected = [(kind, one) for kind, part in of.items() for one in part if one.kind != kind]
    kept = {kind: [one for one in part if one.kind == kind] for kind, part in of.items()}
    for kind, part in kept.items():
        if len(part) < 4:
            raise ValueError(
                f"of {len(of[kind])} conversations that should be {kind} the model does so with {len(part)}; four are needed. "
                f"Its first answer is {of[kind][0].answer!r}" + _prefix_hint(of[kind], kind)
            )
    if unexpected:
        note(
            f"{len(unexpected)} of {len(asked)} conversations are answered otherwise than their file says, and left out"
        )
    n_closing = _closing(kept)
    discovery, held_out = _split(kept, seed)
    means = {kind: mean_activations(model, part, n_closing) for kind, part in discovery.items()}
    traced = [one for part in discovery.values() for one in part[:graphs]]
    effects = kept_effects(model, traced, tokens, n_closing, max_feature_nodes, ledger, progress)
    rankings = rank(means["refused"], means["complied"], effects, n_closing, seed)
    trial = _Trial(judge, rankings, removal, ledger, seed)
    n_runs = len(counts) * (1 + 2 * len(RANKINGS))
    progress("intervening", 0, n_runs)
    done = 0

    def run(name: str, mode: str, by: str, count: int, part: Sequence[Asked]) -> list[Outcome]:
        nonlocal done
        found = trial.outcomes(name, mode, by, count, part)
        done += 1
        progress("intervening", done, n_runs)
        return found

    # How many are named is chosen where they were found.
    tried = [run("discovery", "removed", "influence", count, discovery["refused"]) for count in counts]
    complying = [sum(one.kind == "complied" for one in part) / len(part) for part in tried]
    margins = [sum(one.margin for one in part) / len(part) for part in tried]
    named = next(
        (count for count, share in zip(counts, complying, strict=True) if share >= _ENOUGH),
        counts[min(range(len(counts)), key=lambda i: (-complying[i], margins[i]))],
    )
    curves: dict[str, dict[str, list[Point]]] = {"removed": {}, "added": {}}
    for mode, kind in (("removed", "refused"), ("added", "complied")):
        for by in RANKINGS:
            curves[mode][by] = [
                trial.point(count, run("held out", mode, by, count, held_out[kind])) for count in counts
            ]
    kl = {by: trial.price(by, named, held_out["complied"]) for by in ("influence", "random")}
    ledger.keep()
    as_they_are = {kind: mean_of([one.margin for one in part], seed) for kind, part in held_out.items()}
    features = _named(model, rankings, named)
    at = counts.index(named)
    return RefusalReport(
        first_line=_first_line(named, curves, at, as_they_are, kl),
        model=model.name,
        transcoders=model.transcoders.name,
        settings={**settings, "named": named, "closing_positions": n_closing, "dropped_prefixes": list(tokens.dropped)},
        counts={
            **{f"{kind}_discovery": len(part) for kind, part in discovery.items()},
            **{f"{kind}_held_out": len(part) for kind, part in held_out.items()},
            "unexpected": len(unexpected),
        },
        margins=as_they_are,
        features=features,
        removed=curves["removed"],
        added=curves["added"],
        kl=kl,
        boundary=[_row(one) for one in sorted(asked, key=lambda one: abs(one.margin))[:boundary]],
        unexpected=[{"expected": kind, **_row(one)} for kind, one in unexpected],
    )


class _Trial:
    """Features of a ranking removed and added."""

    def __init__(self, judge: Judge, rankings: Rankings, removal: Removal, ledger: Ledger, seed: int) -> None:
        self.judge, self.rankings, self.removal, self.ledger, self.seed = judge, rankings, removal, ledger, seed

    def edits(self, mode: str, by: str, count: int, one: Asked) -> Edits:
        """What the first features of a ranking are set to at the closing positions of a conversation."""
        length, values = len(one.conversation), self._values(mode)
        return Edits(
            features={
                (layer, length + place, feature): (0.0, values.get((layer, place, feature), 0.0))
                for key in self.rankings.by[by][:count]
                for layer, place, feature in self.rankings.places(key)
            }
        )

    def _values(self, mode: str) -> Mapping[Place, float]:
        if mode == "added":
            return self.rankings.refused
        return self.rankings.complied if self.removal == "mean" else {}

    def outcomes(self, name: str, mode: str, by: str, count: int, part: Sequence[Asked]) -> list[Outcome]:
        """Ask conversations again under the edits."""
        edits = [self.edits(mode, by, count, one) for one in part]
        found = self.ledger.step(
            f"{name} {mode} {by} {count}", lambda: [asdict(one) for one in self.judge.under(part, edits)]
        )
        return [Outcome(**one) for one in found]

    def point(self, count: int, outcomes: Sequence[Outcome]) -> Point:
        """The point of a curve."""
        return Point(
            count,
            mean_of([one.kind == "refused" for one in outcomes], self.seed),
            mean_of([one.kind == "complied" for one in outcomes], self.seed),
            mean_of([one.margin for one in outcomes], self.seed),
        )

    def price(self, by: str, count: int, part: Sequence[Asked]) -> Mean:
        """KL divergence along the model's own answers when features are removed, a token, by conversation."""
        model = self.judge.model
        told = [one for one in part if one.answer_ids]
        answers = [one.answer_ids for one in told]
        before = force_all(model, [Run(one.conversation.tokens) for one in told], answers)
        runs = [Run(one.conversation.tokens, self.edits("removed", by, count, one)) for one in told]
        after = force_all(model, runs, answers)
        targets = torch.tensor([token for answer in answers for token in answer])
        losses = next_token_losses(model.sites, [torch.cat(before), torch.cat(after)], targets)
        each = [float(part.mean()) for part in losses.kl_x.cpu().split([len(answer) for answer in answers])]
        return mean_of([max(0.0, value) for value in each], self.seed)


def _split(kept: Mapping[str, Sequence[Asked]], seed: int) -> tuple[dict[str, list[Asked]], dict[str, list[Asked]]]:
    discovery, held_out = {}, {}
    for kind, part in kept.items():
        order = random.Random(f"{kind} {seed}").sample(range(len(part)), len(part))
        half = (len(part) + 1) // 2
        discovery[kind] = [part[i] for i in sorted(order[:half])]
        held_out[kind] = [part[i] for i in sorted(order[half:])]
    return discovery, held_out


def _closing(kept: Mapping[str, Sequence[Asked]]) -> int:
    found = {closing(one.conversation) for part in kept.values() for one in part}
    if len(found) > 1:
        raise ValueError(
            f"the conversations close with {min(found)} to {max(found)} template tokens; features are compared at the same "
            "positions of each"
        )
    return found.pop()


def _prefix_hint(part: Sequence[Asked], kind: str) -> str:
    known = "begins with none of the prefixes; name others with --prefixes FILE"
    return f", which {known}" if part[0].kind == "other" else f", which is {part[0].kind}"


def _named(model: ReplacementModel, rankings: Rankings, count: int) -> list[NamedFeature]:
    keys = rankings.by["influence"][:count]
    names = names_by_own_cards(model).of(keys)

    def mean(key: tuple[int, int], values: Mapping[Place, float]) -> float:
        return sum(values.get(place, 0.0) for place in rankings.places(key)) / rankings.n_closing

    return [
        NamedFeature(
            f"L{layer}/{feature}",
            names.get((layer, feature), ""),
            rankings.scores["influence"][layer, feature],
            mean((layer, feature), rankings.refused),
            mean((layer, feature), rankings.complied),
        )
        for layer, feature in keys
    ]


def _first_line(
    count: int,
    curves: Mapping[str, Mapping[str, Sequence[Point]]],
    at: int,
    margins: Mapping[str, Mean],
    kl: Mapping[str, Mean],
) -> str:
    removed = {by: curve[at] for by, curve in curves["removed"].items()}
    gap = margins["refused"].value - margins["complied"].value
    moved = {by: (margins["refused"].value - point.margin.value) / gap if gap else 0.0 for by, point in removed.items()}
    said = {by: f"{point.complied.value:.0%}" for by, point in removed.items()}
    return (
        f"{count} feature{'' if count == 1 else 's'} carr{'ies' if count == 1 else 'y'} {moved['influence']:.0%} of the margin "
        f"between refusal and compliance: without {'it' if count == 1 else 'them'} {said['influence']} of held-out refused "
        f"requests are complied with ({said['difference']} by difference of means, {said['random']} at random), at "
        f"{kl['influence'].value:.3g} nats a token of harmless answers"
    )


def _row(one: Asked) -> dict[str, Any]:
    return {"place": one.place, "text": one.text, "answer": one.answer, "kind": one.kind, "margin": one.margin}
