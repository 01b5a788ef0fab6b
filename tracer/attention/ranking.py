"""The few heads of a graph worth asking about, and a graph that keeps what they say.

Letters: E edges, L layers, H heads, P positions, c places, t terms of a place.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosstrace.graphs import AttributionGraph, prune, row_scale, spread, target_weights
from crosstrace.graphs.attention.kept import AttentionPlaces, GraphAttention, HeadLoadings
from crosstrace.graphs.sparse_rows import values_at
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import defaults
from crosstrace.tracer.attention.loadings import loadings_of
from crosstrace.tracer.attention.places import TracedPrompt
from crosstrace.tracer.attention.scores import HeadScores, QKTerms
from crosstrace.tracer.progress import row_progress
from crosstrace.tracer.weights import Note


@dataclass(frozen=True)
class RankedHead:
    """A head, and how much of the pruned graph's influence passes through it.

    Attributes:
        layer: The layer.
        head: The head.
        carried: Its share of the edges' influence on the targets, signs left out.
        net: The same with signs: what supports the edges that it carries less what works against them.
        query: Where most of what it carries arrives.
        key: Where that comes from.
        fed: The target node that gets most through it.
    """

    layer: int
    head: int
    carried: float
    net: float
    query: int
    key: int
    fed: int


@dataclass(frozen=True, eq=False)
class HeadRanking:
    """The heads of a graph by how much of its influence passes through them.

    Attributes:
        heads: The one that carries most first.
        loadings: Of every edge that pruning kept.
        flow_lhqk: (L, H, P, P) float32, the influence that each head moves, with its sign, [query, key].
    """

    heads: list[RankedHead]
    loadings: HeadLoadings
    flow_lhqk: Tensor


def rank_heads(
    traced: TracedPrompt, count: int | None = None, progress: bool | None = False, checked: bool = True
) -> HeadRanking:
    """Rank the heads by how much of the pruned graph's influence on the targets passes through them.

    An edge's influence is its share of its row times the influence of its target, as in pruning; a head carries that times
    its part of the edge.

    Args:
        traced: The prompt of a graph. A raw graph is first pruned with the default thresholds.
        count: How many heads; None: all that carry anything.
        progress: Show a progress bar on standard error; None: if that is a terminal.
        checked: Compare the edges that the sweeps arrive with to the graph's.

    Raises:
        ValueError: The edges are not those of the model, or a target is a direction.

    Example:
        >>> ranking = rank_heads(TracedPrompt(model, prune(graph)), count=5)
        >>> ranking.heads[0].layer, ranking.heads[0].head
        (4, 2)
    """
    graph = traced.graph if traced.graph.node_mask is not None else prune(traced.graph)
    edges = graph.kept_edges().tocoo()
    pairs = np.stack([edges.row, edges.col], axis=1).astype(np.int64)
    size, n_positions = traced.local.description, traced.local.n_positions
    flow = torch.zeros(size.n_layers, size.n_heads, n_positions, n_positions)
    if not len(pairs):
        none = torch.zeros(0, size.n_layers, size.n_heads)
        return HeadRanking([], HeadLoadings(torch.zeros(0, 2, dtype=torch.int64), none, none[..., 0]), flow)
    weights = edge_influence(graph, pairs)
    total = float(np.abs(weights * edges.data).sum()) or 1.0
    loadings = loadings_of(traced, pairs, weights / total, flow, progress, checked)
    counted_elh = loadings.heads.double() * torch.from_numpy(weights / total)[:, None, None]
    carried_lh, net_lh = counted_elh.abs().sum(0), counted_elh.sum(0)
    targets, target_of = np.unique(pairs[:, 0], return_inverse=True)
    fed_tlh = torch.zeros(len(targets), *carried_lh.shape, dtype=torch.float64)
    fed_tlh.index_add_(0, torch.from_numpy(target_of), counted_elh)
    heads: list[RankedHead] = []
    for place in carried_lh.flatten().argsort(descending=True, stable=True).tolist():
        layer, head = divmod(place, size.n_heads)
        if not float(carried_lh[layer, head]) > 0 or (count is not None and len(heads) == count):
            break
        query, key = divmod(int(flow[layer, head].abs().argmax()), n_positions)
        fed = int(targets[int(fed_tlh[:, layer, head].abs().argmax())])
        carried, net = float(carried_lh[layer, head]), float(net_lh[layer, head])
        heads.append(RankedHead(layer, head, carried, net, query, key, fed))
    return HeadRanking(heads, loadings, flow)


def edge_influence(graph: AttributionGraph, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (E,) what turns each edge into its influence on the targets: factors with the sign of the edge.

    Args:
        graph: Pruned.
        pairs: (E, 2) its kept edges, (target node, source node).
    """
    kept, weights = graph.kept_edges(), target_weights(graph)
    scale = row_scale(kept)
    strength = (spread(kept, scale, weights) + weights) * scale
    return strength[pairs[:, 0]] * np.sign(values_at(kept, pairs[:, 0], pairs[:, 1]))


