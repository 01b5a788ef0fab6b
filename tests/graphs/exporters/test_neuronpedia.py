"""The JSON export: what viewers and Neuronpedia's uploader need of it."""

import dataclasses
import json
import re

import pytest
import torch
from graph_samples import CASE_NAMES, HOSTILE, case, random_graph

from crosstrace.graphs import prune, write_json
from crosstrace.graphs.viewer_ids import cantor_pairing

REQUIRED = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
OWN = {"influence", "activation", "token_prob", "is_target_logit", "run_idx", "reverse_ctx_idx"}


def written(graph, tmp_path, **names):
    path = tmp_path / "g.json"
    write_json(graph, path, **names)
    assert path.read_bytes().isascii()
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_shape_of_the_file(tmp_path):
    graph = prune(random_graph(), 0.7, 0.9)
    content = written(graph, tmp_path)
    assert set(content) == {"metadata", "qParams", "nodes", "links"}
    metadata = content["metadata"]
    assert metadata["prompt_tokens"] == graph.token_strings
    assert metadata["prompt"] == graph.prompt
    assert metadata["node_threshold"] == 0.7
    assert metadata["schema_version"] == 1
    assert metadata["info"]["generator"]["name"] == "crosstrace"
    assert metadata["generation_settings"]["max_logits"] == 3
    assert (metadata["slug"], metadata["scan"]) == ("tok0-tok1-tok2-tok3-tok4", "model")
    assert {key: content["qParams"][key] for key in ("pinnedIds", "supernodes")} == {"pinnedIds": [], "supernodes": []}
    assert all(set(node) == REQUIRED | OWN for node in content["nodes"])


@pytest.mark.parametrize("name", CASE_NAMES)
@pytest.mark.parametrize("pruned", [False, True])
def test_ids_are_unique_and_links_are_the_edges(tmp_path, name, pruned):
    graph = case(name)[0]
    graph = prune(graph) if pruned else graph
    content = written(graph, tmp_path)
    nodes, links = content["nodes"], content["links"]
    kept = graph.kept_nodes()
    assert len(nodes) == len(kept)
    assert len({node["node_id"] for node in nodes}) == len({node["jsNodeId"] for node in nodes}) == len(nodes)
    number = {node["node_id"]: kept[i] for i, node in enumerate(nodes)}
    edges = graph.kept_edges().tocoo()
    expected = {(int(s), int(t)): float(w) for t, s, w in zip(edges.row, edges.col, edges.data, strict=True)}
    assert {(number[link["source"]], number[link["target"]]): link["weight"] for link in links} == expected
    assert len(links) == len(expected)


def test_each_kind_of_node(tmp_path):
    graph = prune(random_graph(), 1.0, 1.0)
    nodes = dict(zip(graph.kept_nodes(), written(graph, tmp_path)["nodes"], strict=True))
    L, P, layout = graph.n_layers, len(graph.tokens), graph.layout
    for i, node in nodes.items():
        assert node["influence"] == float(graph.influence[i])
        assert (node["run_idx"], node["reverse_ctx_idx"]) == (0, 0)
        match layout.kind(i):
            case "feature":
                layer, position, feature = graph.feature_of(i)
                assert node["node_id"] == f"{layer}_{feature}_{position}"
                assert node["feature"] == (layer + feature) * (layer + feature + 1) // 2 + feature
                assert (node["layer"], node["ctx_idx"]) == (str(layer), position)
                assert node["feature_type"] == "cross layer transcoder"
                assert node["activation"] == float(graph.activations[i])
                assert node["clerp"] == graph.feature_labels[i]
            case "error":
                layer, position = layout.error_of(i)
                assert node["node_id"] == f"{layer}_-1_{position}"
                assert (node["feature"], node["feature_type"]) == (-1, "mlp reconstruction error")
            case "token":
                position = layout.token_of(i)
                assert node["node_id"] == f"E_{position + 10}_{position}"
                assert (node["layer"], node["feature_type"]) == ("E", "embedding")
            case "logit":
                j = layout.logit_of(i)
                assert node["node_id"] == f"{L + 1}_{100 + j}_{P - 1}"
                assert (node["layer"], node["feature_type"]) == (str(L + 1), "logit")
                probability = float(graph.logit_probabilities[j])
                assert node["clerp"] == f'Output " out{j}" (p={probability:.3f})'
                assert node["token_prob"] == probability
                assert node["is_target_logit"] is (j == 0)


