"""Graphs in JSON at the command line: what takes a `.safetensors` graph takes them, or says in one line why it cannot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from json_samples import foreign
from typer.testing import CliRunner, Result

from crosstrace.graphs import read_graph, story_of, with_card_labels
from crosstrace.replacement_model import demo
from crosstrace.tracer.cards.lookup import cards_of
from crosstrace.tracer.commands.app import app

CONVERSATION = [{"role": "user", "content": "Where is Paul?"}]
TRACES = {
    "tokens": [demo.DALLAS_PROMPT],
    "a contrast": [demo.DALLAS_PROMPT, "--target", '"Austin" - "Sacramento"', "--attention"],
    "a latent of an SAE": [demo.DALLAS_PROMPT, "--target", "resid_post/3/7"],
    "a feature, capped": [demo.DALLAS_PROMPT, "--target", "L4/194", "--max-feature-nodes", "20"],
    "a chat": ["-m", "demo-chat", "--messages", "chat.json", "--generate", "2"],
}


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))


def done(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Path:
    """A folder with a pruned graph in both formats for each of `TRACES`, by its number."""
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "chat.json").write_text(json.dumps(CONVERSATION))
    for i, arguments in enumerate(TRACES.values()):
        at = [folder / "chat.json" if argument == "chat.json" else argument for argument in arguments]
        done("trace", *at, "--device", "cpu", "-q", "-o", folder / f"raw{i}.safetensors")
        done(
            "prune", folder / f"raw{i}.safetensors", "-q", "-o", folder / f"{i}.safetensors", "-o", folder / f"{i}.json"
        )
    return folder


@pytest.mark.parametrize("i", range(len(TRACES)), ids=list(TRACES))
def test_a_graph_is_the_same_in_both_formats(traced, i):
    whole, part = read_graph(traced / f"{i}.safetensors"), read_graph(traced / f"{i}.json")
    labelled = with_card_labels(whole, cards_of(whole))  # as they were written
    assert [part.describe(node) for node in part.kept_nodes()] == [
        labelled.describe(node) for node in whole.kept_nodes()
    ]
    for name in ("tokens", "token_strings", "logit_strings", "n_layers", "prompt", "spans"):
        one, other = getattr(part, name), getattr(whole, name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name
    assert sorted(part.edges.data.tolist()) == sorted(whole.kept_edges().data.tolist())
    assert part.influence is not None
    assert whole.influence is not None
    assert part.influence[part.kept_nodes()].tolist() == whole.influence[whole.kept_nodes()].tolist()
    assert part.settings["fingerprints"] == whole.settings["fingerprints"]
    assert math.isnan(part.completeness_error())
    assert len(story_of(part).sentences()) == len(story_of(whole).sentences())


@pytest.mark.parametrize("i", range(len(TRACES)), ids=list(TRACES))
def test_show_prints_the_same_of_both_formats(traced, i):
    """But for what is said of the whole graph, and for the paths' shares, which are of what pruning kept."""

    def features(text: str) -> list[str]:
        return text[text.index("Strongest features") : text.index("Strongest paths")].splitlines()

    of_json, of_whole = done("show", traced / f"{i}.json"), done("show", traced / f"{i}.safetensors")
    assert features(of_json) == features(of_whole)
    assert of_json.split("replacement")[0] == of_whole.split("replacement")[0]
    assert "completeness error not known (read from JSON)" in of_json
    line = next(line for line in of_whole.splitlines() if line.startswith("replacement score"))
    scores = line.split(" of ")[0].split(": at")[0]
    assert f"{scores}: as the file says,\nof the whole graph" in of_json


def test_show_makes_pictures_pages_and_files(traced, tmp_path):
    names = [tmp_path / f"x{suffix}" for suffix in (".svg", ".html", ".json", ".graphml", ".safetensors")]
    done("show", traced / "0.json", "-q", *(part for name in names for part in ("-o", name)))
    assert all(name.stat().st_size for name in names)
    assert json.loads(names[2].read_text()) == json.loads((traced / "0.json").read_text())
    assert read_graph(names[4]).json_origin == read_graph(traced / "0.json").json_origin
    assert "promotes" in done("show", traced / "0.json", "--feature", "L4/194", "--cards", demo.CARDS_FILE)
    done("show", traced / "4.json", "-q", "--hide-template", "-o", tmp_path / "chat.svg")


