"""Options of pictures, on the command line: what is drawn, and one line for what is wrong."""

import json
import re

import pytest
from graph_samples import random_graph
from typer.testing import CliRunner

from crosstrace.graphs import prune, suggest_supernodes
from crosstrace.graphs.pictures.figure import LAYOUTS
from crosstrace.graphs.viewer_ids import node_ids
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.commands.figure_options import GraphLayout

RAW = random_graph(3, L=5, P=4, per_layer=12)
RAW.feature_labels = ["Texas"] * RAW.layout.n_features  # so that there are groups to suggest
GRAPH = prune(RAW)


@pytest.fixture
def file(tmp_path):
    GRAPH.save(tmp_path / "g.safetensors")
    return tmp_path / "g.safetensors"


def run(*arguments):
    return CliRunner(env={"COLUMNS": "140", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


def dot_of(file, *options):
    path = file.with_suffix(".dot")
    result = run("show", file, "-o", path, *options)
    assert result.exit_code == 0, result.output
    return path.read_text()


def test_the_layouts_are_those_that_graphs_know():
    assert tuple(GraphLayout) == LAYOUTS


def test_without_options_the_story_is_drawn_and_all_draws_everything(file):
    ids = node_ids(GRAPH)
    singles = {f'"{ids[node]}"' for node in GRAPH.kept_nodes() if GRAPH.layout.kind(node) == "feature"}
    story, everything = dot_of(file), dot_of(file, "--all")
    assert "is unexplained" in " ".join(story.split())
    assert sum(f"{name} [" in story for name in singles) < len(singles)
    assert all(f"{name} [" in everything for name in singles)


def test_suggested_supernodes_are_framed_or_merged(file):
    names = [name for name, _ in suggest_supernodes(GRAPH)]
    assert names
    framed, merged = dot_of(file, "--supernodes"), dot_of(file, "--merge")
    assert framed.count("subgraph cluster") >= len(names)
    assert merged.count("subgraph cluster") == 0
    assert all(f'"supernode-{i}" [' in merged for i in range(len(names)))


def test_saved_groups_are_drawn_and_merged_alone(file):
    ids = node_ids(GRAPH)
    members, pin = [ids[node] for node in GRAPH.kept_nodes()[:2]], ids[GRAPH.layout.logit_index(0)]
    state = file.with_suffix(".json")
    state.write_text(json.dumps({"qParams": {"pinnedIds": [pin], "supernodes": [["mine", *members]]}}))
    assert dot_of(file, "--groups", state).count("subgraph cluster") in (1, 2)
    merged = dot_of(file, "--groups", state, "--merge")
    drawn = set(re.findall(r'^\s*"([^"]+)" \[', merged, re.MULTILINE))
    assert drawn == {"supernode-0", pin}


def test_saved_groups_go_into_json_and_pages(file):
    ids = node_ids(GRAPH)
    dropped = next(ids[node] for node in range(GRAPH.n) if not GRAPH.node_mask[node])
    members, pin = [ids[node] for node in GRAPH.kept_nodes()[:2]], ids[GRAPH.layout.logit_index(0)]
    state = file.with_name("state.json")
    state.write_text(json.dumps({"qParams": {"pinnedIds": [pin, dropped], "supernodes": [["mine", *members]]}}))
    outputs = [file.with_name(name) for name in ("g.json", "g.html")]
    result = run("show", file, "--groups", state, *(part for path in outputs for part in ("-o", path)))
    assert result.exit_code == 0, result.output
    written = json.loads(outputs[0].read_text())["qParams"]
    assert written["pinnedIds"] == [pin, *members]
    assert written["supernodes"] == [["mine", *members]]
    page = re.search(r'<script type="application/json" id="data">(.*?)</script>', outputs[1].read_text(), re.DOTALL)
    # The page holds what pruning dropped, too.
    assert json.loads(page[1])["qParams"]["pinnedIds"] == [pin, dropped, *members]


def test_top_paths_and_layout(file):
    whole, paths = dot_of(file), dot_of(file, "--top-paths", 1, "--layout", "layers")
    assert "layout=nop" in whole
    assert "layout=dot" in paths
    assert len(paths) < len(whole) / 2


def test_graphml(file):
    assert run("prune", file, "-o", file.with_suffix(".graphml"), "-q", "--supernodes").exit_code == 0
    assert "supernode" in file.with_suffix(".graphml").read_text()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-o", "x.json", "--supernodes"], 1, "say how a graph is drawn: give an -o FILE that is drawn"),
        (["--top-paths", "3"], 1, "say how a graph is drawn"),
        (["-o", "x.dot", "--groups", "none.json"], 1, "none.json: no such file"),
        (["-o", "x.safetensors", "--groups", "empty.json"], 1, "--groups is for pictures, pages and JSON"),
        (["-o", "x.dot", "--layout", "circle"], 2, "'circle' is not one of"),
        (["-o", "x.dot", "--top-paths", "0"], 2, "--top-paths"),
    ],
)
def test_wrong_options(file, monkeypatch, options, code, message):
    monkeypatch.chdir(file.parent)
    file.with_name("empty.json").write_text('{"qParams": {}}')
    result = run("show", file, *options)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert not (file.parent / "x.dot").exists()
