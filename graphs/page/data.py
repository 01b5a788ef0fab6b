"""The content of a graph's interactive page.

The page prunes by itself, so it needs edges that pruning would drop. A small graph goes in whole. Of a larger one, the
most influential nodes go in with *all* edges between them: pruning only ever normalises over edges between kept nodes,
so that, as long as the slider stays within these nodes, the page's masks are exactly those of `analysis/pruning.py`. A
pruned graph that is too large even for that goes in without its dropped edges.

Letters: n nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from crosstrace.graphs.analysis.answers import answer_targets
from crosstrace.graphs.analysis.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.analysis.pruning import influence_shares, prune, reaching, unpruned
from crosstrace.graphs.analysis.scores import graph_scores, untraced
from crosstrace.graphs.analysis.supernodes import suggest_supernodes
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.page.attention import page_attention
from crosstrace.graphs.page.contents import (
    Card,
    Key,
    PageData,
    PageNode,
    PageSource,
    Scores,
    Start,
    WholeGraph,
    firing_places,
    page_contents,
    page_label,
)
from crosstrace.graphs.page.limits import LIMITS, PageLimits
from crosstrace.graphs.page.stories import page_stories
from crosstrace.graphs.sparse_rows import Floats, Mask, rows_of
from crosstrace.graphs.viewer_ids import node_ids

MADE_FROM_JSON = "Made from a JSON file: what its pruning dropped is not here."
"""What pages say of graphs that were read from JSON."""
Supernodes = Iterable[tuple[str, Sequence[int]]]
_TRACE = 1e-15  # of all influence
_LETTERS = {"feature": "f", "error": "e", "token": "t", "logit": "l"}


def page_data(
    graph: AttributionGraph,
    cards: Mapping[Key, Card] | None = None,
    supernodes: Supernodes | None = None,
    state: Mapping[str, Any] | None = None,
    limits: PageLimits = LIMITS,
    stories: bool = True,
    notes: Sequence[str] = (),
    only_kept: bool = False,
) -> PageData:
    """Return the content of a graph's page; for the arguments see `write_html`.

    Args:
        graph: Raw or pruned.
        cards: What is known of features.
        supernodes: Groups to suggest; `suggest_supernodes` chooses them if None.
        state: What is pinned and grouped.
        limits: How much the page may hold.
        stories: Whether it tells the story of each target.
        notes: Sentences that the page shows.
        only_kept: Hold no more than what pruning kept, as the page of a graph that was read from JSON does; for such a graph
            it is always so.

    Raises:
        ValueError: The graph is too large for a page even when pruned; the message says what to do.
    """
    if only_kept and graph.node_mask is None:
        graph = prune(graph)
    held = _kept_part(graph, limits) if only_kept or graph.json_origin is not None else _part_that_fits(graph, limits)
    nodes = np.flatnonzero(held.nodes)
    ids, origin = node_ids(graph), graph.json_origin
    features = sorted({graph.feature_key(int(node)) for node in np.flatnonzero(held.nodes[graph.layout.features])})
    pruned = graph if graph.node_mask is not None else prune(graph, held.start["node"], held.start["edge"])
    supernodes = suggest_supernodes(pruned, cards) if supernodes is None else list(supernodes)
    on_page = {int(node): ids[node] for node in nodes}
    return page_contents(
        PageSource(
            prompt=graph.prompt,
            model=graph.model_name,
            transcoders=graph.transcoders_name,
            fingerprints=graph.settings.get("fingerprints") or {},
            tokens=graph.token_strings,
            names=graph.names()[0],
            n_layers=graph.n_layers,
            nodes=[_node(graph, int(node), ids[node]) for node in nodes],
            edges=scipy.sparse.csr_array(held.edges[nodes][:, nodes]),
            influence=held.influence[nodes],
            influence_total=held.influence_total,
            whole=held.whole,
            start=held.start,
            fires=_fires(graph, features),
            slug="" if origin is None else origin.slug,
            omitted=graph.omitted_magnitude.numpy()[nodes],
            notes=[*notes, *([] if origin is None else [*origin.notes, MADE_FROM_JSON])],
            scores=held.scores,
            only_kept=held.only_kept,
            cards=_with_latents(cards_of_features(cards or {}, features, limits), graph, features),
            suggested=[[name, *(ids[node] for node in members)] for name, members in supernodes],
            stories=page_stories(pruned, cards, supernodes, on_page) if stories else [],
            template=None if graph.spans is None else sorted(graph.spans.template),
            hide_template=_hides_template(graph),
            answer=_answer_ids(graph, ids),
            attention=page_attention(graph, on_page),
            q_params=state or ({} if origin is None else origin.q_params),
        )
    )


@dataclass(frozen=True)
class _Held:
    """What of a graph a page holds."""

    nodes: Mask
    edges: scipy.sparse.csr_array
    influence: Floats
    influence_total: float
    whole: WholeGraph
    start: Start
    scores: Scores | None
    only_kept: bool = False


def _part_that_fits(graph: AttributionGraph, limits: PageLimits) -> _Held:
    """All of a small graph; of a larger one as much as lets the page prune live, or what pruning kept."""
    thresholds = {"node_threshold": NODE_THRESHOLD, "edge_threshold": EDGE_THRESHOLD}
    if graph.node_mask is not None:
        thresholds |= graph.settings.get("pruning", {})
    node_threshold, edge_threshold = thresholds["node_threshold"], thresholds["edge_threshold"]
    influence = spread(graph.edges, row_scale(graph.edges), target_weights(graph))
    fits, reach = _nodes_that_fit(graph, influence, limits)
    edges = graph.edges
    if reach < 1 and not fits[reaching(influence, node_threshold)].all():
        pruned = graph if graph.node_mask is not None else prune(graph, node_threshold, edge_threshold)
        assert pruned.node_mask is not None
        fits, reach, edges = pruned.node_mask.numpy().copy(), node_threshold, pruned.kept_edges()
        edge_threshold = 1.0
        # Tokens always stay; a long prompt is no reason to refuse its page.
        _check_size(int(fits.sum()) - len(graph.tokens), edges.nnz, limits)
    return _Held(
        fits,
        edges,
        influence,
        float(influence.sum()),
        whole={"nodes": graph.n, "edges": int(graph.edges.nnz), "untraced": untraced(graph)},
        start={"node": node_threshold, "edge": edge_threshold, "nodeLimit": reach},
        scores=_scores(graph),
    )


def _kept_part(graph: AttributionGraph, limits: PageLimits) -> _Held:
    """What pruning kept, all of which the page shows at first."""
    assert graph.node_mask is not None
    kept, edges = graph.node_mask.numpy().copy(), graph.kept_edges()
    _check_size(int(kept.sum()) - len(graph.tokens), edges.nnz, limits)
    influence, scores = never_dropped(influence_shares(graph)), _scores(graph)
    return _Held(
        kept,
        edges,
        influence,
        max(1.0, float(influence.sum())),
        # The page says of the scores what they count.
        whole={"nodes": int(kept.sum()), "edges": int(edges.nnz), "untraced": untraced(graph) if scores else 0},
        start={"node": 1.0, "edge": 1.0, "nodeLimit": 1.0},
        scores=scores,
        only_kept=True,
    )


def never_dropped(influence: Floats) -> Floats:
    """Return influence with a trace of it for nodes that have none: the page would drop them at any threshold."""
    return np.maximum(influence, _TRACE)


def _scores(graph: AttributionGraph) -> Scores | None:
    """The scores of the whole graph; None where a JSON file does not say them."""
    if (origin := graph.json_origin) is not None:
        known = origin.whole_scores
        return None if known is None else {"replacement": known["replacement"], "completeness": known["completeness"]}
    replacement, completeness = (None if math.isnan(score) else score for score in graph_scores(unpruned(graph)))
    return {"replacement": replacement, "completeness": completeness}


def _hides_template(graph: AttributionGraph) -> bool:
    """Whether the masks hide what pruning always keeps: the template's tokens."""
    if graph.node_mask is None or graph.spans is None or not graph.spans.template:
        return False
    return not any(graph.node_mask[graph.layout.token_index(position)] for position in graph.spans.template)


