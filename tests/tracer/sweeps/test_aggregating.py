"""What holds across the demo's cities: the circuit of two steps, the same from the tables, files, the command."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict

import numpy as np
import pyarrow.parquet as parquet
import pytest
from sweep_samples import cities
from typer.testing import CliRunner

from crosstrace.graphs.aggregates.values import in_terms_of
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo import load_facts
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.sweeps.aggregate_files import write_aggregate
from crosstrace.tracer.sweeps.aggregating import aggregate
from crosstrace.tracer.sweeps.prompts import SweepPrompt
from crosstrace.tracer.sweeps.run import sweep

N = 24
PATTERN = "The capital of the state containing {city} is"


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def model():
    return ReplacementModel.demo()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A sweep over two-step questions, in two shards."""
    place = tmp_path_factory.mktemp("cities")
    prompts = [
        SweepPrompt(row["city"], row["prompt"], metadata={**row, "half": "first" if i < N // 2 else "second"})
        for i, row in enumerate(cities(N))
    ]
    for shard in (1, 2):
        sweep(model, prompts, place, shard=(shard, 2), progress=False)
    return place


@pytest.fixture(scope="module")
def found(folder):
    return aggregate(folder, [PATTERN], resamples=100, splits=10)


def test_the_circuit_of_two_steps(found):
    """The city's state is found at the city, brought to the end, and its capital is said: in every prompt."""
    nodes, edges = found.circuit(min_share=0.9)
    named = {(found.nodes[i].shown, found.nodes[i].key.role): i for i in nodes}
    city, state, last, capital = (
        named["{city}", "{city}"],
        named["its state", "{city}"],
        named["its state", "is"],
        named["its capital", ""],
    )
    between = {(edge.source, edge.target): edge for edge in edges}
    for ends in ((city, state), (state, last), (last, capital)):
        assert between[ends].share == 1.0
        assert between[ends].weight_interval[0] > 0  # raises, whatever prompts are drawn
    assert found.nodes[state].layers[1] < found.nodes[last].layers[1]
    assert found.stability.nodes > 0.9


def test_without_names_features_of_single_states_are_apart(folder):
    plain = aggregate(folder, [PATTERN], named_by=[], resamples=20, splits=2)
    # A slot names features after the city; the state is known of from the metadata alone.
    assert {node.key.name for node in plain.nodes if node.key.kind == "named"} <= {"{city}"}
    common = [node for node in plain.nodes if node.key.kind == "feature" and node.share > 0.9]
    assert all(node.label not in {state.name for state in load_facts().states} for node in common)


def test_few_lines_over_the_tables_find_the_same(folder, found):
    """Influence, activation and edges of every node, from the Parquet tables alone."""
    nodes = [row for path in folder.glob("nodes-*.parquet") for row in parquet.read_table(path).to_pylist()]
    edges = [row for path in folder.glob("edges-*.parquet") for row in parquet.read_table(path).to_pylist()]
    graphs = {
        row["graph"]: row for path in folder.glob("graphs-*.parquet") for row in parquet.read_table(path).to_pylist()
    }
    assert len(graphs) == N

    def key(row):
        graph = graphs[row["graph"]]
        known = {name: graph[f"meta_{name}"] for name in ("city", "state", "capital")}
        if row["kind"] == "target":
            return "target", next(name for name, value in known.items() if value == row["token"])
        role = "{city}" if row["token"] == known["city"] else row["token"]
        if row["kind"] != "feature":
            return row["kind"], role
        named = in_terms_of(row["label"], {**known, "prompt": graph["prompt"]})
        return ("named", named, role) if named else ("feature", row["layer"], row["feature"], role)

    keys = {(row["graph"], row["node"]): key(row) for row in nodes}
    influence, weight, share = defaultdict(float), defaultdict(float), defaultdict(float)
    present, edge_present = defaultdict(set), defaultdict(set)
    for row in nodes:
        influence[keys[row["graph"], row["node"]]] += row["influence"] / N
        present[keys[row["graph"], row["node"]]].add(row["graph"])
    for row in edges:
        ends = keys[row["graph"], row["source"]], keys[row["graph"], row["target"]]
        if ends[0] == ends[1]:
            influence[ends[0]] -= row["share"] / N
        else:
            weight[ends] += row["weight"] / N
            share[ends] += row["share"] / N
            edge_present[ends].add(row["graph"])

    def mine(node):
        kind, name, role, layer, feature = node.key
        match kind:
            case "target":
                return "target", name.strip("{}")
            case "named":
                return kind, name, role
            case "feature":
                return kind, layer, feature, role
        return kind, role

    assert len(found.nodes) > 15
    for node in found.nodes:
        assert node.share == pytest.approx(len(present[mine(node)]) / N)
        assert node.influence == pytest.approx(influence[mine(node)], abs=1e-12)
    assert len(found.edges) > 60
    for edge in found.edges:
        ends = mine(found.nodes[edge.source]), mine(found.nodes[edge.target])
        assert edge.weight == pytest.approx(weight[ends], rel=1e-6, abs=1e-9)
        assert edge.influence == pytest.approx(share[ends], rel=1e-9, abs=1e-12)
        assert edge.share == pytest.approx(len(edge_present[ends]) / N)


def test_influence_ends_in_tokens_and_errors(found):
    """Over all prompts, too: what is not pruned of it is at most the whole."""
    ends = sum(node.influence for node in found.nodes if node.key.kind in ("token", "error"))
    assert 0.9 < ends <= 1 + 1e-9


def test_alignment_by_the_end_and_by_tokens(folder):
    by_end = aggregate(folder, resamples=10, splits=2)
    assert by_end.roles[-1] == "−1"
    by_token = aggregate(folder, alignment="token", resamples=10, splits=2)
    assert "containing" in by_token.roles
    # Each city is a role of its own there, so nothing but what is common to all is in the circuit.
    assert all(by_token.nodes[i].share > 0.2 for i in by_token.circuit()[0])


def test_every_format_is_written_and_says_the_same(found, tmp_path):
    for suffix in ("json", "csv", "html", "svg", "dot"):
        write_aggregate(found, tmp_path / f"a.{suffix}", title="Two steps")
    kept = json.loads((tmp_path / "a.json").read_text())
    assert len(kept["nodes"]) == len(found.nodes)
    assert kept["circuit"]["nodes"] == found.circuit()[0]
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [float(row["influence"]) for row in rows] == sorted((node.influence for node in found.nodes), reverse=True)
    picture = (tmp_path / "a.svg").read_text()
    assert "its state" in picture
    assert "Two steps" in picture
    page = (tmp_path / "a.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    held = json.loads(data)
    assert held["format"] == "crosstrace-aggregate-page"
    assert len(held["edges"]) == len(found.edges)
    assert held["prompts"][0]["roles"] == found.prompts[0]["roles"]
    with pytest.raises(ValueError, match=r"unknown suffix '\.txt'.*aggregates are written as \.json"):
        write_aggregate(found, tmp_path / "a.txt")


def test_the_command_compares_groups_and_links_to_pages(folder, tmp_path):
    said = run(
        "aggregate",
        folder,
        "--pattern",
        PATTERN,
        "--by",
        "half",
        "-o",
        tmp_path / "a.html",
        "--pages",
        tmp_path / "pages",
    )
    assert "its state @ {city}" in said
    assert "By half: first (12), second (12)" in said
    page = (tmp_path / "a.html").read_text()
    assert len(list((tmp_path / "pages").iterdir())) == N
    assert '"page":"pages/000001.html"' in page


@pytest.mark.parametrize(
    ("options", "why", "code"),
    [
        (["--pattern", "The capital of {state} is big"], "no graph is of the pattern", 1),
        (["--pattern", "no slot"], "has no slot", 1),
        (["--named-by", "mayor"], "no prompt has the key 'mayor' in its metadata", 1),
        (["--by", "mayor"], "no prompt has the key 'mayor'", 1),
        (["-o", "a.gif"], "aggregates are written as", 1),
        (["--pages", "pages"], "give an -o FILE.html", 2),
        (["--align", "end", "--pattern", "{x}"], "leave out --align", 2),
    ],
)
def test_what_cannot_be_asked_for(folder, options, why, code):
    said = run("aggregate", folder, *options, code=code)
    assert why in " ".join(said.replace("│", " ").split())


def test_a_folder_that_is_not_of_a_sweep(tmp_path):
    assert "not the folder of a sweep" in run("aggregate", tmp_path, code=1)
    assert "no such folder" in run("aggregate", tmp_path / "x", code=1)


def test_influences_are_those_of_the_prompts(found):
    """The matrix behind the means is that of the nodes, column by column."""
    matrix = found.influence_nm.toarray()
    assert matrix.shape == (N, len(found.nodes))
    np.testing.assert_allclose(matrix.mean(axis=0), [node.influence for node in found.nodes])
