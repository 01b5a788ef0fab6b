"""Pruning: the cases' masks exactly, and what must hold for any graph."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse
import torch
from graph_samples import CASE_NAMES, THRESHOLD_PAIRS, case, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstrace.graphs import prune
from crosstrace.graphs.analysis.pruning import entry_shares, influence_shares, reaching, shares_of_entries

graphs = st.builds(
    random_graph, st.integers(0, 10_000), L=st.integers(1, 4), P=st.just(3), per_layer=st.integers(0, 6),
    density=st.sampled_from([0.1, 0.4, 1.0]),
)  # fmt: skip
shares = st.floats(0, 1)


@pytest.mark.parametrize("name", CASE_NAMES)
@pytest.mark.parametrize("thresholds", THRESHOLD_PAIRS, ids=str)
def test_masks_are_the_cases(name, thresholds):
    graph, expected = case(name)
    pruned = prune(graph, *thresholds)
    suffix = "_".join(map(str, thresholds))
    assert torch.equal(pruned.node_mask, expected[f"node_mask_{suffix}"])
    assert torch.equal(pruned.edge_mask, expected[f"edge_mask_{suffix}"])
    torch.testing.assert_close(pruned.influence, expected[f"cumulative_{suffix}"], rtol=0, atol=1e-8)


def test_pruning_shares_edges_and_starts_afresh():
    graph, _ = case("clt_affine")
    once = prune(graph, 0.5, 0.9)
    again = prune(once, 0.8, 0.98)
    direct = prune(graph, 0.8, 0.98)
    assert once.edges is graph.edges
    assert graph.node_mask is None
    assert torch.equal(again.node_mask, direct.node_mask)
    assert torch.equal(again.edge_mask, direct.edge_mask)
    assert direct.settings["pruning"] == {"node_threshold": 0.8, "edge_threshold": 0.98}


@settings(max_examples=40, deadline=None)
@given(graph=graphs, node_threshold=shares, edge_threshold=shares)
def test_a_pruned_graph_has_no_loose_ends(graph, node_threshold, edge_threshold):
    pruned = prune(graph, node_threshold, edge_threshold)
    nodes, edges, layout = pruned.node_mask.numpy(), pruned.edge_mask.numpy(), graph.layout
    assert nodes[layout.tokens].all()
    assert nodes[layout.logits].all()
    assert not edges[~nodes].any()
    assert not edges[:, ~nodes].any()
    assert not (edges & (graph.adjacency.numpy() == 0)).any()
    inner = np.r_[layout.features, layout.errors]
    assert (edges.any(0)[inner] >= nodes[inner]).all()
    assert (edges.any(1)[layout.features] >= nodes[layout.features]).all()


@settings(max_examples=40, deadline=None)
@given(graph=graphs, thresholds=st.tuples(shares, shares).map(sorted))
def test_a_higher_node_threshold_keeps_no_less(graph, thresholds):
    # With every edge kept, so that only the node threshold acts.
    low, high = (prune(graph, threshold, 1.0).node_mask for threshold in thresholds)
    assert bool((high >= low).all())


@settings(max_examples=40, deadline=None)
@given(graph=graphs, thresholds=st.tuples(shares, shares).map(sorted))
def test_a_higher_edge_threshold_keeps_no_less(graph, thresholds):
    low, high = (prune(graph, 0.9, threshold).edge_mask for threshold in thresholds)
    assert bool((high >= low).all())


@pytest.mark.parametrize("seed", range(5))
def test_order_of_the_features_of_a_layer_does_not_matter(seed):
    graph = random_graph(seed, L=3, per_layer=10)
    rng = np.random.default_rng(seed)
    layers = graph.active_features[:, 0].numpy()
    order = np.concatenate([rng.permutation(np.flatnonzero(layers == layer)) for layer in range(3)])
    everything = np.r_[order, np.arange(len(order), graph.n)]
    shuffled = dataclasses.replace(
        graph,
        active_features=graph.active_features[order],
        edges=scipy.sparse.csr_array(graph.edges.toarray()[np.ix_(everything, everything)]),
    )
    expected, found = prune(graph, 0.7, 0.9), prune(shuffled, 0.7, 0.9)
    assert torch.equal(found.node_mask, expected.node_mask[everything])
    assert torch.equal(found.edge_mask, expected.edge_mask[everything][:, everything])
    torch.testing.assert_close(found.influence, expected.influence[everything], rtol=1e-12, atol=0)


def test_thresholds_of_one_keep_everything_with_influence():
    graph, _ = case("clt_plain_gqa")
    pruned = prune(graph, 1.0, 1.0)
    # A node has influence if a target can be reached from it.
    reached = np.zeros(graph.n, dtype=bool)
    reached[graph.layout.logits] = True
    A = graph.adjacency.numpy() != 0
    for _ in range(graph.n_layers + 1):
        reached |= A[reached].any(0)
    reached[graph.layout.tokens] = True
    no_input = ~A.any(1)
    no_input[graph.layout.features.stop :] = False
    assert not (pruned.node_mask.numpy() & ~reached).any()
    assert (pruned.node_mask.numpy() | no_input)[reached].all()


def test_ties_at_the_threshold_are_kept_together():
    values = np.array([4.0, 2.0, 2.0 * (1 + 1e-15), 2.0, 0.0])
    assert reaching(values, 0.5).tolist() == [True, True, True, True, False]
    assert reaching(values, 0.4).tolist() == [True, False, False, False, False]
    assert reaching(values, 0.0).tolist() == [True, False, False, False, False]
    assert reaching(values, 1.0).tolist() == [True, True, True, True, False]
    assert reaching(np.array([0.5, 0.3, 0.2]), 0.8).tolist() == [True, True, False]
    np.testing.assert_allclose(entry_shares(values), [0.4, 0.6, 0.6, 0.6, 1.0])


def test_a_graph_without_influence_keeps_tokens_and_targets():
    graph = random_graph(logit_probabilities=torch.zeros(3))
    pruned = prune(graph)
    assert pruned.kept_nodes() == list(range(graph.layout.tokens.start, graph.n))
    assert pruned.kept_edges().nnz == 0
    assert bool((pruned.influence == 1).all())


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.5", None])
@pytest.mark.parametrize("which", ["node_threshold", "edge_threshold"])
def test_thresholds_outside_zero_to_one_are_named(which, value):
    with pytest.raises(ValueError, match=f"{which} must be between 0 and 1, not "):
        prune(random_graph(), **{which: value})


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_shares_are_told_from_the_entries(values):
    influence = np.array(values, dtype=np.float64)
    assert shares_of_entries(entry_shares(influence)) == pytest.approx(influence / influence.sum(), abs=1e-12)


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=30, unique=True), st.data())
def test_what_is_not_known_makes_no_other_share_larger_than_the_one_before(values, data):
    influence = np.array(values) / sum(values)
    entries = entry_shares(influence)
    entries[list(data.draw(st.sets(st.integers(0, len(values) - 1))))] = np.nan
    found, known = shares_of_entries(entries), np.isfinite(entries)
    assert not found[~known].any()
    order = np.argsort(entries[known])
    assert (np.diff(found[known][order]) <= 1e-12).all()
    assert (found[known] >= influence[known] - 1e-12).all()


def test_shares_of_a_file_whose_ties_enter_at_the_last_of_them():
    assert shares_of_entries(np.array([0.5, 0.5, 0.7, np.nan])).tolist() == pytest.approx([0.25, 0.25, 0.2, 0])


@given(graphs)
def test_influence_shares_are_the_same_raw_and_pruned(graph):
    assert np.array_equal(influence_shares(graph), influence_shares(prune(graph)))
