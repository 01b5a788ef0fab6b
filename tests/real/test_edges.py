"""Edges of the real model, by injection in float64: sampled sources into every row."""

from __future__ import annotations

import pytest
import torch
from reference import LinearModel, relative_error

from crosstrace.graphs import AttributionGraph, graph_scores
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace

pytestmark = pytest.mark.real

PROMPT = "The Eiffel Tower is in the city of"
BOUND = 1e-5


def spread(n: int, of: int) -> list[int]:
    """Up to `n` numbers below `of`, evenly spread."""
    return sorted(set(torch.linspace(0, of - 1, min(n, of)).round().long().tolist()))


def check_flipped(
    reference: LinearModel, values: dict[tuple[int, ...], float], index: dict[tuple[int, ...], int]
) -> None:
    """Of hundreds of thousands of features a few lie at their threshold to float32's rounding: those alone may differ."""
    flipped = set(values) ^ set(index)
    assert len(flipped) <= len(index) // 50_000
    for key in flipped:
        layer, _, feature = key
        threshold = float(reference.threshold[layer][feature])
        value = values[key] if key in values else float(reference.activations[index[key]])
        assert value == pytest.approx(threshold, rel=1e-4), key


def check_edges(
    model: ReplacementModel, folder, graph: AttributionGraph, dtype: torch.dtype, sampled: dict[str, int]
) -> None:
    """Compare sampled columns of every kind in all rows, as a whole and row by row in early, middle and late layers."""
    reference = LinearModel(folder, model.transcoders.reader, graph.tokens.tolist(), dtype)
    index = {tuple(key): i for i, key in enumerate(reference.active)}
    active = [tuple(key) for key in graph.active_features.tolist()]
    values = dict(zip(active, graph.activations.tolist(), strict=True))
    check_flipped(reference, values, index)
    common = [key for key in active if key in index]
    expected = torch.tensor([reference.activations[index[key]] for key in common])
    assert relative_error(torch.tensor([values[key] for key in common]), expected) < BOUND
    selected = [index[active[row]] for row in graph.selected_features.tolist()]
    n_active, n_selected, n_positions = len(index), len(selected), len(graph.tokens)
    n_errors = graph.n_layers * n_positions
    # Node numbers in the graph, and among the sources of the reference, which knows all active features.
    live_errors = [node for node in range(n_errors) if node % n_positions >= reference.excluded]
    kinds = {
        "features": [(node, selected[node]) for node in spread(sampled["features"], n_selected)],
        "errors": [
            (n_selected + live_errors[i], n_active + live_errors[i])
            for i in spread(sampled["errors"], len(live_errors))
        ],
        "tokens": [
            (n_selected + n_errors + position, n_active + n_errors + position)
            for position in spread(sampled["tokens"], n_positions)
        ],
    }
    pairs = [pair for kind in kinds.values() for pair in kind]
    expected = reference.columns([source for _, source in pairs], graph.logit_tokens.tolist())
    logits = list(range(len(expected) - len(graph.logit_tokens), len(expected)))
    expected = expected[[*selected, *logits]]
    rows = [*range(n_selected), *range(graph.n - len(graph.logit_tokens), graph.n)]
    found = graph.adjacency[rows][:, [node for node, _ in pairs]]
    start = 0
    for kind, columns in kinds.items():
        block = slice(start, start := start + len(columns))
        assert relative_error(found[:, block], expected[:, block]) < BOUND, kind
    layers = graph.active_features[graph.selected_features, 0]
    assert {int(layer) // 6 for layer in layers} == {0, 1, 2}  # early, middle, late
    checked = [next(iter((layers == layer).nonzero().flatten().tolist())) for layer in layers.unique().tolist()]
    for row in [*checked, *range(n_selected, len(rows))]:
        assert relative_error(found[row], expected[row]) < BOUND, f"row {row}"


def test_edges_of_the_cross_layer_transcoder(model, folder):
    graph = trace(model, PROMPT, max_feature_nodes=400)
    fired = torch.bincount(graph.active_features[:, 0]).double() / (len(graph.tokens) - 1)
    assert fired.min() > 15
    assert fired.max() < 80
    assert graph.completeness_error() < BOUND
    scores = graph_scores(graph)
    assert 0.1 < scores.replacement < scores.completeness < 1
    check_edges(model, folder, graph, torch.bfloat16, {"features": 60, "errors": 40, "tokens": 9})


def test_edges_of_transcoders_with_skips(skip_model, folder):
    graph = trace(skip_model, 'The opposite of "small" is "', max_feature_nodes=400)
    assert graph.completeness_error() < BOUND
    check_edges(skip_model, folder, graph, torch.float32, {"features": 60, "errors": 40, "tokens": 9})


@pytest.mark.slow  # the model's own gradients at 600 tokens: a minute of a core
def test_edges_over_more_positions_than_the_sliding_window(model, gemma, folder):
    text = "The Eiffel Tower is in the city of Paris. " * 60
    ids = model.tokenize(text)[:600]
    assert len(ids) == 600 > model.description.window(0)
    graph = trace(model, ids, max_feature_nodes=60, max_logits=3)
    assert graph.completeness_error() < BOUND
    stored = model.sites.embed(ids)[None].float()
    expected = gemma(inputs_embeds=stored, logits_to_keep=1).logits[0, -1].softmax(-1)
    assert graph.logit_probabilities.tolist() == pytest.approx(expected[graph.logit_tokens].tolist(), abs=1e-4)
    check_edges(model, folder, graph, torch.bfloat16, {"features": 3, "errors": 1, "tokens": 2})
