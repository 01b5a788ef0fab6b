"""The interactive page as a file: its pruning is Python's, its data is inert, its policy strict, its sources committed."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest
import torch
from graph_samples import CASE_NAMES, HOSTILE, THRESHOLD_PAIRS, case, random_graph
from json_samples import foreign, junk_in
from places import VIEWER

from crosstrace.graphs import PageLimits, graph_scores, prune, view, write_html, write_json
from crosstrace.graphs.analysis.pruning import cumulative_influence
from crosstrace.graphs.cards.labels import GUESS_LEGEND
from crosstrace.graphs.page.export import page as page_of
from crosstrace.graphs.page.from_json import page_data_from_json
from crosstrace.graphs.viewer_ids import node_ids

PAIRS = (*THRESHOLD_PAIRS, (1.0, 1.0), (0.3, 0.6))


def data_of(path):
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def page_prunes(path, pairs):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    arguments = [f"{node},{edge}" for node, edge in pairs]
    done = subprocess.run(["node", VIEWER / "test" / "prune.mjs", path, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same_pruning(graph, path, pairs):
    ids = node_ids(graph)
    for (node_threshold, edge_threshold), found in zip(pairs, page_prunes(path, pairs), strict=True):
        pruned = prune(graph, node_threshold, edge_threshold)
        assert set(found["nodes"]) == {ids[node] for node in pruned.kept_nodes()}
        edges = pruned.kept_edges().tocoo()
        assert {tuple(edge) for edge in found["edges"]} == {
            (ids[source], ids[target]) for source, target in zip(edges.col.tolist(), edges.row.tolist(), strict=True)
        }
        scores = graph_scores(pruned)
        assert found["replacement"] == pytest.approx(scores.replacement, abs=1e-9)
        assert found["completeness"] == pytest.approx(scores.completeness, abs=1e-9)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_the_page_prunes_as_python_does(tmp_path, name):
    graph, _ = case(name)
    write_html(graph, tmp_path / "g.html")
    assert_same_pruning(graph, tmp_path / "g.html", PAIRS)
    entry = page_prunes(tmp_path / "g.html", PAIRS[:1])[0]["entry"]
    assert entry == pytest.approx(cumulative_influence(graph).tolist(), abs=1e-12)


def test_omitted_features_count_in_the_pages_scores(tmp_path):
    graph = random_graph(3)
    graph = random_graph(3, omitted_magnitude=torch.linspace(0, 2, graph.n))
    write_html(graph, tmp_path / "g.html")
    assert_same_pruning(graph, tmp_path / "g.html", PAIRS)


def test_a_part_of_a_large_graph_prunes_as_the_whole(tmp_path):
    graph = random_graph(4, per_layer=40)
    limits = PageLimits(live_nodes=70)
    write_html(graph, tmp_path / "g.html", limits=limits)
    data = data_of(tmp_path / "g.html")
    assert len(data["nodes"]["id"]) <= 70 < graph.n == data["whole"]["nodes"]
    reach = data["start"]["nodeLimit"]
    assert 0.3 < reach < 1
    write_html(prune(graph, reach - 0.02), tmp_path / "g.html", limits=limits)
    assert data_of(tmp_path / "g.html")["start"]["nodeLimit"] == reach
    assert_same_pruning(graph, tmp_path / "g.html", [(reach, 0.98), (reach - 0.1, 0.9), (0.3, 1.0)])


def test_a_pruned_graph_that_fits_only_without_its_dropped_edges(tmp_path):
    graph = prune(random_graph(4, per_layer=40), 0.8, 0.5)
    write_html(graph, tmp_path / "g.html", limits=PageLimits(live_nodes=20))
    data = data_of(tmp_path / "g.html")
    ids = node_ids(graph)
    assert data["nodes"]["id"] == [ids[node] for node in graph.kept_nodes()]
    assert len(numbers(data["edges"]["weights"], "<f4")) == graph.kept_edges().nnz
    (found,) = page_prunes(tmp_path / "g.html", [(data["start"]["node"], data["start"]["edge"])])
    assert len(found["nodes"]) == len(graph.kept_nodes())
    assert len(found["edges"]) == graph.kept_edges().nnz


def test_a_graph_too_large_even_when_pruned_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"too many for a page.*prune it further"):
        write_html(random_graph(4, per_layer=40), tmp_path / "g.html", limits=PageLimits(live_nodes=20, most_nodes=30))
    assert not list(tmp_path.iterdir())


def test_weights_are_exact_and_start_is_the_graphs_own(tmp_path):
    graph = prune(random_graph(), 0.6, 0.9)
    write_html(graph, tmp_path / "g.html")
    data = data_of(tmp_path / "g.html")
    assert np.array_equal(numbers(data["edges"]["weights"], "<f4"), graph.edges.data)
    assert np.array_equal(numbers(data["edges"]["sources"], "<u4"), graph.edges.indices)
    assert data["start"] == {"node": 0.6, "edge": 0.9, "nodeLimit": 1.0}
    write_html(random_graph(), tmp_path / "g.html")
    assert data_of(tmp_path / "g.html")["start"] == {"node": 0.8, "edge": 0.98, "nodeLimit": 1.0}


def test_cards_groups_and_state_are_inside(tmp_path):
    graph = random_graph()
    layer, position, feature = graph.active_features[0].tolist()
    cards = {(layer, feature): {"label": "Texas", "promoted": [" Austin"]}, (99, 1): {"label": "of no node"}}
    ids = node_ids(graph)
    write_html(graph, tmp_path / "g.html", cards, supernodes=[("both", [0, 1])], state={"pinnedIds": [ids[2]]})
    data = data_of(tmp_path / "g.html")
    assert data["cards"] == {f"{layer}/{feature}": cards[layer, feature]}
    assert data["suggested"] == [["both", ids[0], ids[1]]]
    assert data["qParams"] == {"pinnedIds": [ids[2]]}
    assert data["fires"][f"{layer}/{feature}"][0] == [position, pytest.approx(float(graph.activations[0]))]


def test_targets_that_are_no_token_are_known_in_the_page_and_from_json(tmp_path):
    graph = prune(random_graph(logit_tokens=torch.tensor([100, -1, 102])))
    write_html(graph, tmp_path / "g.html")
    write_json(graph, tmp_path / "g.json")
    view(tmp_path / "g.json", tmp_path / "j.html")
    for name in ("g.html", "j.html"):
        data = data_of(tmp_path / name)
        assert [data["nodes"]["label"][i] for i in data["notTokens"]] == [" out1"]


def test_what_cannot_be_json_is_named(tmp_path):
    graph = random_graph()
    layer, _, feature = graph.active_features[0].tolist()
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_html(graph, tmp_path / "g.html", {(layer, feature): {"firing_rate": float("nan")}})


def test_no_string_leaves_its_element(tmp_path):
    strings = ["</script><script>alert(1)</script>", "<!--", "{{DATA}}{{CSP}}", "\u2028\u2029", "&lt;", *HOSTILE]
    graph = random_graph(per_layer=20)
    labels = (strings * 5)[: len(graph.selected_features)]
    text = "".join(strings)
    graph = random_graph(per_layer=20, feature_labels=labels, prompt=text, model_name=text, transcoders_name=text)
    path = tmp_path / "g.html"
    write_html(graph, path)
    page, template = path.read_text("utf-8"), files("crosstrace.graphs.page").joinpath("page.html")
    assert page.count("</script>") == template.read_text("utf-8").count("</script>") == 3
    assert page.count("<script") == 3
    assert page.isascii() or not re.search("[\u2028\u2029\ud800-\udfff]", page)
    data = data_of(path)
    assert data["nodes"]["label"][: len(labels)] == labels
    assert data["prompt"] == text
    title = re.search("<title>(.*?)</title>", page, re.DOTALL)
    assert title is not None
    assert "<" not in title[1]


def test_the_policy_names_the_hashes_of_script_and_style_and_nothing_else(tmp_path):
    write_html(random_graph(), tmp_path / "g.html")
    page = (tmp_path / "g.html").read_text("utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script, style)]
    assert policy.replace("&#x27;", "'") == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", page)
    assert not re.search(r"<[^>]*\son\w+\s*=", page.replace(script, ""))


@pytest.mark.parametrize("template", ["page.html", "compare.html", "reading.html", "aggregate.html"])
def test_the_committed_page_is_built_from_the_committed_sources(template):
    digest = hashlib.sha256()
    names = sorted(path.name for path in (VIEWER / "src").iterdir())
    for name in ["build.mjs", "package-lock.json", *(f"src/{name}" for name in names)]:
        digest.update(f"{name}\n".encode() + (VIEWER / name).read_bytes().replace(b"\r\n", b"\n"))
    page = files("crosstrace.graphs.page").joinpath(template).read_text("utf-8")
    assert f'content="{digest.hexdigest()}"' in page, "run: npm --prefix viewer ci && npm --prefix viewer run build"


def test_crosstraces_own_json_opens(tmp_path):
    pruned = prune(random_graph(2))
    write_json(pruned, tmp_path / "g.json")
    view(tmp_path / "g.json", tmp_path / "g.html")
    data = data_of(tmp_path / "g.html")
    ids = node_ids(pruned)
    assert set(data["nodes"]["id"]) == {ids[node] for node in pruned.kept_nodes()}
    assert data["nodes"]["kind"].count("l") == 3
    assert set(data["nodes"]["label"]) >= {" tok0", " out0"}
    (found,) = page_prunes(tmp_path / "g.html", [(1.0, 1.0)])
    assert len(found["nodes"]) == len(pruned.kept_nodes())
    assert len(found["edges"]) == pruned.kept_edges().nnz


def test_json_of_other_tools_opens():
    data = page_data_from_json(foreign())
    assert data["nodes"]["kind"] == "ffetl"
    assert data["nodes"]["label"] == ["", "Texas", "", "a", " c"]
    assert data["nodes"]["layer"] == [0, 1, 1, -1, 2]
    assert data["nodes"]["probability"][-1] == 0.625
    assert data["nodes"]["id"][2] == "0_1_1#2"
    assert numbers(data["influence"], "<f8") == pytest.approx([0.25, 0.25, 0.2, 0, 0])
    assert numbers(data["edges"]["weights"], "<f4").tolist() == [2.0, -0.5, 1.0]
    assert data["qParams"] == {"pinnedIds": ["1_7_1"], "supernodes": [["name", "1_7_1"]]}
    notes = " ".join(data["notes"])
    assert "1 links were left out: they have no weight or name a node" in notes
    assert "do not go from a lower layer" in notes
    assert "share their id" in notes


def test_a_page_with_weak_guesses_says_what_they_are():
    content = foreign()
    content["nodes"][1]["clerp"] = "→ Austin"
    assert GUESS_LEGEND not in page_data_from_json(content)["notes"]
    content["nodes"][1]["clerp"] = "→? odesk, nå"
    data = page_data_from_json(content)
    assert "→? odesk, nå" in data["nodes"]["label"]
    assert data["notes"].count(GUESS_LEGEND) == 1


def test_node_types_of_other_tools_are_named_and_shown_as_what_they_are():
    content = foreign()

    def node(node_id: str, feature_type: object, layer: int = 1, **more: object) -> dict[str, object]:
        return {"node_id": node_id, "feature_type": feature_type, "layer": layer, "ctx_idx": 1} | more

    content["nodes"] += [
        node("1_30_1", "lorsa", clerp="copies names"),
        node("1_31_1", "lorsa"),
        node("1_error_1", "lorsa error"),
        node("1_b_O_1", "bias"),
        node("1_40_1", "Cross Layer Transcoder"),
        node("1_41_1", "SAE reconstruction Error"),
        node("1_42_1", None),
    ]
    content["links"] += [
        {"source": "1_30_1", "target": "1_7_1", "weight": 3.0},  # attention comes before the MLP of its layer
        {"source": "1_error_1", "target": "1_7_1", "weight": 4.0},
        {"source": "1_b_O_1", "target": "1_30_1", "weight": 5.0},
    ]
    data = page_data_from_json(content)
    shown = {
        data["nodes"]["id"][i]: (data["nodes"]["kind"][i], data["nodes"]["label"][i])
        for i in range(len(data["nodes"]["id"]))
    }
    assert shown["1_30_1"] == ("f", "lorsa: copies names")
    assert shown["1_31_1"] == ("f", "lorsa: L1/31")
    assert shown["1_error_1"] == ("e", "lorsa error")
    assert shown["1_b_O_1"] == ("f", "bias")
    assert shown["1_40_1"] == ("f", "")
    assert shown["1_41_1"] == ("e", "SAE reconstruction Error")
    assert shown["1_42_1"] == ("f", "no type: L1/42")
    assert {3.0, 4.0, 5.0} <= set(numbers(data["edges"]["weights"], "<f4").tolist())
    notes = " ".join(data["notes"])
    assert "2 of type “lorsa”, drawn as features" in notes
    assert "1 of type “lorsa error”, drawn as errors" in notes
    assert "1 of type “bias”, drawn as features" in notes
    assert "1 of type “SAE reconstruction Error”, drawn as errors" in notes
    assert "1 nodes without a type are drawn as features" in notes
    assert "ross" not in notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "not an attribution graph: a JSON list; expected 'metadata', 'nodes' and 'links'"),
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ('{"nodes": []}', "no list 'links'"),
        ('{"nodes": [{}], "links": []}', "node 0 has no 'node_id'"),
        ('{"nodes": [{"node_id": "a"}], "links": [1]}', "a link is not an object"),
        ('{"nodes": [], "links": []}', "without nodes"),
        ('{"qParams": {}}', "a page's saved state, not a graph"),
        ('{"nodes": [{"node_id": "a", "ctx_idx": 9e9}], "links": []}', "outside the prompt"),
    ],
)
def test_other_files_are_told_from_graphs(tmp_path, content, message):
    (tmp_path / "g.json").write_text(content)
    with pytest.raises(ValueError, match=rf"g\.json: .*{message}"):
        view(tmp_path / "g.json", tmp_path / "g.html")
    assert not (tmp_path / "g.html").exists()


def test_large_files_get_a_word_about_pruning(tmp_path):
    (tmp_path / "g.json").write_text("{}" + " " * 5_000_000)
    with pytest.raises(ValueError, match=r"5 MB is too much for a page.*prune the graph first"):
        view(tmp_path / "g.json", tmp_path / "g.html", limits=PageLimits(json_bytes=1_000_000))
    with pytest.raises(ValueError, match="prune the graph further first"):
        write_html(random_graph(), tmp_path / "g.html", limits=PageLimits(page_bytes=1000))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_in_a_json_graph_it_makes_a_page_or_one_line(seed):
    made, said = 0, []
    for content in junk_in(foreign(), seed):
        try:
            page_of(page_data_from_json(content))
            made += 1
        except ValueError as problem:
            said.append(str(problem))
    assert made > 30
    assert said
    assert not any("\n" in line for line in said)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such graph file"):
        view(tmp_path / "g.json", tmp_path / "g.html")
    with pytest.raises(ValueError, match=r"cannot view .*g\.txt.*expected a graph as \.safetensors or \.json"):
        view(tmp_path / "g.txt", tmp_path / "g.html")


def test_the_command_line_makes_pages(tmp_path):
    from typer.testing import CliRunner

    from crosstrace.tracer.commands.app import app

    random_graph().save(tmp_path / "raw.safetensors")
    run = CliRunner().invoke
    assert run(app, ["view", str(tmp_path / "raw.safetensors")]).exit_code == 0
    assert data_of(tmp_path / "raw.html")["nodes"]["id"]
    assert run(app, ["prune", str(tmp_path / "raw.safetensors"), "-o", str(tmp_path / "p.html"), "-q"]).exit_code == 0
    assert data_of(tmp_path / "p.html")["start"]["node"] == 0.8
    wrong = run(app, ["view", str(tmp_path / "raw.safetensors"), "-o", str(tmp_path / "p.pdf")])
    assert wrong.exit_code == 1
    assert "must be an .html file" in wrong.output
