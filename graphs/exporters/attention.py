"""Attention in exports: of an edge its heads, of a place its contributors, in plain Python values.

Names of contributors are those of Neuronpedia's graph schema, where nodes have `qk_tracing_results`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crosstrace.graphs.attention.kept import AttentionPlaces, GraphAttention
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.viewer_ids import node_ids

REMAINDER = "remainder"
"""What stands for the remainder, biases and what no node stands for, where nodes are named by id."""


def head_values(attention: GraphAttention, target: int, source: int) -> list[tuple[int, int, float]] | None:
    """Return how much of an edge each head carries, (layer, head, value) without zeros; None where it is not known."""
    edge = attention.loadings.of(target, source)
    if edge is None:
        return None
    of_edge = attention.loadings.heads[edge]
    return [(layer, head, float(of_edge[layer, head])) for layer, head in of_edge.nonzero().tolist()]


def qk_tracing_results(places: AttentionPlaces, place: int, ids: list[str]) -> dict[str, list[list[Any]]]:
    """Return the strongest contributors to a place's score under Neuronpedia's names.

    Args:
        places: The places.
        place: Which of them.
        ids: The ids of the nodes, and after them that of the remainder.
    """

    def marginals(side: str) -> list[list[Any]]:
        nodes, terms = (getattr(places, f"{side}_{part}")[place].tolist() for part in ("nodes", "terms"))
        return [[ids[node], term] for node, term in zip(nodes, terms, strict=True) if term]

    pairs = zip(places.pairs[place].tolist(), places.pair_terms[place].tolist(), strict=True)
    return {
        "pair_wise_contributors": [[ids[query], ids[key], term] for (query, key), term in pairs if term],
        "top_q_marginal_contributors": marginals("query"),
        "top_k_marginal_contributors": marginals("key"),
    }


def contributor_ids(graph: AttributionGraph) -> list[str]:
    """Return the ids of the nodes that can contribute to a score, and after them that of the remainder."""
    return [*node_ids(graph)[: graph.layout.n_sources], REMAINDER]


def results_by_target(graph: AttributionGraph) -> Mapping[int, int]:
    """Return for each target node that a place feeds the place that carries most, by its number."""
    found: dict[int, int] = {}
    if graph.attention is not None:
        for place, node in enumerate(graph.attention.places.fed.tolist()):
            found.setdefault(node, place)
    return found
