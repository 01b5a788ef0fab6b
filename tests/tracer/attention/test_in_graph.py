"""Attention kept in a graph: ranked heads, the file, exports, the verb, the check of `validate`."""

from __future__ import annotations

import json

import networkx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from crosstrace.graphs import AttributionGraph, prune, to_networkx, write_graph, write_json
from crosstrace.graphs.page.data import page_data
from crosstrace.replacement_model import ReplacementModel, demo
from crosstrace.tracer import TracedPrompt, head_loadings, qk_terms, rank_heads, trace, with_attention
from crosstrace.tracer.attention.references import find_node, parse_head
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.validation.heads import head_check


@pytest.fixture(scope="module")
def model():
    return ReplacementModel.demo()


@pytest.fixture(scope="module")
def graph(model):
    return with_attention(prune(trace(model, demo.DALLAS_PROMPT)), model, heads=4, terms=5)


@pytest.fixture(scope="module")
def file(graph, tmp_path_factory):
    path = tmp_path_factory.mktemp("attention") / "dallas.safetensors"
    graph.save(path)
    return path


def test_every_kept_edge_has_its_loadings(model, graph):
    loadings, kept = graph.attention.loadings, graph.kept_edges()
    assert len(loadings) == kept.nnz
    some = loadings.edges[::7]
    assert torch.equal(loadings.heads[::7], head_loadings(model, graph, some).heads) or torch.allclose(
        loadings.heads[::7], head_loadings(model, graph, some).heads, rtol=1e-4, atol=1e-6
    )
    place = loadings.of(*loadings.edges[3].tolist())
    assert place == 3


def test_ranked_heads_carry_what_the_loadings_say(model, graph):
    ranking = rank_heads(TracedPrompt(model, graph))
    carried = [one.carried for one in ranking.heads]
    assert carried == sorted(carried, reverse=True)
    for one in ranking.heads:
        assert abs(one.net) <= one.carried + 1e-9
        flow = ranking.flow_lhqk[one.layer, one.head]
        assert float(flow.sum()) == pytest.approx(one.net, abs=1e-5)
        assert float(flow[one.query, one.key].abs()) == float(flow.abs().max())
    assert [tuple(row) for row in graph.attention.places.where.tolist()] == [
        (one.layer, one.head, one.query, one.key) for one in ranking.heads[:4]
    ]


def test_places_hold_the_strongest_terms(model, graph):
    places = graph.attention.places
    terms = qk_terms(model, graph, *places.where[0].tolist())
    assert float(places.scores[0]) == pytest.approx(terms.score, abs=1e-5)
    # A term that is 0 but for rounding may be among them on one side alone.
    strongest = [term for *_, term in terms.strongest_pairs(5) if abs(term) > 1e-9]
    assert strongest
    assert [term for term in places.pair_terms[0].tolist() if abs(term) > 1e-9] == pytest.approx(strongest, rel=1e-4)


def test_the_file_keeps_attention_and_refuses_damage(graph, file, tmp_path):
    back = AttributionGraph.load(file)
    for (name, one), (_, other) in zip(graph.attention.tensors(), back.attention.tensors(), strict=True):
        assert torch.equal(one, other), name
    graph.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    broken = AttributionGraph.load(file)
    broken.attention.places.where[0, 0] = 99
    broken.save(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"attention\.where holds an index outside 0\.\.5"):
        AttributionGraph.load(tmp_path / "broken.safetensors")


def test_json_has_heads_of_links_and_contributors_that_are_nodes(graph, tmp_path):
    write_json(graph, tmp_path / "g.json")
    content = json.loads((tmp_path / "g.json").read_text())
    assert len(content["attention"]["heads"]) == 4
    n_layers = graph.n_layers
    for link in content["links"]:
        layers = np.zeros(n_layers)
        for layer, _, value in link["head_loadings"]:
            layers[layer] += value
        assert np.abs(layers).max() < 100 * abs(link["weight"]) + 1
    nodes = {node["node_id"] for node in content["nodes"]} | set(content.get("qk_only_nodes", {}))
    found = [node["qk_tracing_results"] for node in content["nodes"] if "qk_tracing_results" in node]
    assert found
    for results in found:
        assert set(results) == {
            "pair_wise_contributors",
            "top_q_marginal_contributors",
            "top_k_marginal_contributors",
        }
        for entries in results.values():
            assert all(part in nodes for entry in entries for part in entry[:-1])
    for node in content.get("qk_only_nodes", {}).values():
        assert {"node_id", "feature_type", "layer", "ctx_idx", "jsNodeId", "clerp"} <= set(node)


