"""What a page holds about attention: of each edge its heads, of heads worth asking about their patterns and terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from crosstrace.graphs.exporters.attention import head_values, qk_tracing_results
from crosstrace.graphs.graph import AttributionGraph

# Of an edge the strongest heads; what the others of a layer carry together is told by the layer's bypass.
_HEADS_OF_EDGE = 40


class PageHead(TypedDict):
    """A head worth asking about, with the query and the key between which most of what it carries moves."""

    layer: int
    head: int
    query: int
    key: int
    carried: float
    net: float
    score: float
    pattern: list[list[float]]
    """By query, of the keys up to it."""
    pairs: list[list[str | float]]
    """Query-side node, key-side node, term; nodes in words."""
    queries: list[list[str | float]]
    """Query-side node and the sum of its terms."""
    keys: list[list[str | float]]
    """Key-side node and the sum of its terms."""


class PageAttention(TypedDict):
    """Attention on a page."""

    edges: list[list[str | list[list[float]]]]
    """Source id, target id, and [layer, head, value] of its strongest heads, largest first."""
    heads: list[PageHead]


def page_attention(graph: AttributionGraph, ids: Mapping[int, str]) -> PageAttention | None:
    """Return what a page holds about a graph's attention; None where the graph keeps none.

    Args:
        graph: Raw or pruned.
        ids: The ids of the nodes that are on the page.
    """
    if graph.attention is None:
        return None
    edges: list[list[str | list[list[float]]]] = []
    for target, source in graph.attention.loadings.edges.tolist():
        if target in ids and source in ids:
            values = head_values(graph.attention, target, source) or []
            strongest = sorted(values, key=lambda value: -abs(value[2]))[:_HEADS_OF_EDGE]
            shown = [[layer, head, _rounded(value)] for layer, head, value in strongest]
            edges.append([ids[source], ids[target], shown])
    places = graph.attention.places
    names = [graph.describe(node) for node in range(graph.layout.n_sources)] + ["remainder"]
    heads: list[PageHead] = []
    for place, (layer, head, query, key) in enumerate(places.where.tolist()):
        results = qk_tracing_results(places, place, names)
        pattern = places.patterns[place].tolist()
        heads.append(
            {
                "layer": layer,
                "head": head,
                "query": query,
                "key": key,
                "carried": _rounded(float(places.carried[place])),
                "net": _rounded(float(places.net[place])),
                "score": _rounded(float(places.scores[place])),
                "pattern": [[round(value, 4) for value in row[: i + 1]] for i, row in enumerate(pattern)],
                "pairs": results["pair_wise_contributors"],
                "queries": results["top_q_marginal_contributors"],
                "keys": results["top_k_marginal_contributors"],
            }
        )
    return {"edges": edges, "heads": heads}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
