"""``crosstrace features``: cards made, looked up, searched, exported, and used by the other verbs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from card_samples import write_sample
from cases import load_case
from graph_samples import HOSTILE
from typer.testing import CliRunner, Result

from crosstrace.graphs import prune as prune_graph
from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.replacement_model import embedded
from crosstrace.tracer.commands.app import app

DALLAS = "The capital of the state containing Dallas is"


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


def said(result: Result, code: int = 1) -> str:
    """The one line of an error."""
    assert result.exit_code == code, result.output
    [line] = result.stderr.strip().splitlines()
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    texts = ["The state containing Dallas is Texas", "", "Houston is a city in Texas", DALLAS + " Austin"]
    path.write_text("\n".join(json.dumps({"body": text}) for text in texts))
    return path


@pytest.fixture(scope="module")
def cards(corpus) -> Path:
    path = corpus.parent / "cards.safetensors"
    result = run("features", "--corpus", corpus, "--text-field", "body", "-o", path, "--top", 3)
    assert result.exit_code == 0, result.output
    assert f"wrote {path}" in result.stdout
    assert f"to use these cards, give --cards {path}" in result.stdout  # the demo keeps those it came with
    assert f"left out 1 empty and 0 broken texts ({corpus}, line 2: empty)" in result.stderr
    assert "3 texts" in result.stdout
    return path


@pytest.fixture(scope="module")
def graph(corpus) -> Path:
    path = corpus.parent / "g.safetensors"
    assert run("trace", DALLAS, "-q", "-o", path).exit_code == 0
    return path


@pytest.fixture
def unlabelled(graph, tmp_path) -> Path:
    """The graph as of transcoders without labels."""
    from crosstrace.graphs import AttributionGraph

    found = AttributionGraph.load(graph)
    found.feature_labels = [""] * len(found.feature_labels)
    found.save(tmp_path / "unlabelled.safetensors")
    return tmp_path / "unlabelled.safetensors"


def test_cards_beside_the_transcoders_need_no_word(tmp_path):
    case = load_case("clt_affine")
    shutil.copytree(case.transcoders, tmp_path / "clt")
    (tmp_path / "texts.txt").write_text("w5 w6 w7\n")
    result = run("features", "--corpus", tmp_path / "texts.txt", "-m", case.model, "-t", tmp_path / "clt", "-q")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "clt" / "cards.safetensors").is_file()
    assert "--cards" not in result.stdout


def test_one_card(cards):
    found = FeatureCards(cards)
    key = next(key for key in found if "Dallas" in found.contexts(key)[0].tokens)
    result = run("features", f"L{key[0]}/{key[1]}", "--cards", cards)
    assert result.exit_code == 0
    assert f"L{key[0]}/{key[1]}" in result.stdout
    context = found.contexts(key)[0]
    assert f"[[{context.tokens[context.peak]}]]" in result.stdout
    assert found[key]["promoted"][0][0] in result.stdout
    assert f"of {found.positions:,} tokens" in result.stdout


def test_words_are_looked_for(cards):
    result = run("features", "Houston", "--cards", cards)
    assert result.exit_code == 0
    assert "features with 'Houston'" in result.stdout
    assert said(run("features", "qwertz", "--cards", cards)).startswith("no feature has 'qwertz' in its label")


def test_what_there_is(cards):
    result = run("features", "--cards", cards)
    assert result.exit_code == 0
    assert "texts.jsonl: 3 texts, 3 contexts of up to 64 tokens" in result.stdout
    assert "of 3,072 features fired" in result.stdout


def test_features_that_are_not_there(cards):
    found = FeatureCards(cards)
    silent = next(feature for feature in range(512) if (0, feature) not in found)
    assert f"feature L0/{silent} did not fire in the corpus of" in said(
        run("features", f"L0/{silent}", "--cards", cards)
    )
    assert "layer 2 has features 0 to 511" in said(run("features", "L2/512", "--cards", cards))
    assert "layers 0 to 5" in said(run("features", "L6/0", "--cards", cards))
    assert "feature 'L0/x' cannot be read; write L3/417 or L3/417@7" in said(run("features", "L0/x", "--cards", cards))


def test_every_way_to_write_a_feature_shows_its_card(cards):
    layer, feature = next(iter(FeatureCards(cards)))
    shown = {
        run("features", f"{text}/{feature}{at}", "--cards", cards).stdout
        for text in (layer, f"L{layer}")
        for at in ("", "@7")
    }
    assert len(shown) == 1
    assert f"L{layer}/{feature}" in shown.pop()


def test_export(cards, tmp_path):
    found = FeatureCards(cards)
    result = run("features", "--cards", cards, "--export-json", tmp_path / "site", "-q")
    assert f"wrote {len(found):,} features to {tmp_path / 'site'}" in result.stdout
    assert len(list((tmp_path / "site" / "features" / "crosstrace-demo").iterdir())) == len(found)


def test_wrong_usage(corpus, cards, tmp_path):
    assert run("features", "--resume").exit_code == 2
    for option in ("-o", "--model", "--context-length", "--batch-tokens"):
        result = run("features", option, "64")
        assert result.exit_code == 2
        assert "goes with --corpus" in " ".join(result.stderr.split())
    assert run("features", "--corpus", corpus, "--cards", cards).exit_code == 2
    assert run("features", "--corpus", corpus, "--model", "x").exit_code == 2
    assert "no key 'text' (keys: 'body')" in said(run("features", "-c", corpus, "-o", corpus.parent / "x.safetensors"))
    assert "no such file" in said(run("features", "-c", "no.txt"))
    assert "not a safetensors file" in said(run("features", "--cards", corpus))
    assert "make them with crosstrace features --corpus FILE" in said(run("features", "-t", tmp_path))


def test_a_page_holds_the_cards_of_its_features(unlabelled, cards, tmp_path):
    page = tmp_path / "g.html"
    result = run("view", unlabelled, "-o", page, "--cards", cards)
    assert result.exit_code == 0, result.output
    data = json.loads(
        page.read_text().partition('<script type="application/json"')[2].partition(">")[2].partition("</")[0]
    )
    found = FeatureCards(cards)
    features = {
        (layer, feature)
        for kind, layer, feature in zip(*(data["nodes"][k] for k in ("kind", "layer", "feature")), strict=True)
        if kind == "f"
    }
    assert data["cards"] == {f"{key[0]}/{key[1]}": found[key] for key in sorted(features) if key in found}
    assert data["cards"]


def test_json_graphs_show_cards_too(graph, cards, tmp_path):
    assert run("prune", graph, "-q", "-o", tmp_path / "g.json").exit_code == 0
    assert run("view", tmp_path / "g.json", "--cards", cards).exit_code == 0
    assert '"contexts":' in (tmp_path / "g.html").read_text()


def test_tables_and_files_name_unlabelled_features(unlabelled, cards, tmp_path):
    shown = run("show", unlabelled, "--cards", cards)
    assert shown.exit_code == 0
    assert "~ is" in shown.stdout
    assert "~" not in run("show", unlabelled, "--cards", cards, "--features", 0, "--paths", 0).stdout
    path = tmp_path / "g.json"
    assert run("prune", unlabelled, "--cards", cards, "-q", "-o", path, "-o", tmp_path / "p.safetensors").exit_code == 0
    clerps = [node["clerp"] for node in json.loads(path.read_text())["nodes"]]
    assert any(clerp.startswith("~ ") for clerp in clerps)
    from crosstrace.graphs import AttributionGraph

    assert not any(AttributionGraph.load(tmp_path / "p.safetensors").feature_labels)  # the graph stays as it is


def test_a_feature_of_a_graph(graph, cards):
    from crosstrace.graphs import AttributionGraph

    found, traced = FeatureCards(cards), AttributionGraph.load(graph)
    layer, position, feature = next(place for node in range(50) if (place := traced.feature_of(node))[::2] in found)
    result = run("show", graph, "--feature", f"L{layer}/{feature}", "--cards", cards)
    assert result.exit_code == 0, result.output
    for part in ("in this prompt", "Dallas", f"({position})", "from", "to", "promotes"):
        assert part in result.stdout
    for written in (f"{layer}/{feature}", f"L{layer}/{feature}@{position}", f"{layer}/{feature}@-1"):
        assert run("show", graph, "--feature", written, "--cards", cards).stdout == result.stdout
    label = traced.feature_labels[0]
    assert label in run("show", graph, "--feature", label, "--cards", cards).stdout
    assert "is not active in the graph's prompt" in said(run("show", graph, "--feature", "L0/9999", "--cards", cards))
    assert "L9/1: the graph's model has layers 0 to 5" in said(run("show", graph, "--feature", "L9/1"))
    assert "no feature of the graph has the label 'qwertz'" in said(run("show", graph, "--feature", "qwertz"))


def test_cards_of_something_else_are_refused_and_not_taken_by_themselves(graph, tmp_path, monkeypatch):
    other = write_sample(tmp_path / "other.safetensors")
    message = "are of other transcoders: made of some/transcoders, the graph of crosstrace-demo-clt"
    for verb in (["show", graph], ["view", graph, "-o", tmp_path / "x.html"]):
        assert message in said(run(*verb, "--cards", other))
    own = dataclasses.replace(embedded.DEMO, cards=other)
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", (own, embedded.DEMO_CHAT))
    result = run("show", graph)
    assert result.exit_code == 0
    assert result.stderr.startswith("note: feature cards are not used: the cards in")
    assert message in result.stderr
    other.write_bytes(b"damaged")
    assert "damaged or not a safetensors file" in run("show", graph).stderr


def test_hostile_strings_in_the_terminal(tmp_path):
    cards = write_sample(tmp_path / "c.safetensors", [*HOSTILE[:3], "[bold]x[/]", *HOSTILE[3:5]])
    for arguments in (["L0/1"], ["L0/3"], ["bold"], []):
        result = run("features", *arguments, "--cards", cards)
        assert result.exit_code == 0, result.output
        assert not {"\x1b", "\u202e", "\x00"} & set(result.stdout)


def test_neighbours_of_a_feature_have_the_names_of_their_cards(unlabelled, cards, tmp_path):
    """Those that pruning dropped, too."""
    from crosstrace.graphs import AttributionGraph

    found = FeatureCards(cards)
    pruned = prune_graph(AttributionGraph.load(unlabelled), 0.3, 0.5)
    pruned.save(tmp_path / "p.safetensors")
    dropped = {node for node in range(pruned.layout.n_features) if not pruned.node_mask[node]}
    edges = abs(pruned.edges.toarray())
    node, source = next(
        (node, source)
        for node in sorted(dropped)
        if pruned.feature_key(node) in found
        and edges[node].any()
        and (source := int(edges[node].argmax())) in dropped
        and pruned.feature_key(source) in found
    )
    layer, feature = pruned.feature_key(node)
    result = run("show", tmp_path / "p.safetensors", "--feature", f"L{layer}/{feature}", "--cards", cards)
    assert result.exit_code == 0, result.output
    assert found.label(pruned.feature_key(source)).split(" →")[0] in result.stdout


def test_cards_of_conversations(tmp_path):
    """Those of the conversations as the template writes them: the same as of their texts."""
    from crosstrace.replacement_model import BaseModel
    from crosstrace.replacement_model.demo_chat.conversations import conversations

    told = conversations("two_hop", "held-out", 12, seed=0)
    lines = [[*one.messages, {"role": "assistant", "content": one.answer}] for one in told]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    tokenizer = BaseModel.from_pretrained("demo-chat", "cpu").tokenizer
    texts = [tokenizer.apply_chat_template(line, tokenize=False) for line in lines]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    made = []
    for option in (["--messages", tmp_path / "chats.jsonl"], ["--corpus", tmp_path / "texts.jsonl"]):
        path = tmp_path / f"{option[0][2:]}.safetensors"
        result = run("features", "--model", "demo-chat", *option, "-o", path, "-q")
        assert result.exit_code == 0, result.output
        made.append(FeatureCards(path))
    assert dict(made[0]) == dict(made[1])
    assert len(made[0]) > 50
    (tmp_path / "chats.jsonl").write_text('[{"role": "oracle", "content": "Hi"}]', "utf-8")
    result = run(
        "features", "--model", "demo-chat", "--messages", tmp_path / "chats.jsonl", "-o", tmp_path / "x.safetensors"
    )
    assert "chats.jsonl, line 1: " in said(result)
    assert "oracle" in said(result)
    assert run("features", "--messages", tmp_path / "chats.jsonl", "--corpus", "a.txt").exit_code == 2
