"""The command line on the real model: every verb and format, exit codes, and tables that fit 80 columns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import networkx as nx
import pydot
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from crosstrace.graphs import AttributionGraph
from crosstrace.tracer.commands.app import app

pytestmark = pytest.mark.real

PROMPT = "Fact: Michael Jordan plays the sport of"
SCREEN = {"COLUMNS": "80", "NO_COLOR": "1"}
SUFFIXES = ["safetensors", "json", "html", "dot", "svg", "png", "graphml", *(["pdf"] if shutil.which("dot") else [])]
NODE_KEYS = {
    *("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp", "influence", "activation"),
    *("token_prob", "is_target_logit", "run_idx", "reverse_ctx_idx"),
}
METADATA_KEYS = {
    *("slug", "scan", "prompt_tokens", "prompt", "node_threshold", "schema_version", "info", "generation_settings")
}


@pytest.fixture(scope="module")
def chosen(gguf_file, clt) -> list[str]:
    return ["--model", str(gguf_file), "--transcoders", str(clt), "--device", "cpu"]


@pytest.fixture(scope="module")
def outputs(chosen, folder, tmp_path_factory) -> Path:
    """A trace into every format by the installed command, as a user runs it."""
    place = tmp_path_factory.mktemp("outputs")
    command = Path(sys.executable).with_name("crosstrace")
    files = [argument for suffix in SUFFIXES for argument in ("-o", f"g.{suffix}")]
    done = subprocess.run(
        [command, "trace", PROMPT, *chosen, "--max-feature-nodes", "200", *files],
        cwd=place,
        env={**os.environ, **SCREEN},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (place / "screen.txt").write_text(done.stdout, encoding="utf-8")
    assert "Traceback" not in done.stderr
    return place


def run(*arguments: str) -> Result:
    result = CliRunner(env=SCREEN).invoke(app, list(arguments))
    assert_fits(result.stdout)
    return result


def assert_fits(screen: str) -> None:
    for line in screen.splitlines():
        if not line.startswith("wrote "):
            assert cell_len(line) <= 80, line


def test_the_screen_names_what_was_traced(outputs):
    screen = (outputs / "screen.txt").read_text("utf-8")
    assert_fits(screen)
    for said in ("basketball", "replacement score", "completeness score", *(f"wrote g.{s}" for s in SUFFIXES)):
        assert said in screen


def test_every_format_can_be_read(outputs):
    graph = AttributionGraph.load(outputs / "g.safetensors")
    assert graph.logit_strings[0] == " basketball"
    assert graph.completeness_error() < 1e-5
    kept = int(graph.node_mask.sum())
    written = json.loads((outputs / "g.json").read_text("utf-8"))
    assert set(written["metadata"]) >= METADATA_KEYS
    assert {"metadata", "qParams", "nodes", "links"} <= set(written)
    assert len(written["nodes"]) == kept
    ids = [node["node_id"] for node in written["nodes"]]
    assert len(set(ids)) == len({node["jsNodeId"] for node in written["nodes"]}) == kept
    assert all(set(node) >= NODE_KEYS for node in written["nodes"])
    assert all({link["source"], link["target"]} <= set(ids) for link in written["links"])
    top = next(node for node in written["nodes"] if node["is_target_logit"] and node["token_prob"] > 0.5)
    assert top["clerp"].startswith('Output " basketball" (p=0.')
    assert (outputs / "g.html").read_text("utf-8").rstrip().endswith("</html>")
    (drawn,) = pydot.graph_from_dot_data((outputs / "g.dot").read_text("utf-8"))
    assert drawn.get_type() == "digraph"
    assert ET.parse(outputs / "g.svg").getroot().tag.endswith("svg")
    assert (outputs / "g.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len(nx.read_graphml(outputs / "g.graphml")) == kept
    if "pdf" in SUFFIXES:
        assert (outputs / "g.pdf").read_bytes().startswith(b"%PDF-")


def test_prune(outputs, tmp_path):
    small = tmp_path / "small.json"
    result = run("prune", str(outputs / "g.safetensors"), "-o", str(small), "--node-threshold", "0.5")
    assert result.exit_code == 0, result.output
    whole = json.loads((outputs / "g.json").read_text("utf-8"))
    assert 0 < len(json.loads(small.read_text("utf-8"))["nodes"]) < len(whole["nodes"])


def test_show(outputs):
    result = run("show", str(outputs / "g.safetensors"))
    assert result.exit_code == 0, result.output
    assert "basketball" in result.stdout
    layer, _, feature = first_feature(outputs)
    result = run("show", str(outputs / "g.safetensors"), "--feature", f"L{layer}/{feature}")
    assert result.exit_code == 0, result.output
    assert f"L{layer}/{feature}" in result.stdout


def first_feature(outputs: Path) -> list[int]:
    """The kept feature with the most influence."""
    graph = AttributionGraph.load(outputs / "g.safetensors")
    kept = [node for node in graph.kept_nodes() if node < len(graph.selected_features)]
    best = min(kept, key=lambda node: graph.influence[node].item())
    return graph.active_features[graph.selected_features[best]].tolist()


def test_intervene(chosen, outputs, tmp_path):
    layer, position, feature = first_feature(outputs)
    edit = ["--ablate", f"L{layer}/{feature}@{position}"]
    result = run("intervene", PROMPT, *chosen, *edit, "--generate", "2", "-o", str(tmp_path / "report.json"))
    assert result.exit_code == 0, result.output
    assert "basketball" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    basketball = 18660
    assert report["before"][0]["token"] == basketball


def test_validate(chosen, outputs, tmp_path):
    report = tmp_path / "report.json"
    options = ["--sources", "24", "--features", "6", "-o", str(report)]
    result = run("validate", str(outputs / "g.safetensors"), *chosen, *options)
    assert result.exit_code == 0, result.output
    assert json.loads(report.read_text("utf-8"))["direct"]["relative_error"] < 1e-4


def test_explain_reads_headers_alone(chosen):
    result = run("trace", PROMPT, *chosen, "--explain")
    assert result.exit_code == 0, result.output
    assert "model weights" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["trace", PROMPT, "--model", "nowhere/model.gguf", "--transcoders", "nowhere"], 1, "nowhere"),
        (["trace", PROMPT, "--nonsense"], 2, "--nonsense"),
        (["show", "nowhere.safetensors"], 1, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, code, said):
    result = run(*arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert code == 2 or len(result.stderr.strip().splitlines()) == 1


def test_a_target_that_is_no_token_is_one_line(chosen):
    result = run("trace", PROMPT, *chosen, "--target", '"Sacramento Kings"')
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Sacramento Kings" in result.stderr
