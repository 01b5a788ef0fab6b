"""The table: what it shows is the graph's, and no text in a graph can break it."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from cases import load_case
from rich.console import Console

from crosstrace.graphs import AttributionGraph, graph_scores, prune, strongest_paths
from crosstrace.graphs.numbers import share
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace
from crosstrace.tracer.terminal.graph import show_graph


@pytest.fixture(scope="module")
def graph() -> AttributionGraph:
    case = load_case("clt_plain_gqa")
    raw = trace(ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu"), case.input_ids)
    return dataclasses.replace(raw, feature_labels=[f"label-{i}" for i in range(len(raw.selected_features))])


def shown(graph: AttributionGraph, **settings: int) -> str:
    console = Console(file=io.StringIO(), width=160, no_color=True)
    show_graph(graph, console, **settings)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_targets_scores_and_counts(graph):
    text = shown(graph)
    for string, probability in zip(graph.logit_strings, graph.logit_probabilities.tolist(), strict=True):
        assert any(line.split()[:1] == [string] and f"{probability:.3f}" in line for line in text.splitlines())
    replacement, completeness = graph_scores(graph)
    assert f"replacement score {replacement:.3f}" in text
    assert f"completeness score {completeness:.3f}" in text
    assert f"{len(graph.active_features)} active features" in text


def test_strongest_features_are_those_with_the_most_influence(graph):
    # Influence as the dense definition has it: sum over k of w A^k.
    absolute = graph.adjacency.double().abs().numpy()
    a = absolute / np.maximum(absolute.sum(1, keepdims=True), 1e-300)
    weights = np.zeros(graph.n)
    weights[graph.layout.logits] = graph.logit_probabilities
    influence, step = np.zeros(graph.n), weights
    while (step := step @ a).any():
        influence += step
    top = np.argsort(-influence[graph.layout.features])[:4]
    rows = [
        line.split()[0] for line in shown(graph, features=4, paths=0).splitlines() if line.lstrip().startswith("label-")
    ]
    assert rows == [f"label-{i}" for i in top]


def test_paths_are_the_strongest(graph):
    text = shown(graph, features=0, paths=3)
    for path in strongest_paths(prune(graph), n=3):
        assert share(path.strength) in text


def test_scores_are_of_the_whole_graph_pruned_or_not(graph):
    assert f"replacement score {graph_scores(graph).replacement:.3f}" in shown(prune(graph, 0.5, 0.9))


def test_raw_and_pruned_show_the_same_features(graph):
    assert shown(graph).splitlines()[-8:] == shown(prune(graph)).splitlines()[-8:]


@pytest.mark.parametrize(
    "hostile", ["[/red]", "[bold]x", "\x1b[31m", "a\nb", "\ud800", "<>&\"'\\", "[link=x]"], ids=repr
)
def test_hostile_strings_are_shown_as_text(graph, hostile):
    evil = dataclasses.replace(
        graph,
        prompt=hostile,
        token_strings=[hostile] * len(graph.tokens),
        logit_strings=[hostile] * len(graph.logit_strings),
        feature_labels=[hostile] * len(graph.feature_labels),
        model_name=hostile,
    )
    text = shown(evil)
    assert "\x1b" not in text
    text.encode("utf-8")
    if hostile.startswith("["):
        assert text.count(hostile) > 10


def test_graph_without_features(graph):
    case = load_case("clt_plain_gqa")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    assert "Strongest paths" in shown(trace(model, [2]))
