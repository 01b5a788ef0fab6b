"""The graph itself: shapes, completeness, names."""

import dataclasses
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from graph_samples import CASE_NAMES, case, random_graph

from crosstrace.graphs import AttributionGraph, prune


@pytest.mark.parametrize("name", CASE_NAMES)
def test_adjacency_is_the_edges(name):
    graph, expected = case(name)
    torch.testing.assert_close(graph.adjacency, expected["adjacency"], rtol=0, atol=0)
    assert graph.edge_mask is None
    assert graph.completeness_error() < 1e-6


def test_only_nonzero_edges_are_stored_in_order():
    graph = random_graph()
    n = graph.n
    row, values, columns = graph.layout.logit_index(0), [1.0, 0.0, 2.0, 3.0], [4, 1, 0, 0]
    messy = scipy.sparse.csr_array((values, (np.full(4, row), columns)), shape=(n, n))
    edges = dataclasses.replace(graph, edges=messy).edges
    assert (edges.indices.tolist(), edges.data.tolist(), edges.dtype) == ([0, 4], [5.0, 1.0], np.float32)


def test_completeness_error_is_relative_to_all_terms():
    graph = random_graph(seed=3)
    rows = np.r_[graph.layout.features, graph.layout.logits]
    row = int(rows[-1])
    magnitude = np.abs(graph.edges.toarray()[row].astype(np.float64)).sum()
    omitted, unattributed, magnitudes = torch.zeros(graph.n), torch.zeros(graph.n), torch.zeros(graph.n)
    omitted[row], magnitudes[row], unattributed[row] = 1.5, 2.5, -4.0
    values = graph.target_values.clone()
    values[row] += 1.5 - 4.0 + 0.25
    changed = dataclasses.replace(
        graph, omitted=omitted, omitted_magnitude=magnitudes, unattributed=unattributed, target_values=values
    )
    assert graph.completeness_error() < 1e-6
    assert changed.completeness_error() == pytest.approx(0.25 / (magnitude + 2.5 + 4.0), rel=1e-5)
    assert prune(changed).completeness_error() == changed.completeness_error()


def test_completeness_of_a_row_without_terms():
    graph = random_graph()
    empty = dataclasses.replace(graph, edges=scipy.sparse.csr_array((graph.n, graph.n), dtype=np.float32))
    assert empty.completeness_error() == float("inf")
    assert dataclasses.replace(empty, target_values=torch.zeros(graph.n)).completeness_error() == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("activations", torch.zeros(3), r"activations has shape \(3,\), expected \(\d+,\)"),
        ("active_features", torch.zeros(3, 2), r"active_features has shape \(3, 2\), expected \(3, 3\)"),
        ("unattributed", torch.zeros(2, 2), r"unattributed has shape \(2, 2\), expected"),
        ("node_mask", torch.zeros(1), r"node_mask has shape \(1,\), expected"),
        ("edges", scipy.sparse.csr_array((2, 3), dtype=np.float32), r"edges has shape \(2, 3\), expected"),
        ("token_strings", ["a"], "token_strings has 1 entries, expected 5"),
        ("feature_labels", ["a"], "feature_labels has 1 entries, expected"),
        ("logit_probabilities", torch.tensor([0.5, -0.1, 0.2]), "negative weight"),
        ("logit_positions", torch.tensor([0, 0, 5]), r"logit_positions holds an index outside 0\.\.4"),
        ("logit_probabilities", torch.tensor([0.5, float("nan"), 0.2]), "logit_probabilities holds NaN"),
    ],
)
def test_wrong_fields_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        random_graph(**{field: value})


def test_edges_into_errors_and_infinite_edges_are_refused():
    graph = random_graph()
    for row, value, message in ((graph.layout.errors.start, 1.0, "into an error"), (graph.n - 1, np.inf, "NaN")):
        edges = graph.edges.tolil()
        edges[row, 0] = value
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(graph, edges=scipy.sparse.csr_array(edges))


def test_names_read_well():
    graph = random_graph(
        L=2, P=2, per_layer=1, k=2, token_strings=[" Dallas", "\n"], logit_strings=[" Austin", "a - b"],
        logit_layers=torch.tensor([2, 1]), logit_probabilities=torch.tensor([0.5, 1.0]), logit_tokens=[7, -1],
        active_features=torch.tensor([[0, 0, 417], [1, 1, 5]]), feature_labels=["Texas", ""],
    )  # fmt: skip
    layout = graph.layout
    assert graph.feature_of(0) == (0, 0, 417)
    assert graph.feature_key(1) == (1, 5)
    assert [graph.describe(node) for node in (0, 1, layout.error_index(1, 0), layout.token_index(0))] == [
        "Texas (L0/417 @ Dallas)",
        "L1/5 @ ↵",
        "error L1 @ Dallas",
        "token Dallas",
    ]
    assert [graph.describe(node) for node in range(layout.n)[layout.logits]] == [
        "logit Austin (p=0.500)",
        "target a - b",
    ]
    with pytest.raises(ValueError, match="of kind token"):
        graph.feature_of(layout.token_index(0))


def test_tensors_come_to_the_contract_types():
    graph = random_graph(tokens=[3, 1, 4, 1, 5], activations=torch.ones(32, dtype=torch.bfloat16, requires_grad=True))
    assert (graph.tokens.dtype, graph.activations.dtype) == (torch.int64, torch.float32)
    assert not graph.activations.requires_grad
    assert isinstance(graph, AttributionGraph)


def test_edges_beyond_float32_are_refused_without_a_warning():
    graph = random_graph()
    edges = scipy.sparse.csr_array(graph.edges.astype(float))
    edges.data[:] = np.sign(edges.data) * 1e308
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="edges holds NaN or infinity"):
            dataclasses.replace(graph, edges=edges)


def test_a_graph_prints_as_one_line():
    graph = random_graph()
    shown = repr(graph)
    assert len(shown.splitlines()) == 1
    assert len(shown) < 250
    for part in (graph.names()[1][0], f"{len(graph.active_features)} active features", f"{graph.n} nodes"):
        assert part in shown
    assert "pruned to" not in shown
    pruned = prune(graph)
    assert f"pruned to {len(pruned.kept_nodes())} nodes" in repr(pruned)