def test_what_a_file_holds_about_attention_is_said_not_to_be_read(traced):
    assert read_graph(traced / "1.safetensors").attention is not None
    assert read_graph(traced / "1.json").attention is None
    said = "What the file holds about attention is not read; it is in the .safetensors file."
    assert said in done("show", traced / "1.json")
    assert said not in done("show", traced / "0.json")


def test_view_tells_the_story_with_the_cards(traced, tmp_path):
    done("view", traced / "0.json", "-o", tmp_path / "j.html")
    done("view", traced / "0.safetensors", "-o", tmp_path / "s.html")
    of_json, of_whole = (
        json.loads((tmp_path / f"{name}.html").read_text().split('id="data">')[1].split("</script>")[0])
        for name in "js"
    )
    assert [story["target"] for story in of_json["stories"]] == [story["target"] for story in of_whole["stories"]]
    assert of_json["suggested"] == of_whole["suggested"]
    assert of_json["cards"]
    assert of_json["scores"] == of_whole["scores"]
    assert "Made from a JSON file: what its pruning dropped is not here." in of_json["notes"]


def test_compare_takes_either_format(traced, tmp_path):
    for pair in (("0.json", "0.safetensors"), ("0.safetensors", "0.json"), ("raw0.safetensors", "0.json")):
        result = run("compare", *(traced / name for name in pair), "-o", tmp_path / "c.html", "-o", tmp_path / "c.json")
        assert result.exit_code == 0, result.output
        assert "0 only in A, 0 only in B" in result.stdout
        assert not result.stderr
        assert all(item["change"] == 0 for item in json.loads((tmp_path / "c.json").read_text())["shared"])
    done("prune", traced / "raw0.safetensors", "--node-threshold", "0.6", "-q", "-o", tmp_path / "less.json")
    result = run("compare", traced / "0.json", tmp_path / "less.json")
    assert result.exit_code == 0
    assert "one from JSON cannot be pruned again" in result.stderr
    assert (
        "less.json lacks what its pruning dropped: what is only in A may be active there all the same" in result.stderr
    )
    result = run("compare", traced / "0.safetensors", tmp_path / "less.json")
    assert "0.safetensors was pruned with other thresholds; both are compared at those of" in result.stderr


def test_names_and_features_of_a_json_graph_serve_interventions_and_labels(traced, tmp_path):
    out = done("intervene", demo.DALLAS_PROMPT, "--graph", traced / "0.json", "--ablate", '"Texas"')
    assert "Austin" in out
    label = ("label", "--cards", demo.CARDS_FILE, "--no-test", "--graph")
    for name in ("0.json", "0.safetensors"):
        done(*label, traced / name, "-o", tmp_path / f"labels-{name}")
    assert (tmp_path / "labels-0.json").read_text() == (tmp_path / "labels-0.safetensors").read_text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("prune", "0.json", "-o", "x.svg"), "pruning"),
        (("validate", "0.json"), "validation"),
        (("attention", "0.json"), "attention"),
        (("show", "4.json", "--of", "0"), "reading influence on a part of the answer"),
    ],
)
def test_what_needs_the_whole_graph_names_the_file_to_use(traced, arguments, what):
    verb, file, *rest = arguments
    result = run(verb, traced / file, *rest)
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert f"{what} needs the whole graph; a JSON file holds only what pruning kept" in lines[0]
    assert lines[0].endswith("use the trace's .safetensors file")


def test_a_file_that_only_a_page_can_show_says_so(tmp_path):
    content = foreign()
    content["nodes"][0]["feature_type"] = "lorsa"
    (tmp_path / "g.json").write_text(json.dumps(content))
    result = run("show", tmp_path / "g.json")
    assert result.exit_code == 1
    assert result.stderr.strip() == (
        f"error: {tmp_path}/g.json: node '1_7_1' is of type 'lorsa', which a graph of transcoders does not have; "
        f"crosstrace view {tmp_path}/g.json opens it"
    )
    done("view", tmp_path / "g.json")
    (tmp_path / "g.json").write_text(json.dumps(foreign()))
    out = done("show", tmp_path / "g.json")
    assert "replacement and completeness score not known: the JSON file has none" in out
    assert "active features: not known, traced: not known, in the file: 2" in out
    assert "1 nodes share their id with another node" in out
