"""Suggested supernodes: groups of features that seem to do one thing, as a start for simplifying a graph.

Ameisen et al. 2025, "Circuit Tracing", group features into supernodes by hand, by what they mean and how they connect;
here the same evidence is put into numbers (`similarity.py`) and clustered (average linkage, `scipy.cluster.hierarchy`).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from crosstrace.graphs.analysis.pruning import prune
from crosstrace.graphs.analysis.similarity import Cards, Directions, similarity_of
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.sparse_rows import Floats
from crosstrace.graphs.text import short

MIN_SIMILARITY = 0.5
# Distances between all pairs are held at once: 2,000 features are 32 MB.
_MOST_FEATURES = 2000


def suggest_supernodes(
    graph: AttributionGraph,
    cards: Cards | None = None,
    min_similarity: float = MIN_SIMILARITY,
    directions: Directions | None = None,
) -> list[tuple[str, list[int]]]:
    """Suggest groups of two or more of the features that pruning kept, most influential group first.

    The same graph always gives the same groups; a feature is in at most one, many are in none. Of more than 2,000 kept
    features only the 2,000 most influential are looked at.

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
    if len(features) < 2:
        return []
    group_of = _cluster(similarity_of(pruned, features.tolist(), cards, directions), min_similarity)

    groups = [features[group_of == group].tolist() for group in np.unique(group_of)]
    groups = [nodes for nodes in groups if len(nodes) > 1]
    # Small entry share = early in the ranking: a group counts as much as its best member, then by size.
    groups.sort(key=lambda nodes: (min(influence[nodes]), -len(nodes), nodes))
    taken: set[str] = set()
    named = []
    for nodes in groups:
        name = _unique(_name(pruned, nodes), taken)
        taken.add(name)
        named.append((name, nodes))
    return named


def _cluster(similarity: Floats, min_similarity: float) -> np.ndarray:
    """(F,) number of each feature's group."""
    # Imported here because it is slow to import and nothing else needs it.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distance = squareform(1 - similarity, checks=False)
    return np.asarray(fcluster(linkage(distance, method="average"), t=1 - min_similarity, criterion="distance"))


def _name(graph: AttributionGraph, nodes: list[int]) -> str:
    """The most common label; without labels, the most common guess; without these, the layers and the token."""
    labels = Counter(label.strip() for node in nodes if (label := graph.feature_labels[node]).strip())
    labels = labels or Counter(name for node in nodes if (name := graph.name_of(node).strip()))
    if labels:
        return short(min(labels, key=lambda label: (-labels[label], len(label), label)), 40)
    places = [graph.place_of(node) for node in nodes]
    low, high = min(place[0] for place in places), max(place[0] for place in places)
    layers = f"L{low}" if low == high else f"L{low}–{high}"
    position = Counter(place[1] for place in places).most_common(1)[0][0]
    return f"{layers} @ {short(graph.token_strings[position])}"


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    return candidate