def _answer_ids(graph: AttributionGraph, ids: Sequence[str]) -> list[str]:
    """The ids of the answer's tokens among the targets; none where the targets are something else."""
    if graph.spans is None or graph.spans.answer is None:
        return []
    try:
        return [ids[graph.layout.logit_index(i)] for i in answer_targets(graph)]
    except ValueError:  # targets that were named by hand
        return []


def cards_of_features(
    cards: Mapping[Key, Card], features: Iterable[Key], limits: PageLimits = LIMITS
) -> dict[Key, dict[str, Any]]:
    """Return the cards of the features that have one.

    Args:
        cards: By (layer, feature).
        features: Those on the page.
        limits: On a page of many features each card shows fewer contexts.
    """
    known = {key: dict(cards[key]) for key in sorted(features) if key in cards}
    shown = max(limits.contexts_of_card, limits.contexts // max(len(known), 1))
    for card in known.values():
        if isinstance(contexts := card.get("contexts"), list | tuple):
            card["contexts"] = list(contexts[:shown])
    return known


def _with_latents(
    cards: dict[Key, dict[str, Any]], graph: AttributionGraph, features: Iterable[Key]
) -> dict[Key, dict[str, Any]]:
    """Add to cards the latents of SAEs that their features write to, where the graph knows them."""
    known = graph.settings.get("latents")
    if not isinstance(known, Mapping):
        return cards
    for layer, feature in features:
        if written := known.get(f"L{layer}/{feature}"):
            cards[layer, feature] = {**cards.get((layer, feature), {}), "latents": list(written)}
    return cards


def _node(graph: AttributionGraph, node: int, name: str) -> PageNode:
    layout = graph.layout
    kind = layout.kind(node)
    found = PageNode(name, _LETTERS[kind], *graph.place_of(node))
    if kind == "feature":
        i = layout.feature_of(node)
        found.feature = graph.feature_of(node)[2]
        found.label = graph.name_of(node)
        found.activation = float(graph.activations[graph.selected_features[i]])
    elif kind == "token":
        found.label = page_label(graph.token_strings[found.position], graph.token_name(found.position))
    elif kind == "logit":
        i = layout.logit_of(node)
        found.label = page_label(graph.logit_strings[i], graph.target_name(i))
        found.probability = float(graph.logit_probabilities[i])
        found.chance = graph.probability_of(i)
        found.is_token = found.chance is not None
    return found


def _fires(graph: AttributionGraph, features: list[Key]) -> dict[Key, list[list[float]]]:
    """Where in the prompt features are active, traced there or not."""
    active = graph.active_features.numpy()
    # One number for both; a prompt has far more active features than the page has nodes.
    wanted = np.array([layer << 40 | feature for layer, feature in features], dtype=np.int64)
    rows = np.flatnonzero(np.isin(active[:, 0] << 40 | active[:, 2], wanted))
    places = firing_places(active[rows].tolist(), graph.activations.numpy()[rows].tolist())
    return {key: places[key] for key in features}


def _nodes_that_fit(graph: AttributionGraph, influence: Floats, limits: PageLimits) -> tuple[Mask, float]:
    """Which nodes go in with all their edges, and up to which node threshold the page can then prune exactly."""
    if graph.n <= limits.live_nodes and graph.edges.nnz <= limits.live_edges:
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
    count = int(((edges_within <= limits.live_edges) & (nodes_within <= limits.live_nodes)).sum())
    values = influence[order]
    # Equally influential nodes go in together or not at all, as in pruning.
    while 0 < count < graph.n and values[count - 1] > 0 and values[count] >= values[count - 1] * (1 - 1e-9):
        count -= 1
    total = values.sum()
    reach = float(values[:count].sum() / total) if total else 1.0
    return always | (rank < count), math.floor(min(reach, 0.999) * 1000) / 1000


def _check_size(nodes: int, edges: int, limits: PageLimits) -> None:
    if nodes > limits.most_nodes or edges > limits.most_edges:
        raise ValueError(
            f"the pruned graph has {nodes:,} nodes and {edges:,} edges, too many for a page (at most "
            f"{limits.most_nodes:,} and {limits.most_edges:,}): prune it further first, for example "
            "crosstrace prune RAW --node-threshold 0.6 -o page.html"
        )
