"""Supernodes that nobody chose: features of one position and a few neighbouring layers that seem to do one thing.

Ameisen et al. 2025, "Circuit Tracing", group features into supernodes by hand, by what they mean and how they connect;
here the same evidence is put into numbers (`similarity.py`) and clustered (average linkage, `scipy.cluster.hierarchy`).
A group never spans positions, and at most `most_layers(L)` layers: what happens at the subject and what happens at the end
of the prompt are two steps of a story, however alike the features are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crosstrace.graphs.analysis.naming import group_name
from crosstrace.graphs.analysis.pruning import prune
from crosstrace.graphs.analysis.similarity import Cards, Directions, similarity_of
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.sparse_rows import Floats

MIN_SIMILARITY = 0.5
# Distances between all pairs of a position are held at once: 2,000 features are 32 MB.
_MOST_FEATURES = 2000
_APART = 1e6  # the distance of what must not be in one group: no average with it is within the threshold


def most_layers(n_layers: int) -> int:
    """Return how many neighbouring layers a group may span: 3, or 4 of more than 12."""
    return 3 if n_layers <= 12 else 4


def suggest_supernodes(
    graph: AttributionGraph,
    cards: Cards | None = None,
    min_similarity: float = MIN_SIMILARITY,
    directions: Directions | None = None,
) -> list[tuple[str, list[int]]]:
    """Suggest groups of two or more of the features that pruning kept, most influential group first.

    The same graph always gives the same groups; a feature is in at most one, many are in none. A group is at one position
    and spans a few layers. Of more than 2,000 kept features only the 2,000 most influential are looked at.

    Args:
        graph: Pruned; a raw graph is first pruned with the default thresholds.
        cards: For (layer, feature), its card (`FeatureCards`, or mappings as `write_html` takes them), where known: the
            tokens that it promotes and the contexts in which it fires count.
        min_similarity: Average similarity, 0 to 1, at which groups stop growing; higher gives smaller groups.
        directions: For (layer, feature), what its decoder writes, as `crosstrace.tracer.decoder_directions` returns it.

    Returns:
        (name, nodes) pairs; names are unique, nodes are ascending numbers in the graph's node order.

    Raises:
        ValueError: `min_similarity` is outside 0..1, or the directions have different lengths.

    Example:
        >>> suggest_supernodes(prune(graph))
        [('Texas', [14, 17, 21]), ('say a capital', [33, 40])]
    """
    if not 0 <= min_similarity <= 1:
        raise ValueError(f"min_similarity must be between 0 and 1, not {min_similarity}")
    pruned = graph if graph.node_mask is not None else prune(graph)
    assert pruned.influence is not None
    influence = pruned.influence.numpy()
    features = np.array([node for node in pruned.kept_nodes() if node < pruned.layout.features.stop], dtype=np.int64)
    features = np.sort(features[np.argsort(influence[features], kind="stable")][:_MOST_FEATURES])
    positions = np.array([pruned.place_of(int(node))[1] for node in features], dtype=np.int64)
    groups = []
    for position in np.unique(positions):
        groups += _groups_at(pruned, features[positions == position], cards, min_similarity, directions)
    # Small entry share = early in the ranking: a group counts as much as its best member, then by size.
    groups.sort(key=lambda nodes: (min(influence[nodes]), -len(nodes), nodes))
    return name_groups(pruned, groups, {int(node): 1 - float(influence[node]) for node in features}, cards)


def name_groups(
    graph: AttributionGraph, groups: list[list[int]], weights: Mapping[int, float], cards: Cards | None
) -> list[tuple[str, list[int]]]:
    """Return groups with names of which no two are alike: where they would be, a feature's number tells them apart.

    Args:
        graph: Their graph.
        groups: Features, each group at one position.
        weights: The influence of each feature.
        cards: For (layer, feature), what is known of it.
    """
    names, numbers = [], []
    for nodes in groups:
        first = max(nodes, key=lambda node: (weights[node], -node))
        number = "L{}/{}".format(*graph.feature_key(first))
        numbers.append(number)
        names.append(group_name(graph, nodes, weights, cards) or f"{number} +{len(nodes) - 1}")
    taken: set[str] = set()
    named = []
    for name, number_of, nodes in zip(names, numbers, groups, strict=True):
        if names.count(name) > 1:
            name = f"{name} ({number_of})"
        candidate, tries = name, 1
        while candidate in taken:
            tries += 1
            candidate = f"{name} ({tries})"
        taken.add(candidate)
        named.append((candidate, nodes))
    return named


def _groups_at(
    graph: AttributionGraph,
    features: np.ndarray,
    cards: Cards | None,
    min_similarity: float,
    directions: Directions | None,
) -> list[list[int]]:
    if len(features) < 2:
        return []
    nodes = features.tolist()
    similarity = similarity_of(graph, nodes)
    if cards or directions:
        # Cards of a small corpus miss what two features share; what they connect to in this graph is then enough.
        similarity = np.maximum(similarity, similarity_of(graph, nodes, cards, directions))
    layers = np.array([graph.place_of(node)[0] for node in nodes])
    apart = np.abs(layers[:, None] - layers[None, :]) >= most_layers(graph.n_layers)
    group_of = _cluster(np.where(apart, -_APART, similarity), min_similarity)
    groups = [features[group_of == group].tolist() for group in np.unique(group_of)]
    return [group for group in groups if len(group) > 1]


def _cluster(similarity: Floats, min_similarity: float) -> np.ndarray:
    """(F,) number of each feature's group."""
    # Imported here because it is slow to import and nothing else needs it.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distance = squareform(1 - similarity, checks=False)
    return np.asarray(fcluster(linkage(distance, method="average"), t=1 - min_similarity, criterion="distance"))
