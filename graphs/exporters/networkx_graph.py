"""The graph as a `networkx.DiGraph`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crosstrace.graphs.analysis.pruning import cumulative_influence
from crosstrace.graphs.attention.kept import GraphAttention
from crosstrace.graphs.exporters.attention import head_values
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.viewer_ids import node_ids

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: AttributionGraph) -> networkx.DiGraph:
    """Return the nodes and edges that the masks keep (all of a raw graph), edges from source to target.

    Nodes are numbered in the graph's node order; attributes are plain Python values.

    - Every node has `kind`, `node_id`, `layer` (-1 for tokens, L for output logits), `position`, `token` (the string at
      that position), `label` (one readable line) and `influence` (cumulative).
    - Features also have `feature`, `activation` and `words` (their label, "" where unknown).
    - Tokens also have `token_id`.
    - Targets have their own string as `token`, and `token_id` (-1 where they are not a token) and `probability` (then 0).
    - Edges have `weight` (signed). In a graph with attention they also have `head` and `head_loading`, the head that carries
      most ("L3.H2", "" where none does) and how much that is, and `head_loadings`, [layer, head, value] of all heads as
      JSON.
    - The graph has `prompt`, `model_name`, `transcoders_name`, `n_layers` and `settings` (as JSON, so that networkx can
      write GraphML).

    Example:
        >>> digraph = to_networkx(prune(graph))
        >>> digraph.in_degree(graph.layout.logit_index(0), weight="weight")
        11.25
    """
    # Imported here because it is slow to import.
    import networkx

    digraph = networkx.DiGraph(
        prompt=graph.prompt,
        model_name=graph.model_name,
        transcoders_name=graph.transcoders_name,
        n_layers=graph.n_layers,
        settings=json.dumps(graph.settings),
    )
    ids, influence = node_ids(graph), cumulative_influence(graph).tolist()
    for node in graph.kept_nodes():
        digraph.add_node(node, node_id=ids[node], influence=influence[node], **_attributes(graph, node))
    edges = graph.kept_edges().tocoo()
    digraph.add_weighted_edges_from(zip(edges.col.tolist(), edges.row.tolist(), edges.data.tolist(), strict=True))
    if graph.attention is not None:
        for source, target in digraph.edges:
            digraph.edges[source, target].update(_edge_attention(graph.attention, target, source))
    return digraph


def _edge_attention(attention: GraphAttention, target: int, source: int) -> dict[str, Any]:
    values = head_values(attention, target, source)
    if values is None:
        return {}
    layer, head, most = max(values, key=lambda value: abs(value[2]), default=(0, 0, 0.0))
    return {
        "head": f"L{layer}.H{head}" if values else "",
        "head_loading": most,
        "head_loadings": json.dumps(values),
    }


def _attributes(graph: AttributionGraph, node: int) -> dict[str, Any]:
    layout = graph.layout
    kind = layout.kind(node)
    layer, position = graph.place_of(node)
    values: dict[str, Any] = {
        "kind": kind,
        "layer": layer,
        "position": position,
        "token": graph.token_strings[position],
        "label": graph.describe(node),
    }
    if kind == "feature":
        i = layout.feature_of(node)
        values["feature"] = graph.feature_of(node)[2]
        values["activation"] = float(graph.activations[graph.selected_features[i]])
        values["words"] = graph.name_of(node)
    elif kind == "token":
        values["token_id"] = int(graph.tokens[position])
    elif kind == "logit":
        i = layout.logit_of(node)
        values["token"] = graph.logit_strings[i]
        values["token_id"] = int(graph.logit_tokens[i])
        values["probability"] = graph.probability_of(i) or 0.0
    return values
