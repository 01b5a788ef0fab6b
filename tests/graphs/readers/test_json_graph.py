"""Graphs read from JSON: crosstrace's own come back as they were written, others as far as they say, the rest in one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from graph_samples import CASE_NAMES, HOSTILE, case, random_graph
from json_samples import foreign, junk_in, neuronpedia

from crosstrace.graphs import (
    AttributionGraph,
    Figure,
    InexpressibleError,
    compare,
    graph_from_json,
    graph_scores,
    of_answer,
    prune,
    read_graph,
    read_state,
    read_whole_graph,
    story_of,
    strongest_paths,
    to_pydot,
    unpruned,
    view,
    write_json,
)
from crosstrace.graphs.analysis.comparison import pruned_alike
from crosstrace.graphs.analysis.pruning import influence_shares
from crosstrace.graphs.exporters.neuronpedia import graph_as_json
from crosstrace.graphs.page.comparison import comparison_page_data
from crosstrace.graphs.page.data import page_data
from crosstrace.graphs.saved_state import SavedState
from crosstrace.graphs.viewer_ids import node_ids


def round_trip(graph: AttributionGraph) -> AttributionGraph:
    return graph_from_json(json.loads(json.dumps(graph_as_json(graph))))


def kept_part(graph: AttributionGraph) -> AttributionGraph:
    """What pruning kept, as a plain reference: the same nodes without the other features and edges."""
    assert graph.node_mask is not None
    features = [node for node in graph.kept_nodes() if node < graph.layout.n_features]
    rows = np.r_[features, np.arange(graph.layout.n_features, graph.n)].astype(np.int64)
    active = graph.selected_features[torch.tensor(features, dtype=torch.int64)]
    return dataclasses.replace(
        graph,
        active_features=graph.active_features[active],
        activations=graph.activations[active],
        selected_features=torch.arange(len(features)),
        feature_labels=[graph.name_of(node) for node in features],
        edges=graph.kept_edges()[rows][:, rows],
        edge_mask_sparse=graph.edge_mask_sparse[rows][:, rows],
        **{
            name: getattr(graph, name)[torch.from_numpy(rows)]
            for name in ("unattributed", "omitted", "omitted_magnitude", "target_values", "node_mask", "influence")
        },
    )


def assert_same(found: AttributionGraph, graph: AttributionGraph) -> None:
    """Everything that a JSON file holds of a pruned graph is in the one that was read from it, to the bit."""
    expected = kept_part(graph)
    for name in ("active_features", "activations", "tokens", "logit_tokens", "logit_probabilities", "logit_positions",
                 "logit_layers", "node_mask"):  # fmt: skip
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("token_strings", "logit_strings", "prompt", "model_name", "transcoders_name", "n_layers", "spans"):
        assert getattr(found, name) == getattr(expected, name), name
    k = range(len(found.logit_strings))
    assert [found.probability_of(i) for i in k] == [expected.probability_of(i) for i in k]
    assert (found.edges != expected.kept_edges()).nnz == 0
    assert (found.kept_edges() != expected.kept_edges()).nnz == 0
    kept = found.kept_nodes()
    assert found.influence is not None
    assert expected.influence is not None
    assert torch.equal(found.influence[kept], expected.influence[kept])
    assert [found.describe(node) for node in kept] == [expected.describe(node) for node in kept]
    left_out = ("read_from_json", "guesses", "latents")
    assert {key: value for key, value in found.settings.items() if key not in left_out} == {
        key: value for key, value in expected.settings.items() if key not in left_out
    }


SHAPES = {
    "plain": {},
    "targets of every kind": {
        "k": 5, "logit_tokens": [7, -1, -1, 8, 7], "logit_positions": [4, 4, 4, 4, 2], "logit_layers": [4, 4, 2, 4, 4],
        "logit_strings": ["a", "a - b", "L2/417", 'say "hi" (p=0.5)', "a"], "logit_probabilities": [0.2] * 5,
        "target_probabilities": [0.5, 0, 0, 0.125, 0.3],
    },
    "hostile": {
        "L": 2, "P": len(HOSTILE), "k": len(HOSTILE), "token_strings": HOSTILE, "logit_strings": HOSTILE,
        "prompt": "".join(HOSTILE), "model_name": HOSTILE[0], "transcoders_name": HOSTILE[1],
    },
    "named by guesses": {"feature_labels": [], "settings": {"guesses": {f"L{i % 4}/{i}": "→ AG, ag" for i in range(500)}}},
    "a conversation": {
        "settings": {
            "conversation": {"turns": [["user", 1, 3]], "answer": [4, 5], "template": [0, 3], "log_probabilities": [-0.5]},
            "fingerprints": {"model/2": "a", "transcoders/2": "b"},
        },
    },
    "without influence": {"density": 0.0},
    "without targets": {"k": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_crosstraces_own_json_comes_back_as_it_was_written(name, seed):
    graph = prune(random_graph(seed, **SHAPES[name]), 0.9, 0.9)
    found = round_trip(graph)
    assert_same(found, graph)
    kept = [node for node in graph.kept_nodes() if node < graph.layout.n_features]
    assert [found.name_of(i) for i in range(len(kept))] == [graph.name_of(node) for node in kept]
    assert_same(round_trip(found), graph)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_the_cases_come_back_in_a_file(tmp_path, name):
    graph = prune(case(name)[0])
    write_json(graph, tmp_path / "g.json")
    assert_same(read_graph(tmp_path / "g.json"), graph)


def test_scores_and_counts_are_the_files_own():
    raw = random_graph(omitted_magnitude=torch.ones(random_graph().n))
    graph = prune(raw, 0.7, 0.8)
    origin = round_trip(graph).json_origin
    assert origin is not None
    assert origin.scores is not None
    assert origin.whole_scores is not None
    assert (origin.n_active, origin.n_traced) == (len(raw.active_features), len(raw.selected_features))
    assert tuple(graph_scores(round_trip(graph))) == tuple(graph_scores(graph))
    assert (origin.whole_scores["replacement"], origin.whole_scores["completeness"]) == tuple(graph_scores(raw))
    assert graph_as_json(round_trip(graph))["metadata"] == graph_as_json(graph)["metadata"]
    of_raw = round_trip(raw).json_origin
    assert of_raw is not None
    assert of_raw.whole_scores == of_raw.scores
    assert all(math.isnan(score) for score in graph_scores(graph_from_json(foreign())))


def test_a_graph_from_json_stays_one_in_safetensors(tmp_path):
    found = round_trip(prune(random_graph()))
    found.save(tmp_path / "g.safetensors")
    again = read_graph(tmp_path / "g.safetensors")
    assert again.json_origin == found.json_origin
    assert math.isnan(again.completeness_error())


def test_influence_of_features_is_the_whole_graphs():
    graph = prune(random_graph(5, per_layer=20), 0.8, 0.9)
    found, expected = round_trip(graph), influence_shares(graph)
    kept = [node for node in graph.kept_nodes() if node < graph.layout.n_features]
    # Nodes that pruning dropped as loose ends stood between kept ones: their share is not known, and is in the next one's.
    loose = expected[expected >= expected[kept].min()].sum() - expected[kept].sum()
    difference = influence_shares(found)[: len(kept)] - expected[kept]
    assert difference.min() > -1e-12
    assert difference.sum() <= loose + 1e-12


def test_stories_paths_and_figures_are_those_of_what_pruning_kept():
    graph = prune(random_graph(2, per_layer=12), 0.8, 0.9)
    found, expected = round_trip(graph), kept_part(graph)
    said, plain = story_of(found).sentences(), story_of(expected).sentences()
    assert said[0] == plain[0].replace(" on out0 ", " on out0, as far as pruning kept it, ")
    assert said[1:] == plain[1:]
    assert strongest_paths(found, n=5) == strongest_paths(expected, n=5)
    assert (
        to_pydot(found, Figure(everything=True)).to_string() == to_pydot(expected, Figure(everything=True)).to_string()
    )


def test_where_everything_is_kept_the_page_is_that_of_the_graph():
    graph = prune(random_graph(3, density=1.0), 1.0, 1.0)
    found, expected = page_data(round_trip(graph)), page_data(graph)
    kept = [expected["nodes"]["id"].index(name) for name in found["nodes"]["id"]]
    for column, values in found["nodes"].items():
        assert list(values) == [expected["nodes"][column][i] for i in kept]  # type: ignore[literal-required]
    for part in ("suggested", "cards", "tokens", "names", "prompt", "model", "layers", "scores"):
        assert found[part] == expected[part], part
    assert found["stories"] == expected["stories"]
    said = to_pydot(round_trip(graph)).to_string()
    assert (
        said.replace(", as far as pruning kept it,", "").split("Of the influence")[0]
        == (to_pydot(graph).to_string().split("Of the influence")[0])
    )
    assert found["notes"] == ["Made from a JSON file: what its pruning dropped is not here."]
    assert found["start"] == {"node": 1.0, "edge": 1.0, "nodeLimit": 1.0}
    assert found["onlyKept"]
    assert not expected["onlyKept"]


def test_pins_and_groups_come_back(tmp_path):
    graph = prune(random_graph())
    nodes = graph.kept_nodes()[:3]
    write_json(graph, tmp_path / "g.json", state=SavedState(nodes, [("both", nodes[:2])]))
    found = read_graph(tmp_path / "g.json")
    ids = node_ids(graph)
    assert page_data(found)["qParams"]["supernodes"] == [["both", *(ids[node] for node in nodes[:2])]]
    assert read_state(tmp_path / "g.json", found).supernodes == [("both", [0, 1])]
    assert graph_as_json(found)["qParams"] == json.loads((tmp_path / "g.json").read_text())["qParams"]


def test_what_needs_the_whole_graph_says_what_to_use_instead(tmp_path):
    graph = prune(
        random_graph(settings=SHAPES["a conversation"]["settings"], k=1, logit_tokens=[14], logit_positions=[3])
    )
    write_json(graph, tmp_path / "g.json")
    found = read_graph(tmp_path / "g.json")
    for use, what in (
        (lambda: prune(found), "pruning"),
        (lambda: of_answer(found, 0), "reading influence on a part of the answer"),
    ):
        with pytest.raises(ValueError, match=rf"^{what} needs the whole graph.*use the trace's \.safetensors file$"):
            use()
    with pytest.raises(ValueError, match=r"g\.json: validation needs the whole graph"):
        read_whole_graph(tmp_path / "g.json", "validation")
    assert unpruned(found) is found
    assert math.isnan(found.completeness_error())


def test_a_graph_and_its_json_compare_as_the_same():
    graph = prune(random_graph(4, per_layer=20), 0.7, 0.8)
    found = round_trip(graph)
    for pair in ((graph, found), (found, graph), (prune(graph, 0.9, 0.95), found)):
        alike = pruned_alike(*pair)
        assert all(one.settings["pruning"] == {"node_threshold": 0.7, "edge_threshold": 0.8} for one in alike)
        comparison = compare(*pair)
        assert not comparison.only_a
        assert not comparison.only_b
        assert len(comparison.shared) == len(found.selected_features)
        data = comparison_page_data(*pair)
        assert [set(page["nodes"]["id"]) for page in data["graphs"]] == [set(page_data(found)["nodes"]["id"])] * 2
        assert data["graphs"][0]["start"]["node"] == 1.0


def test_circuit_tracers_graph_is_read():
    graph = graph_from_json(foreign())
    assert graph.active_features.tolist() == [[0, 1, 1], [1, 1, 7]]
    assert graph.activations.tolist() == [1.5, 2.5]
    assert [graph.name_of(node) for node in range(2)] == ["", "Texas"]
    assert (graph.tokens.tolist(), graph.token_strings) == ([5, -1], ["a", " b"])
    assert (graph.logit_tokens.tolist(), graph.logit_strings, graph.n_layers) == ([9], [" c"], 2)
    assert graph.probability_of(0) == 0.625
    kept = [graph.describe(node) for node in graph.kept_nodes()]
    assert kept == ["L0/1 @ b", "Texas (L1/7 @ b)", "error L1 @ b", "token a", "logit c (p=0.625)"]
    assert sorted(graph.edges.data.tolist()) == [-0.5, 1.0, 2.0]
    origin = graph.json_origin
    assert origin is not None
    assert (origin.scores, origin.n_active, origin.knows_layers) == (None, None, True)
    assert len(origin.notes) == 3
    assert page_data(graph)["stories"]


def test_neuronpedias_graph_is_read_and_its_groups_get_the_graphs_names():
    graph = graph_from_json(neuronpedia())
    assert graph.settings["max_n_logits"] == 10
    assert graph.settings["pruning"] == {"node_threshold": 0.8, "edge_threshold": 0.85}
    assert graph.edges[[graph.layout.logit_index(0)], [graph.layout.error_index(1, 1)]] == 0.25
    assert page_data(graph)["qParams"]["pinnedIds"] == ["1_-1_1", "1_7_1"]


def test_what_a_file_does_not_say_is_not_known():
    content = foreign()
    del content["metadata"]
    content["nodes"][4]["layer"] = "1"  # below what it reads
    for node in content["nodes"]:
        node["influence"] = None
    graph = graph_from_json(content)
    origin = graph.json_origin
    assert origin is not None
    assert not origin.knows_layers
    assert not origin.knows_influence
    assert graph.n_layers == 2
    assert graph.token_strings == ["a", ""]
    # One path alone: each of its nodes has the same influence.
    assert influence_shares(graph)[graph.kept_nodes()].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3, 0])


def changed(node: int, **values: object) -> dict[str, object]:
    content = copy.deepcopy(foreign())
    content["nodes"][node] |= values
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            changed(0, feature_type="lorsa"),
            "node '1_7_1' is of type 'lorsa', which a graph of transcoders does not have",
        ),
        (changed(2, feature_type="SAE error"), "node '0_1_1#2' is of type 'SAE error'"),
        (changed(0, feature_type=None), "node '1_7_1' has no type"),
        (changed(0, activation=None), "node '1_7_1' has no activation"),
        (changed(0, activation=1e39), "node '1_7_1' has no activation"),
        (changed(0, node_id="1_x_1", feature=None), "node '1_x_1' has no feature number"),
        (changed(0, layer="E"), "node '1_7_1' has no layer"),
        (changed(0, layer="-1"), "node '1_7_1' has no layer"),
        (changed(0, ctx_idx=None), "node '1_7_1' has no position"),
        (changed(1, node_id="1_7_1", layer="1"), "node '1_7_1#2' is at the place of another node"),
        (changed(4, node_id="out", feature=None), "node 'out' does not say which token it is"),
        (changed(0, layer="9999", ctx_idx=150_000), "10,000 layers of 150,001 positions are more than a graph holds"),
    ],
)
def test_what_no_graph_can_express_is_named_and_view_opens_it(tmp_path, content, said):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InexpressibleError) as problem:
        read_graph(path)
    assert str(problem.value).startswith(f"{path}: {said}")
    assert str(problem.value).endswith(f"; crosstrace view {path} opens it")
    view(path, tmp_path / "g.html")


@pytest.mark.parametrize(
    "make", [foreign, neuronpedia, lambda: graph_as_json(prune(random_graph(L=2, P=3, per_layer=2)))]
)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_in_a_file_it_makes_a_graph_or_one_line(make, seed):
    made, said = 0, set()
    for content in junk_in(make(), seed, pairs=50):
        try:
            graph = graph_from_json(content)
        except ValueError as problem:
            said.add(str(problem))
            continue
        made += 1
        json.dumps(graph.settings, allow_nan=False)
        if made % 5 == 0:
            page_data(graph)
            json.dumps(graph_as_json(graph), allow_nan=False)
    assert made > 30
    assert said
    assert not any("\n" in line for line in said)
