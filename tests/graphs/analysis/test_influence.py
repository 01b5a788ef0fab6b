"""Influence by one sweep against the definition, Σ w·Aʲ, in dense matrices."""

import numpy as np
import pytest
import scipy.sparse
from graph_samples import CASE_NAMES, case, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstrace.graphs import row_scale, spread, target_weights


def dense_influence(edges, weights):
    """The definition, literally."""
    A = np.abs(edges.toarray().astype(np.float64))
    A /= np.where(A.sum(1, keepdims=True) > 0, A.sum(1, keepdims=True), 1)
    total, power = np.zeros(len(A)), np.eye(len(A))
    while (power := power @ A).any():
        total += weights @ power
    return total


def swept(graph, **how):
    return spread(graph.edges, row_scale(graph.edges), target_weights(graph), **how)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_cases_agree_with_the_definition(name):
    graph, _ = case(name)
    weights = target_weights(graph)
    np.testing.assert_allclose(swept(graph), dense_influence(graph.edges, weights), rtol=1e-12, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), L=st.integers(1, 5), k=st.integers(0, 3), density=st.sampled_from([0.02, 0.2, 0.9]))
def test_random_graphs_agree_with_the_definition(seed, L, k, density):
    graph = random_graph(seed, L=L, P=3, per_layer=5, k=k, density=density)
    weights = target_weights(graph)
    np.testing.assert_allclose(swept(graph), dense_influence(graph.edges, weights), rtol=1e-12, atol=1e-15)


def test_small_blocks_give_the_same():
    graph, _ = case("clt_affine")
    np.testing.assert_allclose(swept(graph, edges_per_block=1), swept(graph), rtol=1e-13)


def test_influence_that_ends_is_the_weight_that_starts():
    # Every row with edges passes all of its influence on, so what arrives at tokens and errors is what left the logits.
    graph, _ = case("skip_transcoder")
    values, layout = swept(graph), graph.layout
    empty = np.flatnonzero(np.diff(graph.edges.indptr)[layout.features] == 0)
    ended = values[layout.errors].sum() + values[layout.tokens].sum() + values[empty].sum()
    assert ended == pytest.approx(float(graph.logit_probabilities.sum()), rel=1e-6)


def test_circles_are_refused():
    edges = scipy.sparse.csr_array(np.array([[0, 1.0], [1.0, 0]], dtype=np.float32))
    with pytest.raises(ValueError, match="node 0 has an edge from node 1"):
        spread(edges, row_scale(edges), np.ones(2))
