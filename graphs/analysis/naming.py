"""Names of groups of features: by what they fire on in early layers, by what they promote in later ones.

The members vote, each with its influence: in the last two thirds of the layers for the tokens that they promote (from
their cards where these say that the tokens mean something, else from a guess), before that, or where too few of them
promote anything, for the tokens that they fire on. Labels that were given come before both.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from crosstrace.graphs.analysis.similarity import Cards, promoted
from crosstrace.graphs.cards.labels import GUESS_MARK, MARK, OWN_TOKEN, is_automatic, is_late, is_weak_guess
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.text import short

_TOKENS = 3
_SCORE = re.compile(r" [01]\.\d\d$")  # of a label that was tested
_LONGEST = 16
_ENOUGH = 1 / 3  # of the influence of a group must vote
_MOSTLY_OWN = 0.6  # of the votes: then a group means its own token


def group_name(graph: AttributionGraph, nodes: Sequence[int], weights: Mapping[int, float], cards: Cards | None) -> str:
    """Return what to call a group of features; "" where nothing is known of them.

    Args:
        graph: Its graph.
        nodes: Its features, at one position.
        weights: The influence of each.
        cards: For (layer, feature), what is known of it.

    Example:
        >>> group_name(graph, [14, 17, 21], {14: 0.1, 17: 0.1, 21: 0.05}, cards)
        '→ Stuttgart, Edinburgh, Mumbai'
    """
    total = sum(weights[node] for node in nodes) or 1.0
    labels = _votes((label, weights[node]) for node in nodes if (label := _given(graph, node)))
    if sum(labels.values()) >= total / 2:
        return short(_ranked(labels)[0], 40)
    layers = [graph.feature_of(node)[0] for node in nodes]
    found = {node: card for node in nodes if (card := (cards or {}).get(graph.feature_key(node)))}
    names = _promoted_name(graph, nodes, weights, found, total), _fires_on_name(graph, nodes, weights, found, total)
    late = is_late(sum(layers) / len(layers), graph.n_layers)
    return names[0] or names[1] if late else names[1]


def _given(graph: AttributionGraph, node: int) -> str:
    label = graph.feature_labels[graph.layout.feature_of(node)].strip()
    return "" if is_automatic(label) else label


def _promoted_name(
    graph: AttributionGraph, nodes: Sequence[int], weights: Mapping[int, float], cards: Mapping[int, Any], total: float
) -> str:
    votes: list[tuple[str, float]] = []
    voters = 0.0
    for node in nodes:
        tokens = [short(token, _LONGEST) for token in promoted(cards[node])] if node in cards else _guessed(graph, node)
        votes += [(token, weights[node] / (1 + rank)) for rank, token in enumerate(tokens[:5])]
        voters += weights[node] if tokens else 0.0
    if voters < _ENOUGH * total:
        return ""
    return f"{GUESS_MARK} {', '.join(_ranked(_votes(votes))[:_TOKENS])}"


def _guessed(graph: AttributionGraph, node: int) -> list[str]:
    name = graph.name_of(node)
    if not is_automatic(name) or is_weak_guess(name) or GUESS_MARK not in name:
        return []
    promoted_part = _SCORE.sub("", name.partition(GUESS_MARK)[2].strip())
    return [token for token in promoted_part.split(", ") if token]


def _fires_on_name(
    graph: AttributionGraph, nodes: Sequence[int], weights: Mapping[int, float], cards: Mapping[int, Any], total: float
) -> str:
    votes: list[tuple[str, float]] = []
    voters = 0.0
    for node in nodes:
        if peaks := _peaks(cards.get(node, {})):
            votes += [(short(peak, _LONGEST), weights[node] / len(peaks)) for peak in peaks]
            voters += weights[node]
    if voters < _ENOUGH * total:
        return ""
    ranked = _votes(votes)
    first, *others = _ranked(ranked)
    own = graph.token_name(graph.feature_of(nodes[0])[1], _LONGEST)
    if first.casefold() == own.casefold() and ranked[first] >= _MOSTLY_OWN * voters:
        return f"{OWN_TOKEN}{own}"
    shown = [first, *(word for word in others if ranked[word] >= ranked[first] / 3)][:_TOKENS]
    return f"{MARK} {', '.join(shown)}"


def _peaks(card: Mapping[str, Any]) -> list[str]:
    """The token at the peak of each top context."""
    found = []
    for context in card.get("contexts") or ():
        activations = list(context["activations"])
        found.append(str(context["tokens"][max(range(len(activations)), key=activations.__getitem__)]))
    return found


def _votes(given: Any) -> dict[str, float]:
    """Sums by what is voted for; tokens that differ in case and blanks alone count as one, spelt as first given."""
    spelt: dict[str, str] = {}
    sums: dict[str, float] = defaultdict(float)
    for words, weight in given:
        sums[spelt.setdefault(words.strip().casefold(), words)] += weight
    return sums


def _ranked(votes: Mapping[str, float]) -> list[str]:
    return sorted(votes, key=lambda words: (-votes[words], words))