def with_attention(
    graph: AttributionGraph,
    model: ReplacementModel,
    heads: int = defaults.ATTENTION_HEADS,
    terms: int = defaults.ATTENTION_TERMS,
    progress: bool | None = False,
    note: Note | None = None,
) -> AttributionGraph:
    """Return a graph that keeps the head loadings of its edges, and why the heads that matter most looked where they did.

    Args:
        graph: Pruned: the edges that it keeps get loadings. A raw graph is pruned with the default thresholds to choose them.
        model: The model and transcoders of the graph.
        heads: How many heads to take apart, those that carry most.
        terms: How many pairs and marginals of each to keep, the strongest.
        progress: Show a progress bar on standard error; None: if that is a terminal.
        note: Called with one line if the graph is from before fingerprints could tell that these are its weights.

    Raises:
        ValueError: The graph is of other weights, or one of its targets is a direction.

    Example:
        >>> with_attention(prune(graph), model).attention.places.where[0]
        tensor([4, 2, 9, 6])
    """
    traced = TracedPrompt(model, graph, note)
    ranking = rank_heads(traced, heads, progress)
    n_positions, found = traced.local.n_positions, []
    with row_progress(len(ranking.heads), progress) as advance:
        for one in ranking.heads:
            found.append(HeadScores(traced, one.layer, one.head, one.query).terms(one.key))
            advance(1)
    places = AttentionPlaces(
        where=torch.tensor([[one.layer, one.head, one.query, one.key] for one in ranking.heads]).reshape(-1, 4),
        carried=torch.tensor([one.carried for one in ranking.heads], dtype=torch.float64),
        net=torch.tensor([one.net for one in ranking.heads], dtype=torch.float64),
        scores=torch.tensor([one.score for one in found], dtype=torch.float64),
        patterns=torch.stack([traced.local.layers[one.layer].attention_hqk[one.head].cpu() for one in ranking.heads])
        if ranking.heads
        else torch.zeros(0, n_positions, n_positions),
        fed=torch.tensor([one.fed for one in ranking.heads], dtype=torch.int64),
        **_strongest(found, terms),
    )
    return dataclasses.replace(graph, attention=GraphAttention(ranking.loadings, places))


def _strongest(found: list[QKTerms], count: int) -> dict[str, Tensor]:
    """The strongest pairs and marginals of each place; where there are fewer, terms of 0 fill up."""
    n = len(found[0].query_nw) - 1 if found else 0
    pairs, pair_terms = torch.full((len(found), count, 2), n), torch.zeros(len(found), count)
    sides: dict[str, Tensor] = {}
    for side in ("query", "key"):
        nodes, terms = torch.full((len(found), count), n), torch.zeros(len(found), count)
        for i, one in enumerate(found):
            marginals = one.query_marginals if side == "query" else one.key_marginals
            top = marginals.abs().topk(min(count, len(marginals))).indices
            nodes[i, : len(top)], terms[i, : len(top)] = top, marginals[top].float()
        sides |= {f"{side}_nodes": nodes, f"{side}_terms": terms}
    for i, one in enumerate(found):
        for j, (query, key, term) in enumerate(one.strongest_pairs(count)):
            pairs[i, j] = torch.tensor([query, key])
            pair_terms[i, j] = term
    return {"pairs": pairs, "pair_terms": pair_terms, **sides}
