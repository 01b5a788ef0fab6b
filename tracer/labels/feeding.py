"""What feeds features and what they feed, from the graphs at hand and from global weights beside the cards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from crosstrace.graphs import AttributionGraph, FeatureCards, prune, with_card_labels
from crosstrace.graphs.text import short

Key = tuple[int, int]
"""(layer, feature)."""
_MOST = 6


def features_of_graph(graph: AttributionGraph) -> list[Key]:
    """Return the features that pruning keeps in a graph, each once, in ascending order."""
    pruned = graph if graph.node_mask is not None else prune(graph)
    assert pruned.node_mask is not None
    kept = np.flatnonzero(pruned.node_mask[pruned.layout.features].numpy())
    return sorted({pruned.feature_key(int(node)) for node in kept})


class Feeding:
    """The names of what features are connected to."""

    def __init__(self, graphs: Sequence[AttributionGraph], cards: FeatureCards) -> None:
        """
        Args:
            graphs: Of the cards' transcoders.
            cards: The cards.
        """
        self._cards = cards
        self._inputs: dict[Key, dict[str, float]] = defaultdict(dict)
        self._outputs: dict[Key, dict[str, float]] = defaultdict(dict)
        for graph in graphs:
            self._take(with_card_labels(graph, cards))

    def _take(self, graph: AttributionGraph) -> None:
        pruned = graph if graph.node_mask is not None else prune(graph)
        assert pruned.node_mask is not None
        kept, layout = pruned.node_mask.numpy(), pruned.layout
        edges = pruned.edges.tocoo()
        for target, source, weight in zip(edges.row.tolist(), edges.col.tolist(), edges.data.tolist(), strict=True):
            if not (kept[target] and kept[source] and weight):
                continue
            for node, other, side in ((target, source, self._inputs), (source, target, self._outputs)):
                if node < layout.n_features:
                    name, known = short(pruned.describe(other), 60), side[pruned.feature_key(node)]
                    if abs(weight) > abs(known.get(name, 0.0)):
                        known[name] = weight

    def of(self, key: Key) -> tuple[list[str], list[str]]:
        """Return what feeds a feature and what it feeds, strongest first."""
        return self._side(key, self._inputs, "inputs"), self._side(key, self._outputs, "outputs")

    def _side(self, key: Key, found: dict[Key, dict[str, float]], side: str) -> list[str]:
        named = found.get(key, {})
        names = [name for name in sorted(named, key=lambda name: -abs(named[name])) if not name.startswith("error")]
        if key in self._cards:
            links = self._cards[key].get(side, [])
            names += [link["label"] for link in links if link["label"] and not link.get("interference")]
        return list(dict.fromkeys(names))[:_MOST]
