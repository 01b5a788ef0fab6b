"""``crosstrace compare``: a table, a JSON file, and one line for what cannot be compared."""

from __future__ import annotations

import json

import pytest
from cases import load_case
from typer.testing import CliRunner

from crosstrace.tracer.commands.app import app


def run(*arguments):
    return CliRunner(env={"COLUMNS": "140", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    paths = []
    for name, case_name, prompt in (
        ("a", "clt_affine", "w5 w6 w7"),
        ("b", "clt_affine", "w5 w8 w7"),
        ("c", "clt_plain_gqa", "w5 w6 w7"),
    ):
        case, path = load_case(case_name), folder / f"{name}.safetensors"
        result = run("trace", prompt, "-m", case.model, "-t", case.transcoders, "--device", "cpu", "-q", "-o", path)
        assert result.exit_code == 0, result.output
        paths.append(path)
    return paths


def test_table_and_file(graphs, tmp_path):
    result = run("compare", *graphs[:2], "-o", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    for text in ("w5 w6 w7", "w5 w8 w7", "features shared", "Only in A", "Only in B"):
        assert text in result.stdout
    comparison = json.loads((tmp_path / "c.json").read_text())
    counts = [len(comparison[part]) for part in ("shared", "only_a", "only_b")]
    assert f"{counts[0]} features shared, {counts[1]} only in A, {counts[2]} only in B" in result.stdout


def test_a_page_of_both(graphs, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    result = run("compare", *graphs[:2], "-o", tmp_path / "c.html", "--open", "--top", 0)
    assert result.exit_code == 0, result.output
    assert opened == [(tmp_path / "c.html").as_uri()]
    assert "crosstrace-comparison-page" in (tmp_path / "c.html").read_text()


def test_a_contrast_has_no_probability(graphs, tmp_path):
    case, path = load_case("clt_affine"), tmp_path / "contrast.safetensors"
    chosen = ("-m", case.model, "-t", case.transcoders, "--device", "cpu", "-q")
    assert run("trace", "w5 w8 w7", *chosen, "--target", '"w5" - "w6"', "-o", path).exit_code == 0
    result = run("compare", graphs[0], path, "-o", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if line.startswith("B "))
    assert line.rstrip().endswith("w5 − w6")
    assert json.loads((tmp_path / "c.json").read_text())["targets"][1] == [["w5 − w6", None]]


def test_a_graph_and_itself(graphs):
    result = run("compare", graphs[0], graphs[0])
    assert "0 only in A, 0 only in B" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda g, out: (g[0], g[2]), "the graphs cannot be compared: model is"),
        (lambda g, out: (g[0], g[1], "-o", out / "c.csv"), "unknown suffix '.csv'"),
        (lambda g, out: (g[0], g[1], "-o", out / "c"), "no suffix in"),
        (lambda g, out: (g[0], g[1], "--open"), "name it with -o PAGE.html"),
        (lambda g, out: (g[0], out / "none.safetensors"), "none.safetensors"),
    ],
    ids=["other model", "suffix", "no suffix", "no page", "no file"],
)
def test_errors_are_one_line(graphs, tmp_path, arguments, message):
    result = run("compare", *arguments(graphs, tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
