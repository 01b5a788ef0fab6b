"""What the interactive page holds: one JSON-able value made of a graph; the page's `viewer/src/data.ts` reads it.

The page prunes by itself, so it needs edges that pruning would drop. A small graph goes in whole. Of a larger one, the
most influential nodes go in with *all* edges between them: pruning only ever normalises over edges between kept nodes,
so that, as long as the slider stays within these nodes, the page's masks are exactly those of `pruning.py`. A pruned
graph too large even for that goes in as it is, without its dropped edges.

Letters: n nodes, E edges.
"""

from __future__ import annotations

import base64
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.analysis.pruning import prune, reaching, unpruned
from crosstrace.graphs.analysis.scores import graph_scores
from crosstrace.graphs.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.sparse_rows import Floats, Mask, rows_of
from crosstrace.graphs.viewer_ids import node_ids

FORMAT, VERSION = "crosstrace-page", 1
# Up to here the page prunes live without a pause: about 0.1 s.
LIVE_NODES, LIVE_EDGES = 4_000, 400_000
# Beyond these a browser is no longer pleasant.
MOST_NODES, MOST_EDGES = 20_000, 1_000_000
# Contexts on all cards of a page; each card shows at least some.
MOST_CONTEXTS, FEWEST_CONTEXTS = 4_000, 2

Card = Mapping[str, Any]
Supernodes = Iterable[tuple[str, Sequence[int]]]
_LETTERS = {"feature": "f", "error": "e", "token": "t", "logit": "l"}


