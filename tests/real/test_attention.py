"""Attention of the real model: loadings add up, a dropped head agrees, scores give the pattern, ablations do as predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import WithoutHead, relative_error

from crosstrace.graphs import prune
from crosstrace.graphs.sparse_rows import values_at
from crosstrace.tracer import HeadScores, TracedPrompt, ablation_check, rank_heads, trace
from crosstrace.tracer.attention.loadings import loadings_of
from crosstrace.tracer.validation.heads import head_check

pytestmark = pytest.mark.real

PROMPT = "The Eiffel Tower is in the city of"
BOUND = 1e-5


@pytest.fixture(scope="module")
def traced(model):
    return TracedPrompt(model, prune(trace(model, PROMPT, max_feature_nodes=300)))


def test_heads_and_bypass_add_up_to_every_kept_edge(traced):
    found = rank_heads(traced).loadings
    targets, sources = found.edges.T.numpy()
    weights = torch.from_numpy(values_at(traced.graph.edges, targets, sources))
    whole = found.heads.double().sum(-1) + found.bypass.double()
    for layer in range(traced.graph.n_layers):
        assert relative_error(whole[:, layer], weights) < BOUND


def test_a_loading_is_what_an_edge_loses_without_the_head(traced, folder):
    graph = traced.graph
    reference = WithoutHead(folder, traced.model.transcoders.reader, graph.tokens.tolist(), torch.bfloat16)
    index = {tuple(key): i for i, key in enumerate(reference.active)}
    kept = graph.kept_edges().tocoo()
    pairs = np.stack([kept.row, kept.col], axis=1).astype(np.int64)
    strongest = np.argsort(-np.abs(kept.data))[:60]
    pairs = pairs[strongest]
    n, n_features = len(index), graph.layout.n_features
    number = {node: index[graph.feature_of(node)] for node in range(n_features)}
    number |= {node: node - n_features + n for node in range(n_features, graph.n)}
    rows, columns = (torch.tensor([number[int(node)] for node in side]) for side in pairs.T)
    sources = sorted(set(columns.tolist()))
    column = torch.tensor([sources.index(one) for one in columns.tolist()])
    tokens = graph.logit_tokens.tolist()
    whole = reference.columns(sources, tokens)[rows, column]
    found = loadings_of(traced, pairs)
    for layer, head in ((0, 1), (5, 0), (9, 3), (14, 2)):
        reference.dropped = (layer, head)
        lost = whole - reference.columns(sources, tokens)[rows, column]
        assert float((found.heads[:, layer, head] - lost).norm() / whole.norm()) < BOUND, (layer, head)


def test_scores_give_the_pattern_and_terms_add_up(traced):
    for layer, head in ((2, 1), (5, 3), (12, 0)):  # layer 5 attends to everything, with another rotation
        scores = HeadScores(traced, layer, head, len(traced.graph.tokens) - 1)
        torch.testing.assert_close(scores.scores.softmax(0).float(), scores.probabilities, rtol=1e-3, atol=1e-5)
        terms = scores.terms(int(scores.probabilities.argmax()))
        assert float(terms.query_marginals.sum()) == pytest.approx(terms.score, rel=1e-4, abs=1e-4)
        node = int(terms.query_marginals[:-1].abs().argmax())
        check = ablation_check(scores, int(scores.probabilities.argmax()), [node])
        assert check.measured.score == pytest.approx(check.predicted.score, rel=1e-3, abs=1e-3)


def test_heads_taken_out_change_targets_as_the_loadings_say(traced):
    assert head_check(traced, traced.graph, n_heads=3, n_targets=4).relative_error < 1e-3
