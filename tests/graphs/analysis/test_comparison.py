"""Comparing graphs: with itself nothing changes, shifted prompts align, and both sides are accounted for."""

from __future__ import annotations

import dataclasses
import json

import pytest
from cases import load_case
from graph_samples import random_graph

from crosstrace.graphs import AttributionGraph, compare, prune, write_comparison
from crosstrace.graphs.analysis.alignment import counterparts
from crosstrace.graphs.analysis.comparison import pruned_alike
from crosstrace.graphs.analysis.subgraphs import restricted
from crosstrace.graphs.page.comparison import comparison_page_data
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    case = load_case("clt_plain_gqa")
    return ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")


@pytest.fixture(scope="module")
def graph(model) -> AttributionGraph:
    return trace(model, load_case("clt_plain_gqa").input_ids)


@pytest.fixture(scope="module")
def other(model) -> AttributionGraph:
    ids = load_case("clt_plain_gqa").input_ids
    return trace(model, [*ids[:5], 40, *ids[5:]])  # one more token in the middle


def keys(graph: AttributionGraph) -> set[tuple[int, int, int]]:
    return {tuple(row) for row in graph.active_features[graph.selected_features].tolist()}


def test_a_graph_and_itself_share_everything_unchanged(graph):
    same = compare(graph, graph)
    assert same.only_a == same.only_b == []
    assert len(same.shared) == len(graph.selected_features)
    assert all(item.change == 0 and item.a == item.b for item in same.shared)
    assert sum(item.a.influence for item in same.shared) < 1


def test_an_inserted_token_shifts_positions(graph, other):
    found = compare(graph, other)
    n_positions = len(graph.tokens)
    assert found.aligned == [(p, p if p < 5 else p + 1) for p in range(n_positions)]
    places = dict(found.aligned)
    assert all(places[item.a.position] == item.b.position for item in found.shared)
    # Before the inserted token nothing is different but influence.
    before = {key for key in keys(graph) if key[1] < 5}
    assert before == {(i.layer, i.a.position, i.feature) for i in found.shared if i.a.position < 5}
    assert {i.layer * 0 + i.b.position for i in found.only_b} >= {5}


def test_every_feature_of_both_is_listed_once(graph, other):
    found = compare(graph, other)
    in_a = [(i.layer, i.a.position, i.feature) for i in found.shared + found.only_a]
    in_b = [(i.layer, i.b.position, i.feature) for i in found.shared + found.only_b]
    assert len(set(in_a)) == len(in_a)
    assert set(in_a) == keys(graph)
    assert len(set(in_b)) == len(in_b)
    assert set(in_b) == keys(other)


def test_the_other_way_round_changes_signs_only(graph, other):
    there, back = compare(graph, other), compare(other, graph)
    assert {(i.layer, i.feature, i.a.position, i.change) for i in there.shared} == {
        (i.layer, i.feature, i.b.position, -i.change) for i in back.shared
    }
    assert [i.feature for i in there.only_a] == [i.feature for i in back.only_b]


def test_pruned_graphs_list_what_either_keeps_and_change_no_influence(graph, other):
    raw, pruned = compare(graph, other), compare(prune(graph, 0.5, 0.9), prune(other, 0.5, 0.9))
    assert 0 < len(pruned.shared) < len(raw.shared)
    changes = {(i.layer, i.feature, i.a.position): i.change for i in raw.shared}
    assert all(changes[i.layer, i.feature, i.a.position] == i.change for i in pruned.shared)
    assert all(i.a.kept or i.b.kept for i in pruned.shared)


def test_json(graph, other, tmp_path):
    found = compare(graph, other)
    write_comparison(found, tmp_path / "c.json")
    read = json.loads((tmp_path / "c.json").read_text())
    assert read["shared"][0]["change"] == found.shared[0].change
    assert read["only_b"][0]["a"] is None
    assert read["only_b"][0]["b"]["position"] == found.only_b[0].b.position


def test_other_models_are_refused(graph):
    other = dataclasses.replace(graph, transcoders_name="something else")
    with pytest.raises(ValueError, match=r"transcoders is '.*' in the first and 'something else' in the second"):
        compare(graph, other)


def test_counterparts_are_the_same_thing_in_both(graph, other):
    found = counterparts(graph, other)
    places = dict(compare(graph, other).aligned)
    assert {node: other_node for other_node, node in counterparts(other, graph).items()} == found
    assert counterparts(graph, graph) == {node: node for node in range(graph.n)}
    for node, partner in found.items():
        kind = graph.layout.kind(node)
        assert other.layout.kind(partner) == kind
        (layer, position), (other_layer, other_position) = graph.place_of(node), other.place_of(partner)
        assert layer == other_layer
        if kind != "logit":
            assert places[position] == other_position
        if kind == "feature":
            assert graph.feature_of(node)[2] == other.feature_of(partner)[2]
    shared = {(item.layer, item.a.position, item.feature) for item in compare(graph, other).shared}
    assert {graph.feature_of(n) for n in found if graph.layout.kind(n) == "feature"} == shared


def test_graphs_pruned_with_different_thresholds_are_pruned_alike():
    graph = random_graph(3)
    wide, narrow = prune(graph, 0.9, 0.98), prune(graph, 0.3, 0.6)
    assert len(narrow.kept_nodes()) < len(wide.kept_nodes())
    for a, b in ((wide, narrow), (wide, graph)):
        first, second = pruned_alike(a, b)
        assert first is a
        assert second.settings["pruning"] == wide.settings["pruning"]
        assert second.kept_nodes() == wide.kept_nodes()
        assert all(item.a.kept and item.b.kept for item in compare(a, b).shared)
    assert pruned_alike(graph, narrow)[0].kept_nodes() == narrow.kept_nodes()
    assert pruned_alike(graph, graph) == (graph, graph)
    by_hand = dataclasses.replace(restricted(graph, nodes=wide.kept_nodes()), settings={})
    assert pruned_alike(wide, by_hand)[1] is by_hand
    starts = [data["start"] for data in comparison_page_data(wide, narrow)["graphs"]]
    assert starts[0] == starts[1]


def test_tokens_of_places_and_targets_are_told_apart():
    strings = ["<bos>", " is", "is", " of", "of"]
    graph = random_graph(1, token_strings=strings, logit_strings=[" Austin", "Austin", " x"])
    found = compare(graph, graph)
    assert {item.place for item in found.shared} <= set(graph.names()[0])
    assert {item.place for item in found.shared if item.token == " is"} == {"␣is"}
    assert found.target_names[0][:2] == ["␣Austin", "Austin"]
