"""What a wrapper does to refusals: which features it silences, which it adds, and whether undoing that brings refusal back.

Pairs hold the same request, plain and wrapped; those count whose plain request is refused and whose wrapped one is not. They
are split into a discovery and a held-out part. On the first, features are ranked by the change of the margin that the graphs
of both runs predict (`rankings.py`, plain against wrapped), at the positions where the template closes the prompt. Of those
that count for refusal, some **fall silent**: less active under the wrapper, where their activation would raise the margin.
Others **push**: more active under it, and lower it. On held-out pairs, in the wrapped run,

- the silent ones are put back: set to their activation in the pair's plain run;
- the pushing ones are taken out: set to that of the plain run too, which is zero where the wrapper alone switches them on;
- both together;

each against as many features at random, treated alike.

Letters: k features.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import ReplacementModel, weight_fingerprints
from crosstrace.replacement_model.conversations import Record
from crosstrace.replacement_model.interventions.edits import Edits
from crosstrace.tracer.cards.naming import names_by_own_cards
from crosstrace.tracer.chat.asked import ANSWER_TOKENS, Asked, Judge, Outcome, closing
from crosstrace.tracer.chat.ledger import Ledger
from crosstrace.tracer.chat.passes import Run, in_batches
from crosstrace.tracer.chat.prefixes import DEFAULT, Prefixes, prefix_tokens
from crosstrace.tracer.chat.rankings import (
    Feature,
    Place,
    Rankings,
    kept_effects,
    margin_graph,
    mean_activations,
    rank,
)
from crosstrace.tracer.chat.refusal import COUNTS, GRAPHS, MAX_FEATURE_NODES
from crosstrace.tracer.chat.statistics import Mean, mean_of

GROUPS = ("silent", "pushing", "both")
_ENOUGH = 0.8
_FED = 3


@dataclass(frozen=True)
class Restored:
    """What undoing a part of the wrapper does to held-out wrapped requests.

    Attributes:
        group: `silent`, `pushing` or `both`.
        count: k, for each of the two.
        refused: Share that is refused again.
        random: The same with as many features at random.
        margin: Mean margin, in nats.
    """

    group: str
    count: int
    refused: Mean
    random: Mean
    margin: Mean


@dataclass(frozen=True)
class WrapperFeature:
    """A feature that the wrapper silences or switches on.

    Attributes:
        feature: As `L3/417`.
        label: What it is called, or "".
        group: `silent` or `pushing`.
        score: The change of the margin that the graphs predict, in nats.
        plain: Its mean activation at the closing positions of plain requests.
        wrapped: The same of wrapped ones.
        through: What it feeds on its way to the margin in the first wrapped graph, strongest first.
    """

    feature: str
    label: str
    group: str
    score: float
    plain: float
    wrapped: float
    through: Sequence[str]


@dataclass(frozen=True)
class JailbreakReport:
    """What was found.

    Attributes:
        first_line: How often refusal returns.
        model: The model.
        transcoders: Its transcoders.
        settings: What reproduces the report.
        counts: Pairs by part, and those left out.
        margins: Mean margin of held-out plain and wrapped requests as they are.
        features: Silent and pushing features, by what they change.
        restored: On held-out pairs.
        left_out: Pairs whose plain request is not refused, or whose wrapped one is.
    """

    first_line: str
    model: str
    transcoders: str
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    margins: Mapping[str, Mean]
    features: Sequence[WrapperFeature]
    restored: Sequence[Restored]
    left_out: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as its JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Jailbreak:
    """A report, and the margin's graphs of one held-out pair.

    Attributes:
        report: The report.
        plain: The graph of the plain request.
        wrapped: That of the wrapped one.
    """

    report: JailbreakReport
    plain: AttributionGraph
    wrapped: AttributionGraph


@dataclass(frozen=True)
class _Pair:
    plain: Asked
    wrapped: Asked
    own: Mapping[Place, float]
    """Activations of the plain run at its closing positions."""


def jailbreak(
    model: ReplacementModel,
    plain: Sequence[Record],
    wrapped: Sequence[Record],
    prefixes: Prefixes = DEFAULT,
    *,
    counts: Sequence[int] = COUNTS,
    graphs: int = GRAPHS,
    max_feature_nodes: int = MAX_FEATURE_NODES,
    answer_tokens: int = ANSWER_TOKENS,
    seed: int = 0,
    keep: Path | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> Jailbreak:
    """Find what a wrapper does to refusals, and undo it on pairs that it was not found in.

    Args:
        model: The replacement model, with a chat template.
        plain: Requests that are refused.
        wrapped: The same requests behind the wrapper, in the same order.
        prefixes: How answers of either kind begin.
        counts: How many features of each group to undo, ascending.
        graphs: How many discovery pairs are traced.
        max_feature_nodes: How many features of a graph get a row.
        answer_tokens: The most tokens of an answer.
        seed: Of the split, the random features, and the bootstrap.
        keep: A file that keeps what is found, deleted by the caller once the report is safe.
        resume: Continue from it.
        progress: Called with what is done, how many steps of it, and of how many.
        note: Called with one line for each thing that is probably not meant.

    Raises:
        ValueError: The files are not of the same length, fewer than four pairs count, or a conversation cannot be written.
    """
    if len(plain) != len(wrapped):
        raise ValueError(f"{len(plain)} plain and {len(wrapped)} wrapped conversations: they are paired in order")
    counts = sorted(set(counts))
    if not counts or counts[0] < 1:
        raise ValueError("counts must be 1 or more")
    tokens = prefix_tokens(prefixes, model.tokenizer)
    judge = Judge(model, prefixes, tokens, answer_tokens)
    settings = {
        "prefixes": asdict(prefixes),
        "counts": counts,
        "graphs": graphs,
        "max_feature_nodes": max_feature_nodes,
        "answer_tokens": answer_tokens,
        "seed": seed,
    }
    messages = [[list(map(dict, one.messages)) for one in records] for records in (plain, wrapped)]
    identity = {**settings, "model": model.name, "weights": weight_fingerprints(model), "pairs": messages}
    ledger = Ledger(keep, identity, resume)
    progress("asking", 0, 2 * len(plain))
    asked = judge.ask([*plain, *wrapped])
    progress("asking", 2 * len(plain), 2 * len(plain))
    couples = list(zip(asked[: len(plain)], asked[len(plain) :], strict=True))
    kept = [couple for couple in couples if couple[0].kind == "refused" and couple[1].kind != "refused"]
    left_out = [couple for couple in couples if couple not in kept]
    if len(kept) < 4:
        raise ValueError(
            f"of {len(couples)} pairs {len(kept)} are refused plain and not refused wrapped; four are needed. The first plain "
            f"answer is {couples[0][0].answer!r}, the first wrapped one {couples[0][1].answer!r}"
        )
    if left_out:
        note(
            f"{len(left_out)} of {len(couples)} pairs are left out: the plain request is complied with, or the wrapped refused"
        )
    n_closing = min(closing(one.conversation) for couple in kept for one in couple)
    pairs = _with_activations(model, kept, n_closing)
    order = random.Random(f"pairs {seed}").sample(range(len(pairs)), len(pairs))
    half = (len(pairs) + 1) // 2
    discovery, held_out = ([pairs[i] for i in sorted(part)] for part in (order[:half], order[half:]))
    traced = [one for pair in discovery[:graphs] for one in (pair.plain, pair.wrapped)]
    effects = kept_effects(model, traced, tokens, n_closing, max_feature_nodes, ledger, progress)
    rankings = rank(
        mean_activations(model, [pair.plain for pair in discovery], n_closing),
        mean_activations(model, [pair.wrapped for pair in discovery], n_closing),
        effects,
        n_closing,
        seed,
    )
    groups = _groups(rankings)
    n_runs, done = len(counts) * (2 * len(GROUPS) + 1), 0

    def run(name: str, part: Sequence[_Pair], features: Sequence[Feature]) -> list[Outcome]:
        nonlocal done
        edits = [_undone(pair, features, rankings) for pair in part]
        wrapped_runs = [pair.wrapped for pair in part]
        outcomes = ledger.step(name, lambda: [asdict(one) for one in judge.under(wrapped_runs, edits)])
        done += 1
        progress("intervening", done, n_runs)
        return [Outcome(**one) for one in outcomes]

    def chosen(group: str, count: int) -> list[Feature]:
        names = ("silent", "pushing") if group == "both" else (group,)
        return [feature for name in names for feature in groups[name][:count]]

    shares = [
        sum(one.kind == "refused" for one in run(f"discovery {count}", discovery, chosen("both", count)))
        / len(discovery)
        for count in counts
    ]
    named = next(
        (count for count, share in zip(counts, shares, strict=True) if share >= _ENOUGH),
        counts[max(range(len(counts)), key=lambda i: (shares[i], -i))],
    )
    restored = []
    for group in GROUPS:
        for count in counts:
            features = chosen(group, count)
            back = run(f"{group} {count}", held_out, features)
            others = run(f"{group} {count} at random", held_out, rankings.by["random"][: len(features)])
            restored.append(
                Restored(
                    group,
                    count,
                    mean_of([one.kind == "refused" for one in back], seed),
                    mean_of([one.kind == "refused" for one in others], seed),
                    mean_of([one.margin for one in back], seed),
                )
            )
    ledger.keep()
    pair = held_out[0]
    plain_graph, wrapped_graph = (
        margin_graph(model, one, tokens, max_feature_nodes) for one in (pair.plain, pair.wrapped)
    )
    described = _features(model, rankings, groups, named, wrapped_graph)
    at = {one.group: one for one in restored if one.count == named}
    report = JailbreakReport(
        first_line=_first_line({name: min(named, len(found)) for name, found in groups.items()}, at),
        model=model.name,
        transcoders=model.transcoders.name,
        settings={**settings, "named": named, "closing_positions": n_closing},
        counts={"discovery": len(discovery), "held_out": len(held_out), "left_out": len(left_out)},
        margins={
            "plain": mean_of([pair.plain.margin for pair in held_out], seed),
            "wrapped": mean_of([pair.wrapped.margin for pair in held_out], seed),
        },
        features=described,
        restored=restored,
        left_out=[
            {"plain": one.text, "plain_is": one.kind, "wrapped": other.text, "wrapped_is": other.kind}
            for one, other in left_out
        ],
    )
    return Jailbreak(report, plain_graph, wrapped_graph)


def _first_line(counts: Mapping[str, int], at: Mapping[str, Restored]) -> str:
    shares = {group: f"{one.refused.value:.0%}" for group, one in at.items()}
    return (
        f"putting back {counts['silent']} silent features and taking out {counts['pushing']} pushing ones, {shares['both']} of "
        f"held-out wrapped requests are refused again ({shares['silent']} by the first alone, {shares['pushing']} by the "
        f"second alone, {at['both'].random.value:.0%} with as many at random)"
    )


def _with_activations(model: ReplacementModel, couples: Sequence[tuple[Asked, Asked]], n_closing: int) -> list[_Pair]:
    own: list[dict[Place, float]] = [{} for _ in couples]
    runs = [Run(plain.conversation.tokens) for plain, _ in couples]
    for which, reading in in_batches(model, runs, want_activations=True):
        for i, active in zip(which, reading.activations, strict=True):
            length = len(couples[i][0].conversation)
            near = active.positions >= length - n_closing
            places = zip(
                active.layers[near].tolist(),
                (active.positions[near] - length).tolist(),
                active.features[near].tolist(),
                strict=True,
            )
            own[i] = dict(zip(places, active.values[near].tolist(), strict=True))
    return [_Pair(plain, wrapped, values) for (plain, wrapped), values in zip(couples, own, strict=True)]


def _groups(rankings: Rankings) -> dict[str, list[Feature]]:
    """The features that count for refusal, in their order: those that are less active under the wrapper, and the others."""
    groups: dict[str, list[Feature]] = {"silent": [], "pushing": []}
    for feature in rankings.by["influence"]:
        if rankings.scores["influence"][feature] > 0:
            fallen = _mean(rankings, feature, rankings.refused) > _mean(rankings, feature, rankings.complied)
            groups["silent" if fallen else "pushing"].append(feature)
    return groups


def _mean(rankings: Rankings, feature: Feature, values: Mapping[Place, float]) -> float:
    return sum(values.get(place, 0.0) for place in rankings.places(feature)) / rankings.n_closing


def _undone(pair: _Pair, features: Sequence[Feature], rankings: Rankings) -> Edits:
    """Features of the wrapped run as they are in the plain one."""
    length = len(pair.wrapped.conversation)
    return Edits(
        features={
            (layer, length + place, feature): (0.0, pair.own.get((layer, place, feature), 0.0))
            for key in features
            for layer, place, feature in rankings.places(key)
        }
    )


def _features(
    model: ReplacementModel,
    rankings: Rankings,
    groups: Mapping[str, Sequence[Feature]],
    count: int,
    graph: AttributionGraph,
) -> list[WrapperFeature]:
    keys = [(group, feature) for group in ("silent", "pushing") for feature in groups[group][:count]]
    names = names_by_own_cards(model).of([feature for _, feature in keys])
    return [
        WrapperFeature(
            f"L{feature[0]}/{feature[1]}",
            names.get(feature, ""),
            group,
            rankings.scores["influence"][feature],
            _mean(rankings, feature, rankings.refused),
            _mean(rankings, feature, rankings.complied),
            _through(graph, feature),
        )
        for group, feature in keys
    ]


def _through(graph: AttributionGraph, feature: Feature) -> list[str]:
    """What a feature feeds most strongly in a graph: its edges, as shares of their targets' inputs."""
    nodes = [node for node in range(graph.layout.n_features) if graph.feature_key(node) == feature]
    if not nodes:
        return []
    columns = graph.edges.tocsc()[:, nodes].tocoo()
    totals = abs(graph.edges).sum(axis=1)
    found: dict[int, float] = defaultdict(float)
    for target, weight in zip(columns.row.tolist(), columns.data.tolist(), strict=True):
        found[target] += abs(weight) / float(totals[target])
    strongest = sorted(found, key=lambda target: -found[target])[:_FED]
    return [graph.describe(target) for target in strongest]