def test_networkx_and_graphml_name_the_head_of_an_edge(graph, tmp_path):
    digraph = to_networkx(graph)
    target, source = graph.attention.loadings.edges[0].tolist()
    edge = digraph.edges[source, target]
    layer, head = graph.attention.loadings.strongest(0)
    values = json.loads(edge["head_loadings"])
    if values:
        assert edge["head"] == f"L{layer}.H{head}"
        assert edge["head_loading"] == max((value for *_, value in values), key=abs)
    write_graph(graph, tmp_path / "g.graphml")
    read = networkx.read_graphml(tmp_path / "g.graphml")
    assert all("head_loadings" in attributes for *_, attributes in read.edges(data=True))


def test_the_page_holds_edges_and_heads(graph):
    attention = page_data(graph)["attention"]
    assert len(attention["edges"]) == len(graph.attention.loadings)
    assert [len(row) for row in attention["heads"][0]["pattern"]] == list(range(1, len(graph.tokens) + 1))
    assert page_data(prune(trace(ReplacementModel.demo(), demo.DALLAS_PROMPT)))["attention"] is None


def test_heads_taken_out_change_targets_as_the_loadings_say(model, graph):
    check = head_check(TracedPrompt(model, graph), graph, n_heads=4)
    assert check.relative_error < 1e-4
    assert check.free_difference > check.relative_error
    assert not check.problem
    capped = prune(trace(model, demo.DALLAS_PROMPT, max_feature_nodes=15))
    assert head_check(TracedPrompt(model, capped), capped, n_heads=3).relative_error < 1e-4


def test_nodes_and_heads_are_read_as_people_write_them(graph):
    layout = graph.layout
    layer, position, feature = graph.feature_of(3)
    assert find_node(graph, f"L{layer}/{feature}@{position}") == 3
    assert find_node(graph, "token @7") == layout.token_index(7)
    assert find_node(graph, "error L2@5") == layout.error_index(2, 5)
    assert find_node(graph, '"Austin"') == find_node(graph, "Austin") == layout.logit_index(0)
    assert find_node(graph, f"{layer}_{feature}_{position}") == 3
    assert parse_head("4.2") == parse_head("L4.H2") == (4, 2)
    for text, said in (("nothing", "names no node"), ("Texas", "names .* nodes"), ("error L9@1", "not in the graph")):
        with pytest.raises(ValueError, match=said):
            find_node(graph, text)
    with pytest.raises(ValueError, match=r"write LAYER\.HEAD"):
        parse_head("four")


def run(*arguments: str):
    return CliRunner().invoke(app, ["attention", *arguments])


def test_the_verb_prints_tables_that_fit_and_writes_json(file, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report = tmp_path / "report.json"
    found = run(
        str(file), "--edge", "token @7", "Austin", "--head", "2.3", "--query", "8", "--key", "7", "-o", str(report)
    )
    assert found.exit_code == 0, found.output
    assert max(len(line) for line in found.output.splitlines() if "wrote" not in line) <= 80
    assert "bypass" in found.output
    assert "measured" in found.output
    content = json.loads(report.read_text())
    edge = content["edges"][0]
    for heads, bypass in zip(edge["heads"], edge["bypass"], strict=True):
        assert sum(heads) + bypass == pytest.approx(edge["weight"], abs=1e-5)
    assert content["score"]["key"] == 7
    assert content["score"]["pair_wise_contributors"]
    ranked = run(str(file), "--heads", "3")
    assert ranked.exit_code == 0
    assert ranked.output.count("L0.H") + ranked.output.count("L2.H") + ranked.output.count("L3.H") >= 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--head", "9.1"], "layer 9 does not exist"),
        (["--head", "2.7"], "head 7 does not exist"),
        (["--head", "2.3", "--query", "3", "--key", "6"], "key 6 comes after query 3"),
        (["--head", "0.1", "--query", "8", "--key", "1"], "outside the window"),
        (["--edge", "Austin", "Austin"], "there is no edge from"),
        (["--edge", "nothing", "Austin"], "names no node"),
        (["--head", "x"], "write LAYER.HEAD"),
    ],
)
def test_what_is_not_there_is_one_line(file, arguments, said):
    found = run(str(file), *arguments)
    assert found.exit_code == 1
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_options_that_do_not_go_together_are_wrong_usage(file):
    assert run(str(file), "--key", "3").exit_code == 2
    assert run(str(file), "--head", "2.3", "--rather-than", "3").exit_code == 2
    assert run(str(file), "--edge", "one").exit_code == 2