def test_cantor_numbers_give_layer_and_feature_back():
    pairs = [(layer, feature) for layer in range(30) for feature in range(40)]
    assert len({cantor_pairing(*pair) for pair in pairs}) == len(pairs)
    assert cantor_pairing(0, 41) == 902
    assert cantor_pairing(25, 262143) == (262168 * 262169) // 2 + 262143


def test_hostile_strings_survive_and_viewers_can_read_outputs(tmp_path):
    k = len(HOSTILE)
    graph = random_graph(L=2, P=k, k=k, token_strings=HOSTILE, logit_strings=HOSTILE, prompt="".join(HOSTILE))
    content = written(graph, tmp_path)
    assert content["metadata"]["prompt_tokens"] == HOSTILE
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", content["metadata"]["slug"])
    outputs = [node["clerp"] for node in content["nodes"] if node["feature_type"] == "logit"]
    for clerp, token, probability in zip(outputs, HOSTILE, graph.logit_probabilities.tolist(), strict=True):
        # As the public viewers take it apart.
        assert clerp.split('"')[1].replace("”", '"').replace("(p＝", "(p=") == token
        assert float(clerp.split("(p=")[1].split(")")[0]) == pytest.approx(probability, abs=5e-4)


def test_targets_that_are_not_tokens_get_ids_of_their_own(tmp_path):
    graph = random_graph(
        k=5, logit_tokens=[7, -1, -1, 7, 7], logit_positions=[4, 4, 4, 4, 2], logit_layers=[4, 4, 2, 4, 4],
        logit_strings=["a", "a - b", "L2/417", "a", "a"],
    )  # fmt: skip
    nodes = written(graph, tmp_path)["nodes"]
    targets = [node for node in nodes if node["feature_type"] == "logit"]
    assert [node["node_id"] for node in targets] == ["5_7_4", "5_-3_4", "5_-4_4", "5_-5_4", "5_7_2"]
    assert targets[1]["clerp"].startswith('Output "a - b" (p=')
    assert len({node["node_id"] for node in nodes}) == len({node["jsNodeId"] for node in nodes}) == len(nodes)


def test_repeated_tokens_have_nodes_of_their_own(tmp_path):
    nodes = written(random_graph(tokens=[5] * 5), tmp_path)["nodes"]
    tokens = [node for node in nodes if node["feature_type"] == "embedding"]
    assert len({(node["layer"], node["feature"]) for node in tokens}) == 5


def test_names(tmp_path):
    graph = random_graph(prompt="日本", model_name="")
    metadata = written(graph, tmp_path)["metadata"]
    assert (metadata["slug"], metadata["scan"]) == ("graph", "model")
    metadata = written(graph, tmp_path, slug="a_b.c-1", scan="gemma-3-1b")["metadata"]
    assert (metadata["slug"], metadata["scan"]) == ("a_b.c-1", "gemma-3-1b")
    for wrong in ("a b", "", "a/b", "é", "a\n"):
        with pytest.raises(ValueError, match="slug must be made of"):
            write_json(graph, tmp_path / "no.json", slug=wrong)
        with pytest.raises(ValueError, match="scan must be made of"):
            write_json(graph, tmp_path / "no.json", scan=wrong)
    assert not (tmp_path / "no.json").exists()


def test_raw_graphs_open_with_every_node(tmp_path):
    raw = random_graph()
    assert written(raw, tmp_path)["metadata"]["node_threshold"] == 1.0
    unpruned = dataclasses.replace(prune(raw), node_mask=None, edge_mask_sparse=None, influence=None)
    assert written(unpruned, tmp_path)["metadata"]["node_threshold"] == 1.0
    influence = torch.tensor([node["influence"] for node in written(raw, tmp_path)["nodes"]], dtype=torch.float64)
    assert torch.equal(influence, prune(raw).influence)
