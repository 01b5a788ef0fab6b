"""Replacement and completeness scores."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse
import torch
from cases import load_case
from graph_samples import CASE_NAMES, case, random_graph

from crosstrace.graphs import graph_scores, prune
from crosstrace.graphs.analysis.scores import untraced, what_scores_count
from crosstrace.graphs.exporters.neuronpedia import graph_as_json
from crosstrace.graphs.page.data import page_data
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace


@pytest.mark.parametrize("name", CASE_NAMES)
def test_scores_are_the_cases(name):
    graph, expected = case(name)
    assert tuple(graph_scores(graph)) == pytest.approx(expected["scores"].tolist(), abs=1e-6)


def tiny(omitted=0.0):
    """One layer, one position, one feature: logit ← 2·feature, −1·error, 1·token; feature ← 3·token. By hand."""
    graph = random_graph(L=1, P=1, per_layer=1, k=1, active_features=torch.tensor([[0, 0, 9]]))
    dense = np.zeros((4, 4), dtype=np.float32)
    dense[3] = [2, -1, 1, 0]
    dense[0, 2] = 3
    magnitude = torch.tensor([0.0, 0.0, 0.0, omitted])
    return dataclasses.replace(graph, edges=scipy.sparse.csr_array(dense), omitted_magnitude=magnitude)


def test_scores_by_hand():
    # Influence: feature 1/2, error 1/4, token 1/4 + 1/2. Rows: logit 3/4 without error, the others wholly.
    assert tuple(graph_scores(tiny())) == pytest.approx((0.75, 1 - 0.25 / 2.5))


def test_what_a_cap_leaves_out_counts_as_error():
    # With 4 more of omitted input, the logit's row: feature 1/4, errors 1/8 + 1/2, token 1/8; token in all 3/8.
    assert tuple(graph_scores(tiny(omitted=4.0))) == pytest.approx((0.375, 1 - 0.625 / (1 + 0.25 + 0.125 + 0.375)))


def test_scores_of_a_pruned_graph_are_those_of_what_is_kept():
    pruned = prune(case("clt_affine")[0])
    alone = dataclasses.replace(pruned, edges=pruned.kept_edges(), node_mask=None, edge_mask_sparse=None)
    assert graph_scores(pruned) == graph_scores(alone)
    assert graph_scores(pruned) != graph_scores(case("clt_affine")[0])


def test_nothing_to_explain():
    assert tuple(graph_scores(random_graph(density=0.0))) == pytest.approx((math.nan, math.nan), nan_ok=True)
    assert tuple(graph_scores(random_graph(k=0))) == pytest.approx((math.nan, math.nan), nan_ok=True)


def test_what_the_scores_count_is_said():
    graph = random_graph()
    assert what_scores_count(graph) == "the whole graph"
    assert untraced(graph) == 0
    names = ("active_features", "activations")
    more = {name: torch.cat([getattr(graph, name), getattr(graph, name)[-3:]]) for name in names}
    capped = prune(dataclasses.replace(graph, **more, omitted_magnitude=torch.ones(graph.n)))
    n = len(capped.active_features)
    expected = f"what pruning kept; 3 of {n} active features were not traced and count as errors"
    assert what_scores_count(capped) == expected
    assert graph_as_json(capped)["metadata"]["scores"]["counted"] == expected
    assert page_data(capped)["whole"]["untraced"] == 3


def test_scores_only_rise_with_the_number_of_features_traced(tmp_path):
    """So those of a capped graph are lower bounds, as tables say."""
    found = load_case("clt_plain_gqa")
    model = ReplacementModel.from_pretrained(found.model, found.transcoders, device="cpu")
    graphs = [trace(model, found.input_ids, max_feature_nodes=n, progress=False) for n in (5, 20, 60, 120, None)]
    assert [untraced(graph) for graph in graphs] == sorted({untraced(graph) for graph in graphs}, reverse=True)
    scores = [graph_scores(graph) for graph in graphs]
    assert scores == sorted(scores)
    completeness = [one.completeness for one in scores]
    assert completeness == sorted(completeness)
