"""The influence on one target: nothing is lost on the way, and what moves between positions is what its edges carry."""

import numpy as np
import pytest
import torch
from graph_samples import CASE_NAMES, case, random_graph

from crosstrace.graphs import flow_to, graph_scores, prune
from crosstrace.graphs.analysis.flow import places
from crosstrace.graphs.sparse_rows import rows_of

GRAPHS = [*(case(name)[0] for name in CASE_NAMES), random_graph(3)]


@pytest.mark.parametrize("graph", GRAPHS)
def test_what_arrives_at_tokens_and_errors_is_all_that_left_the_target(graph):
    flow = flow_to(graph)
    features = graph.layout.features
    without_input = np.abs(graph.edges).sum(axis=1)[features] + graph.omitted_magnitude.numpy()[features] == 0
    ended = flow.entering.sum() + flow.unexplained_at.sum() + flow.omitted + flow.through[features][without_input].sum()
    assert ended == pytest.approx(1)
    out = np.bincount(graph.edges.indices, weights=flow.edges, minlength=graph.n)
    assert out[: flow.target] == pytest.approx(flow.through[: flow.target])


def test_of_a_single_target_the_unexplained_share_is_one_minus_the_replacement_score():
    graph = random_graph(1, k=1)
    assert flow_to(graph).unexplained == pytest.approx(1 - graph_scores(graph).replacement, rel=1e-6)


@pytest.mark.parametrize("graph", GRAPHS)
def test_moves_are_what_edges_between_positions_carry(graph):
    flow = flow_to(prune(graph))
    layers, positions = places(graph)
    readers, sources = rows_of(graph.edges), graph.edges.indices
    shares = [move.share for move in flow.moves(most=100, least=0)]
    assert shares == sorted(shares, reverse=True)
    for move in flow.moves(most=100, least=0):
        own = (positions[sources] == move.source) & (positions[readers] == move.target)
        assert move.source != move.target
        assert move.share == pytest.approx(flow.edges[own].sum())
        low, high = move.layers
        within = own & (layers[readers] >= low) & (layers[readers] <= high)
        assert flow.edges[within].sum() >= 0.8 * move.share - 1e-9


def test_the_target_is_the_weightiest_unless_another_is_named():
    graph = random_graph(k=3, logit_probabilities=torch.tensor([0.2, 0.5, 0.1]))
    assert flow_to(graph).target == graph.layout.logit_index(1)
    assert flow_to(graph, graph.layout.logit_index(2)).through[graph.layout.logit_index(2)] == 1
    with pytest.raises(ValueError, match="influence goes to a target, but 0 is"):
        flow_to(graph, 0)
    with pytest.raises(ValueError, match="the graph has no target"):
        flow_to(random_graph(k=0))
