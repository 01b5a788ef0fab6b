"""The table: what it shows is the graph's, and no text in a graph can break it."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from cases import load_case
from rich.console import Console

from crosstrace.graphs import AttributionGraph, graph_scores, prune, strongest_paths, trivial_share
from crosstrace.graphs.cards.labels import GUESS_LEGEND
from crosstrace.graphs.numbers import share
from crosstrace.replacement_model import ReplacementModel, demo
from crosstrace.tracer import trace, with_guesses
from crosstrace.tracer.terminal.features.feature import show_feature
from crosstrace.tracer.terminal.graph import LeftOut, show_graph


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
    for path in strongest_paths(prune(graph), n=3, telling=True):
        assert share(path.strength) in text
    assert f"together {share(trivial_share(prune(graph)))}" in text


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


def test_names_are_labels_or_guesses_in_tables_and_paths(graph):
    layer, feature = graph.feature_key(0)
    guesses = {
        f"L{graph.feature_key(i)[0]}/{graph.feature_key(i)[1]}": "→ AG, ag" for i in range(graph.layout.n_features)
    }
    nameless = dataclasses.replace(graph, feature_labels=[], settings={**graph.settings, "guesses": guesses})
    text = shown(nameless)
    assert any(line.lstrip().startswith("→ AG, ag ") for line in text.splitlines())
    assert "(→ AG, ag) [" in text  # a guess has an arrow of its own, which is not the path's
    assert f"→ AG, ag (L{layer}/{feature}" in nameless.describe(0)
    assert "AG" not in shown(graph)  # labels come first
    automatic = dataclasses.replace(graph, feature_labels=["~ in → Rome, Oslo"] * graph.layout.n_features)
    assert "(~ in → Rome, Oslo) [" in shown(automatic)
    assert GUESS_LEGEND not in text
    weak = dict.fromkeys(guesses, "→? AG, ag")
    text = shown(dataclasses.replace(nameless, settings={**graph.settings, "guesses": weak}))
    assert "(→? AG, ag) [" in text
    assert text.count(GUESS_LEGEND) == 1  # what the mark means


def test_what_is_trivial_can_be_left_out(graph):
    last = len(graph.tokens) - 1
    at_last = f"({last})"
    assert any(at_last in line for line in shown(graph, paths=0).splitlines() if "label-" in line)
    text = shown(graph, left_out=LeftOut(last_position=True), features=1000)
    listed = [line for line in text.split("Strongest paths")[0].splitlines() if line.lstrip().startswith("label-")]
    assert listed
    assert not any(at_last in line for line in listed)
    n_kept = int(prune(graph).node_mask[graph.layout.features].sum())
    assert f"of {n_kept} kept, {n_kept - len(listed)} left out" in text
    assert "with 1 feature or more" in text
    text = shown(graph, features=0, left_out=LeftOut(path_features=2))
    steps = [line for line in text.split("or more")[1].splitlines() if "→" in line]
    assert steps
    assert all(line.count("[L") >= 2 for line in steps)


def test_features_that_fire_often_can_be_left_out_where_cards_know_it(graph):
    keys = {graph.feature_key(node) for node in range(graph.layout.n_features)}

    class Rates(dict):
        def firing_rate(self, key):
            return self[key]

    often, seldom = sorted(keys)[::2], sorted(keys)[1::2]
    cards = Rates(dict.fromkeys(often, 0.5) | dict.fromkeys(seldom[1:], 0.01))  # one without a card
    left_out = LeftOut(max_firing_rate=0.1)
    kept = left_out.listed(graph, range(graph.layout.n_features), cards)
    assert {graph.feature_key(node) for node in kept} == set(seldom)
    assert left_out.listed(graph, range(3), None) == [0, 1, 2]


def test_features_that_a_cap_left_out_are_told_with_the_scores(graph):
    assert "of the whole graph" in shown(graph)
    names = ("active_features", "activations")
    more = {name: torch.cat([getattr(graph, name), getattr(graph, name)[-2:]]) for name in names}
    text = shown(dataclasses.replace(graph, **more, omitted_magnitude=torch.ones(graph.n)))
    assert "of the whole graph" not in text
    assert "at least, as\n2 features without a row count as errors" in text


def test_a_feature_that_pruning_dropped_has_its_name_and_those_of_its_neighbours(tmp_path):
    model = ReplacementModel.demo("cpu")
    graph = dataclasses.replace(trace(model, demo.DALLAS_PROMPT, progress=False), feature_labels=[])
    pruned = with_guesses(prune(graph, 0.3, 0.5), model, beyond_kept=1000)
    dropped = [node for node in range(graph.layout.n_features) if not pruned.node_mask[node] and pruned.name_of(node)]
    node = next(node for node in dropped if any(pruned.edges[[node]].toarray()[0, dropped]))
    console = Console(file=io.StringIO(), width=160, no_color=True, color_system=None)
    show_feature(pruned, pruned.feature_key(node), None, console)
    text = console.file.getvalue()
    assert pruned.name_of(node) in text.splitlines()[0]
    row = np.abs(pruned.edges[[node]].toarray()[0])
    strongest = [source for source in np.argsort(-row, kind="stable")[:4].tolist() if row[source]]
    for source in strongest:
        assert pruned.describe(source) in " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_heading_says_the_size_whatever_the_names(graph, width):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    show_graph(dataclasses.replace(graph, model_name="/a/long/way/" * 5, transcoders_name="/another/way/" * 5), console)
    heading = console.file.getvalue()
    assert f"{len(graph.tokens)} tokens, {graph.n_layers} layers" in heading
