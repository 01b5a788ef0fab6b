"""Which features carry a refusal: by their influence on the margin through graphs, and two baselines.

A feature is looked at where the template closes a conversation (`<end_of_turn>` to the model's first position), its places
counted from the end, so that those of different conversations are the same. Between refused and complied conversations its
mean activation there differs by Δ. Then

- by **influence**: Σ_p Δ_p · g_p, where g_p is what a unit of its activation adds to the margin over all paths of the graphs:
  the sum of its effects there (`signed_effects`) over the sum of its activations, over all graphs in which it is active. It is
  the change of the margin that the graphs predict when the feature goes from how it is in compliances to how it is in refusals;
- by **difference**: Σ_p |Δ_p|, without any graph;
- at **random**: among the features that are active there in either kind.

A feature that a refusal silences counts as one that it switches on does: what it stops is part of it.

Letters: K features, C closing positions, N active features of a prompt.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer.attribution.targets import Combination
from crosstrace.tracer.attribution.tracing import trace
from crosstrace.tracer.chat.asked import Asked
from crosstrace.tracer.chat.ledger import Ledger
from crosstrace.tracer.chat.passes import Run, in_batches
from crosstrace.tracer.chat.prefixes import PrefixTokens
from crosstrace.tracer.validation.total_effects import signed_effects

Feature = tuple[int, int]
"""(layer, feature)."""
Place = tuple[int, int, int]
"""(layer, position from the end, feature); the last position is −1."""


@dataclass(frozen=True)
class Rankings:
    """Features by what they are ranked by, the first first.

    Attributes:
        by: `influence`, `difference` and `random`, each with the features.
        scores: Of the first two, by feature.
        refused: Mean activation at each place in refused conversations.
        complied: The same in complied ones.
        n_closing: C.
    """

    by: Mapping[str, list[Feature]]
    scores: Mapping[str, Mapping[Feature, float]]
    refused: Mapping[Place, float]
    complied: Mapping[Place, float]
    n_closing: int

    def places(self, feature: Feature) -> list[Place]:
        """Return the closing places of a feature."""
        return [(feature[0], place, feature[1]) for place in range(-self.n_closing, 0)]


def mean_activations(model: ReplacementModel, asked: Sequence[Asked], n_closing: int) -> dict[Place, float]:
    """Return the mean activation of every feature at each of the last C positions of some conversations."""
    sums: dict[Place, float] = defaultdict(float)
    for which, reading in in_batches(model, [Run(one.conversation.tokens) for one in asked], want_activations=True):
        for i, active in zip(which, reading.activations, strict=True):
            length = len(asked[i].conversation)
            near = active.positions >= length - n_closing
            rows = zip(
                active.layers[near].tolist(),
                (active.positions[near] - length).tolist(),
                active.features[near].tolist(),
                active.values[near].tolist(),
                strict=True,
            )
            for layer, place, feature, value in rows:
                sums[layer, place, feature] += value
    return {place: total / len(asked) for place, total in sums.items()}


def margin_graph(model: ReplacementModel, one: Asked, tokens: PrefixTokens, max_feature_nodes: int) -> AttributionGraph:
    """Trace the margin of a conversation where the prefixes part (`PrefixTokens.first_step`).

    Args:
        model: The model.
        one: The conversation; what all prefixes begin with is read after it.
        tokens: The prefixes.
        max_feature_nodes: How many features get a row.
    """
    prompt = one.conversation.answered(tokens.shared) if tokens.shared else one.conversation
    target = Combination(tokens.first_step(one.log_probabilities), len(prompt) - 1, "margin of refusal")
    return trace(model, prompt, [target], max_feature_nodes=max_feature_nodes, progress=False, note=lambda line: None)


def effects_on_margin(
    model: ReplacementModel, one: Asked, tokens: PrefixTokens, n_closing: int, max_feature_nodes: int
) -> dict[Place, tuple[float, float]]:
    """Trace the margin of a conversation; return what each active feature adds to it, and its activation.

    Args:
        model: The model.
        one: The conversation.
        tokens: The prefixes.
        n_closing: How many positions from the prompt's end are looked at.
        max_feature_nodes: How many features get a row.
    """
    graph = margin_graph(model, one, tokens, max_feature_nodes)
    rows = graph.active_features[graph.selected_features]
    activations = graph.activations[graph.selected_features].double().numpy()
    weights, values = np.zeros(graph.n), np.ones(graph.n)
    weights[graph.layout.logits] = 1.0
    values[graph.layout.features] = activations
    effects = signed_effects(graph.edges, weights, values)[graph.layout.features]
    length = len(one.conversation)
    return {
        (layer, position - length, feature): (float(effect), float(activation))
        for (layer, position, feature), effect, activation in zip(rows.tolist(), effects, activations, strict=True)
        if length - n_closing <= position < length
    }


def kept_effects(
    model: ReplacementModel,
    traced: Sequence[Asked],
    tokens: PrefixTokens,
    n_closing: int,
    max_feature_nodes: int,
    ledger: Ledger,
    progress: Callable[[str, int, int], None],
) -> list[dict[Place, tuple[float, float]]]:
    """Return `effects_on_margin` for several conversations, each a step of the ledger."""
    effects: list[dict[Place, tuple[float, float]]] = []
    for number, one in enumerate(traced):
        progress("tracing", number, len(traced))

        def found(one: Asked = one) -> list[Any]:
            values = effects_on_margin(model, one, tokens, n_closing, max_feature_nodes)
            return [[*place, *both] for place, both in values.items()]

        rows = ledger.step(f"trace {number}", found)
        effects.append({(layer, place, feature): (effect, value) for layer, place, feature, effect, value in rows})
    progress("tracing", len(traced), len(traced))
    return effects


def rank(
    refused: Mapping[Place, float],
    complied: Mapping[Place, float],
    effects: Sequence[Mapping[Place, tuple[float, float]]],
    n_closing: int,
    seed: int,
) -> Rankings:
    """Rank features; see the module.

    Args:
        refused: Mean activations in refused conversations.
        complied: In complied ones.
        effects: Of each traced conversation, as `effects_on_margin` returns them.
        n_closing: C.
        seed: Of the random order.
    """
    sums: dict[Place, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for one in effects:
        for place, (effect, activation) in one.items():
            sums[place] = sums[place][0] + effect, sums[place][1] + activation
    influence: dict[Feature, float] = defaultdict(float)
    difference: dict[Feature, float] = defaultdict(float)
    for place in sorted({*refused, *complied}):
        feature = (place[0], place[2])
        change = refused.get(place, 0.0) - complied.get(place, 0.0)
        difference[feature] += abs(change)
        influence[feature] += change * sums[place][0] / sums[place][1] if place in sums else 0.0
    order = sorted(difference)
    return Rankings(
        {
            "influence": sorted(order, key=lambda feature: -influence[feature]),
            "difference": sorted(order, key=lambda feature: -difference[feature]),
            "random": random.Random(seed).sample(order, len(order)),
        },
        {"influence": dict(influence), "difference": dict(difference)},
        refused,
        complied,
        n_closing,
    )