def page_data(
    graph: AttributionGraph,
    cards: Mapping[tuple[int, int], Card] | None = None,
    supernodes: Supernodes | None = None,
    state: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """See `write_html`, whose arguments these are.

    Raises:
        ValueError: The graph is too large for a page even when pruned; the message says what to do.
    """
    thresholds = {"node_threshold": NODE_THRESHOLD, "edge_threshold": EDGE_THRESHOLD}
    if graph.node_mask is not None:
        thresholds |= graph.settings.get("pruning", {})
    node_threshold, edge_threshold = thresholds["node_threshold"], thresholds["edge_threshold"]
    influence = spread(graph.edges, row_scale(graph.edges), target_weights(graph))
    nodes, reach = _nodes_that_fit(graph, influence)
    edges = graph.edges
    if reach < 1 and not nodes[reaching(influence, node_threshold)].all():
        pruned = graph if graph.node_mask is not None else prune(graph, node_threshold, edge_threshold)
        assert pruned.node_mask is not None
        nodes, reach, edges = pruned.node_mask.numpy().copy(), node_threshold, pruned.kept_edges()
        edge_threshold = 1.0
        _check_size(int(nodes.sum()), edges.nnz)
    in_page = np.flatnonzero(nodes[graph.layout.features])
    chosen = cards_of_features(cards or {}, {graph.feature_of(int(node))[::2] for node in in_page})
    if supernodes is None:
        from crosstrace.graphs.analysis.supernodes import suggest_supernodes

        supernodes = suggest_supernodes(graph, cards)
    return _assemble(
        graph,
        np.flatnonzero(nodes),
        edges,
        influence=influence,
        start={"node": node_threshold, "edge": edge_threshold, "nodeLimit": reach},
        cards=chosen,
        supernodes=supernodes,
        state=state or {},
    )


def slug_of(prompt: str) -> str:
    """A name for the files that the page saves."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-") or "graph"


def base64_of(values: Any, dtype: str) -> str:
    """Little-endian numbers, base64: exact, and a third of the size of decimal text."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def edges_as_json(edges: scipy.sparse.csr_array) -> dict[str, str]:
    """(n, n) sparse rows: the sources and weights of row i are entries starts[i] to starts[i + 1]."""
    return {
        "starts": base64_of(edges.indptr, "<u4"),
        "sources": base64_of(edges.indices, "<u4"),
        "weights": base64_of(edges.data, "<f4"),
    }


def _assemble(
    graph: AttributionGraph,
    nodes: np.ndarray,
    edges: scipy.sparse.csr_array,
    influence: Floats,
    start: dict[str, float],
    cards: Mapping[tuple[int, int], Card],
    supernodes: Supernodes,
    state: Mapping[str, Any],
) -> dict[str, Any]:
    ids = node_ids(graph)
    columns = [_node(graph, int(node)) for node in nodes]
    features = sorted({(c["layer"], c["feature"]) for c in columns if c["kind"] == "f"})
    fires = _fires(graph, features)
    inner = edges[nodes][:, nodes]
    return {
        "format": FORMAT,
        "version": VERSION,
        "slug": slug_of(graph.prompt),
        "prompt": graph.prompt,
        "model": graph.model_name,
        "transcoders": graph.transcoders_name,
        "tokens": graph.token_strings,
        "layers": graph.n_layers,
        "nodes": {
            "id": [ids[node] for node in nodes],
            "kind": "".join(column["kind"] for column in columns),
            **{key: [c[key] for c in columns] for key in ("layer", "position", "feature", "label")},
            "activation": [c["activation"] for c in columns],
            "probability": [c["probability"] for c in columns],
        },
        "edges": edges_as_json(scipy.sparse.csr_array(inner)),
        "omitted": base64_of(graph.omitted_magnitude.numpy()[nodes], "<f4"),
        "influence": base64_of(influence[nodes], "<f8"),
        "influenceTotal": float(influence.sum()),
        "whole": {"nodes": graph.n, "edges": int(graph.edges.nnz)},
        "scores": graph_scores(unpruned(graph))._asdict(),
        "start": start,
        "notTokens": [
            i
            for i, node in enumerate(nodes)
            if graph.layout.kind(int(node)) == "logit" and graph.logit_tokens[graph.layout.logit_of(int(node))] < 0
        ],
        "notes": [],
        "fires": {f"{layer}/{feature}": fires[layer, feature] for layer, feature in features},
        "cards": cards_as_json(cards),
        "suggested": [[name, *(ids[node] for node in members)] for name, members in supernodes],
        "qParams": dict(state),
    }


def _node(graph: AttributionGraph, node: int) -> dict[str, Any]:
    layout = graph.layout
    kind = layout.kind(node)
    layer, position = graph.place_of(node)
    values: dict[str, Any] = {
        "kind": _LETTERS[kind],
        "layer": layer,
        "position": position,
        "feature": -1,
        "label": "",
        "activation": None,
        "probability": 0.0,
    }
    if kind == "feature":
        i = layout.feature_of(node)
        values |= {"feature": graph.feature_of(node)[2], "label": graph.feature_labels[i]}
        values["activation"] = float(graph.activations[graph.selected_features[i]])
    elif kind == "token":
        values["label"] = graph.token_strings[position]
    elif kind == "logit":
        i = layout.logit_of(node)
        values |= {"label": graph.logit_strings[i], "probability": float(graph.logit_probabilities[i])}
    return values


def _fires(graph: AttributionGraph, features: list[tuple[int, int]]) -> dict[tuple[int, int], list[list[float]]]:
    """For (layer, feature): [position, activation] wherever in the prompt it is active, traced there or not."""
    active = graph.active_features.numpy()
    # One number for both; a prompt has far more active features than the page has nodes.
    wanted = np.array([layer << 40 | feature for layer, feature in features], dtype=np.int64)
    rows = np.flatnonzero(np.isin(active[:, 0] << 40 | active[:, 2], wanted))
    found: dict[tuple[int, int], list[list[float]]] = defaultdict(list)
    for (layer, position, feature), activation in zip(
        active[rows].tolist(), graph.activations.numpy()[rows].tolist(), strict=True
    ):
        found[layer, feature].append([position, activation])
    return found


def _nodes_that_fit(graph: AttributionGraph, influence: Floats) -> tuple[Mask, float]:
    """Which nodes go in with all their edges, and up to which node threshold the page can then prune exactly."""
    if graph.n <= LIVE_NODES and graph.edges.nnz <= LIVE_EDGES:
        return np.ones(graph.n, dtype=np.bool_), 1.0
    always = np.zeros(graph.n, dtype=np.bool_)
    always[graph.layout.tokens] = True
    always[graph.layout.logits] = True
    order = np.argsort(-influence, kind="stable")
    rank = np.empty(graph.n, dtype=np.int64)
    rank[order] = np.arange(graph.n)
    # With the `count` first nodes in, an edge is in if both its ends are: sooner for tokens and targets.
    enters = np.where(always, 0, rank)
    edge_enters = np.maximum(enters[rows_of(graph.edges)], enters[graph.edges.indices])
    edges_within = np.cumsum(np.bincount(edge_enters, minlength=graph.n))
    nodes_within = np.cumsum(~always[order]) + always.sum()
    count = int(((edges_within <= LIVE_EDGES) & (nodes_within <= LIVE_NODES)).sum())
    values = influence[order]
    # Equally influential nodes go in together or not at all, as in pruning.
    while 0 < count < graph.n and values[count - 1] > 0 and values[count] >= values[count - 1] * (1 - 1e-9):
        count -= 1
    total = values.sum()
    reach = float(values[:count].sum() / total) if total else 1.0
    return always | (rank < count), math.floor(min(reach, 0.999) * 1000) / 1000


def _check_size(nodes: int, edges: int) -> None:
    if nodes > MOST_NODES or edges > MOST_EDGES:
        raise ValueError(
            f"the pruned graph has {nodes:,} nodes and {edges:,} edges, too many for a page (at most {MOST_NODES:,} and "
            f"{MOST_EDGES:,}): prune it further first, for example crosstrace prune RAW --node-threshold 0.6 -o page.html"
        )


def cards_of_features(
    cards: Mapping[tuple[int, int], Card], features: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], dict[str, Any]]:
    """The cards of the features that have one. On a page of many features each shows fewer contexts."""
    known = {key: dict(cards[key]) for key in sorted(features) if key in cards}
    shown = max(FEWEST_CONTEXTS, MOST_CONTEXTS // max(len(known), 1))
    for card in known.values():
        if isinstance(contexts := card.get("contexts"), list | tuple):
            card["contexts"] = list(contexts[:shown])
    return known


def cards_as_json(cards: Mapping[tuple[int, int], Card]) -> dict[str, Card]:
    """Cards under the names that the page knows features by."""
    return {f"{layer}/{feature}": card for (layer, feature), card in cards.items()}
