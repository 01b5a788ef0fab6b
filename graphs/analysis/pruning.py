"""Pruning: the nodes and edges that carry most of the influence on the targets.

Ameisen et al. 2025, "Circuit Tracing", appendix on graph pruning. Deviations: equal values are kept or dropped
together whatever their order; a node or edge without influence is never kept for its own sake; and after thresholding,
loose ends are removed until none is left.

Letters: n nodes, E stored edges.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from crosstrace.graphs.analysis.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.layout import NodeLayout
from crosstrace.graphs.sparse_rows import Floats, Mask, keep, rows_of

# Values this close (relative) are a tie, shares this close to a threshold reach it: rounding must not decide.
_ROUNDING = 1e-12


def prune(
    graph: AttributionGraph, node_threshold: float = NODE_THRESHOLD, edge_threshold: float = EDGE_THRESHOLD
) -> AttributionGraph:
    """Return the graph with `node_mask`, `edge_mask_sparse` and `influence` filled in; edges are shared, not copied.

    It keeps the fewest nodes whose influence reaches `node_threshold` of the total; targets and tokens always stay. Among
    these it keeps the fewest edges whose score, normalised edge × (influence + weight of its target), reaches
    `edge_threshold` of the total. Then it drops features without an incoming or outgoing edge and errors without an
    outgoing one, until nothing changes. Ties are kept. An already pruned graph is pruned afresh from all its edges.

    Args:
        graph: Raw or pruned.
        node_threshold: Share of influence to keep, 0 to 1; 1 keeps every node with influence.
        edge_threshold: Share of edge score to keep, 0 to 1.

    Raises:
        ValueError: A threshold is outside 0..1, and the message names which; or the graph was read from JSON and is not
            whole.

    Example:
        >>> pruned = prune(graph, node_threshold=0.8, edge_threshold=0.98)
        >>> len(pruned.kept_nodes()) < graph.n
        True
    """
    check_threshold("node_threshold", node_threshold)
    check_threshold("edge_threshold", edge_threshold)
    check_whole(graph, "pruning")
    layout, weights, edges = graph.layout, target_weights(graph), graph.edges

    influence = spread(edges, row_scale(edges), weights)
    nodes = reaching(influence, node_threshold)
    nodes[layout.tokens] = True
    nodes[layout.logits] = True

    # `kept` says for each stored edge of the graph whether it is still in; `inner` holds those between kept nodes.
    kept = nodes[rows_of(edges)] & nodes[edges.indices]
    inner = keep(edges, kept)
    scale = row_scale(inner)
    strength = (spread(inner, scale, weights) + weights) * scale
    kept[kept] = reaching(np.abs(inner.data) * np.repeat(strength, np.diff(inner.indptr)), edge_threshold)

    targets, sources = rows_of(edges)[kept], edges.indices[kept]
    alive = _drop_loose_ends(layout, nodes, targets, sources)
    kept[kept] = alive
    mask = keep(edges, kept)
    mask.data = np.ones(mask.nnz, dtype=np.bool_)
    return dataclasses.replace(
        graph,
        node_mask=torch.from_numpy(nodes),
        edge_mask_sparse=mask,
        influence=torch.from_numpy(entry_shares(influence)),
        settings={
            **graph.settings,
            "pruning": {"node_threshold": float(node_threshold), "edge_threshold": float(edge_threshold)},
        },
    )


def unpruned(graph: AttributionGraph) -> AttributionGraph:
    """Return the graph without what `prune` filled in; edges are shared, not copied.

    A graph that was read from JSON is returned as it is: its masks say what the file holds.

    Example:
        >>> graph_scores(unpruned(pruned)) == graph_scores(graph)
        True
    """
    if graph.json_origin is not None:
        return graph
    return dataclasses.replace(graph, node_mask=None, edge_mask_sparse=None, influence=None)


def check_threshold(name: str, value: float) -> None:
    """Check a threshold of pruning.

    Args:
        name: What the message calls it.
        value: The threshold.

    Raises:
        ValueError: It is not a number from 0 to 1.
    """
    if not isinstance(value, int | float) or math.isnan(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value}")


def reaching(values: Floats, threshold: float) -> Mask:
    """Return a mask of the fewest values (≥ 0) whose sum reaches `threshold` of the total; ties are kept, zeros never."""
    if threshold >= 1:
        return values > 0
    descending = np.sort(values)[::-1]
    reached = np.cumsum(descending)
    if not len(values) or reached[-1] == 0:
        return np.zeros(len(values), dtype=np.bool_)
    last = np.searchsorted(reached, (threshold - _ROUNDING) * reached[-1])
    return (values >= descending[last] * (1 - _ROUNDING)) & (values > 0)


def entry_shares(influence: Floats) -> Floats:
    """Return (n,) the cumulative share of the total at which each node enters, most influential first.

    Tied nodes enter together, at the share of the first of them. Where nothing has influence, all shares are 1.
    """
    order = np.argsort(-influence, kind="stable")
    descending = influence[order]
    reached = np.cumsum(descending)
    shares = np.ones(len(influence))
    if not len(influence) or reached[-1] == 0:
        return shares
    starts_tie = np.r_[True, descending[1:] < descending[:-1] * (1 - _ROUNDING)]
    first_of_tie = np.maximum.accumulate(np.where(starts_tie, np.arange(len(order)), 0))
    shares[order] = (reached / reached[-1])[first_of_tie]
    return shares


def shares_of_entries(entries: Floats) -> Floats:
    """Return (n,) the share of the total that each node has, given the cumulative shares at which they enter.

    It undoes `entry_shares`. Where nodes are missing or not known, the next one's difference holds their share too: then it
    gets no more than the one before, since nodes enter by their share. Nodes that enter together have the same share,
    whether their entry is that of the first of them or, as other tools write it, of the last.

    Args:
        entries: (n,), NaN for nodes whose share is not known: theirs is 0.

    Example:
        >>> shares_of_entries(np.array([0.5, 0.8, 1.0]))
        array([0.5, 0.3, 0.2])
    """
    own = np.zeros(len(entries))
    known = np.flatnonzero(np.isfinite(entries))
    values, which, counts = np.unique(entries[known], return_inverse=True, return_counts=True)
    shares = np.zeros(len(values))
    reached, most = 0.0, math.inf
    for i, (entry, together) in enumerate(zip(values.tolist(), counts.tolist(), strict=True)):
        share = min(max(entry - reached, 0.0), most)
        after = entry + (together - 1) * share
        if together > 1 and after > (values[i + 1] if i + 1 < len(values) else 1.0) + _ROUNDING:
            share, after = share / together, entry
        shares[i], reached, most = share, after, share or most
    own[known] = shares[which]
    return own


def influence_shares(graph: AttributionGraph) -> Floats:
    """Return (n,) the share of all nodes' influence on the targets that each node has; zeros where nothing has any.

    It is the same in a raw and a pruned graph. Of a graph that was read from JSON it is what the file says, so far as it
    says it.

    Example:
        >>> influence_shares(graph).sum()
        1.0
    """
    if graph.json_origin is not None and graph.json_origin.knows_influence and graph.influence is not None:
        assert graph.node_mask is not None
        entries, kept = graph.influence.numpy(), graph.node_mask.numpy()
        return shares_of_entries(np.where(kept, entries, np.nan))
    influence = spread(graph.edges, row_scale(graph.edges), target_weights(graph))
    return influence / influence.sum() if influence.any() else influence


def check_whole(graph: AttributionGraph, what: str) -> None:
    """Check that a graph is whole.

    Args:
        graph: Any graph.
        what: What needs it whole, for the message.

    Raises:
        ValueError: It was read from JSON, which holds only what pruning kept.
    """
    if graph.json_origin is not None:
        raise ValueError(
            f"{what} needs the whole graph; a JSON file holds only what pruning kept: use the trace's .safetensors file"
        )


def cumulative_influence(graph: AttributionGraph) -> torch.Tensor:
    """Return (n,) float64, the graph's `influence`; on a raw graph it is computed.

    Example:
        >>> float(cumulative_influence(graph).max())
        1.0
    """
    if graph.influence is not None:
        return graph.influence
    edges = graph.edges
    return torch.from_numpy(entry_shares(spread(edges, row_scale(edges), target_weights(graph))))


def _drop_loose_ends(layout: NodeLayout, nodes: Mask, targets: np.ndarray, sources: np.ndarray) -> Mask:
    """Remove nodes from `nodes` (in place) until none is a loose end, and say which of the edges are left."""
    alive = np.ones(len(targets), dtype=np.bool_)
    inner = slice(0, layout.tokens.start)
    while True:
        feeds, is_fed = np.zeros(layout.n, dtype=np.bool_), np.zeros(layout.n, dtype=np.bool_)
        feeds[sources[alive]] = True
        is_fed[targets[alive]] = True
        before = nodes.sum()
        nodes[inner] &= feeds[inner]
        nodes[layout.features] &= is_fed[layout.features]
        if nodes.sum() == before:
            return alive
        alive &= nodes[targets] & nodes[sources]
