"""Names seen on a graph's page name features of interventions: saved groups, and automatic labels of cards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from cases import Case, load_case
from typer.testing import CliRunner, Result

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.viewer_ids import node_ids
from crosstrace.replacement_model import Ablate, AllFeatures, FeatureAt, ReplacementModel, Scale, Supernode
from crosstrace.replacement_model.demo import CARDS_FILE
from crosstrace.tracer.attribution.tracing import trace
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.interventions.named_features import by_name, read_groups


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case("clt_affine")


@pytest.fixture(scope="module")
def traced(case: Case) -> tuple[ReplacementModel, AttributionGraph]:
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")
    return model, prune(trace(model, case.input_ids, guess_names=True))


@pytest.fixture
def saved(traced: tuple[ReplacementModel, AttributionGraph], tmp_path: Path) -> Path:
    """What the page would save: a group of two features, one with a token and an error too, one of a token alone."""
    graph = traced[1]
    layout, ids = graph.layout, node_ids(graph)
    first, second = (int(node) for node in graph.kept_nodes()[:2])
    token, error, output = layout.tokens.start + 1, layout.errors.start + 2, layout.logits.start
    groups = [
        ["two", ids[first], ids[second]],
        ["mixed", ids[token], ids[second], ids[error], ids[output]],
        ["a token", ids[token]],
    ]
    path = tmp_path / "state.json"
    metadata = {"fingerprints": graph.settings["fingerprints"]}
    path.write_text(json.dumps({"metadata": metadata, "qParams": {"pinnedIds": [ids[first]], "supernodes": groups}}))
    return path


def place(graph: AttributionGraph, node: int) -> FeatureAt:
    layer, position, feature = graph.feature_of(node)
    return FeatureAt(layer, feature, position)


def test_groups_are_their_features_at_the_graph_s_positions(traced, saved):
    model, graph = traced
    first, second = (place(graph, int(node)) for node in graph.kept_nodes()[:2])
    two, mixed, moved, label, everything = by_name(
        [Ablate("two"), Scale('"mixed"', 2.0), Ablate('"two"@1:'), Ablate("L1/2"), Ablate(AllFeatures())], model, saved
    )
    assert two == Ablate(Supernode("two", (first, second)))
    assert mixed == Scale(Supernode("mixed", (second,)), 2.0)
    assert moved.where.members == tuple(FeatureAt(f.layer, f.feature, slice(1, None)) for f in (first, second))
    assert (label, everything) == (Ablate("L1/2"), Ablate(AllFeatures()))
    by_hand = model.intervene(graph.tokens, [Ablate(first), Ablate(second)]).logits_v
    torch.testing.assert_close(model.intervene(graph.tokens, [two]).logits_v, by_hand)


def test_groups_of_one_name_are_one(traced, saved):
    content = json.loads(saved.read_text())
    content["qParams"]["supernodes"] = [["same", "0_1_2"], ["same", "1_3_2"]]
    saved.write_text(json.dumps(content))
    assert read_groups(saved, 4)["same"].members == (FeatureAt(0, 1, 2), FeatureAt(1, 3, 2))


def test_a_group_does_not_take_a_feature_s_name(traced, saved):
    saved.write_text(json.dumps({"qParams": {"pinnedIds": [], "supernodes": [["L0/1", "1_3_2"]]}}))
    feature, group = by_name([Ablate("L0/1@7"), Ablate('"L0/1"')], traced[0], saved)
    assert feature == Ablate("L0/1@7")
    assert group.where.members == (FeatureAt(1, 3, 2),)


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, list(arguments))


def test_the_command_takes_groups(case, traced, saved):
    chosen = ["--model", str(case.model), "--transcoders", str(case.transcoders), "--device", "cpu"]
    prompt = " ".join(traced[1].token_strings[1:])  # the tokenizer puts the first one there itself
    result = run("intervene", prompt, *chosen, "--groups", str(saved), "--ablate", '"two"', "--scale", "mixed=2")
    assert result.exit_code == 1  # one feature is in both
    assert "contradictory" in result.stderr
    result = run("intervene", prompt, *chosen, "--groups", str(saved), "--ablate", '"two"')
    assert result.exit_code == 0, result.output
    assert 'ablate "two" (2 features)' in result.output
    for name, said in (("a token", "group 'a token' has no features"), ("tow", "unknown feature")):
        result = run("intervene", prompt, *chosen, "--groups", str(saved), "--ablate", f'"{name}"')
        assert result.exit_code == 1
        assert said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_automatic_labels_are_those_of_the_cards():
    model, cards = ReplacementModel.demo("cpu"), FeatureCards(CARDS_FILE)
    label = cards.label(next(iter(cards)))
    assert label.startswith("~")
    assert label not in model.transcoders.labels.values()
    (found,) = by_name([Ablate(f'"{label}"')], model)
    assert {(member.layer, member.feature) for member in found.where.members} == {
        key for key in cards if cards.label(key) == label
    }
    with pytest.raises(ValueError, match=r"unknown feature label '~ .*close labels: '~ "):
        by_name([Ablate(label[:-1])], model)


def test_automatic_labels_without_cards_are_refused(traced):
    with pytest.raises(ValueError, match=r"'~ is' comes from feature cards.*has no feature cards"):
        by_name([Ablate("~ is")], traced[0])


def test_names_in_a_graph_name_its_features(traced, case, tmp_path):
    model, graph = traced
    guessed = {name: guess for name, guess in graph.settings["guesses"].items() if guess}
    assert guessed
    guess = next(iter(guessed.values()))
    [found] = by_name([Ablate(f'"{guess}"@1:')], model, graph=graph)
    shown = {graph.feature_key(node) for node in range(graph.layout.n_features) if graph.name_of(node) == guess}
    assert {(member.layer, member.feature) for member in found.where.members} == shown
    assert all(member.positions == slice(1, None) for member in found.where.members)
    [everywhere] = by_name([Ablate(guess)], model, graph=graph)
    assert {member.positions for member in everywhere.where.members} == {None}
    with pytest.raises(ValueError, match="is a guess, which is known where a graph holds it: give one with --graph"):
        by_name([Ablate(guess)], model)
    with pytest.raises(ValueError, match="it is not in this one, or write L3/417"):
        by_name([Ablate("→ nothing")], model, graph=graph)
    with pytest.raises(ValueError, match="unknown feature label 'Utah' in the graph or the labels"):
        by_name([Ablate("Utah")], model, graph=graph)
    path = tmp_path / "g.safetensors"
    graph.save(path)
    prompt = "w5 w66 w55 w60 w15"
    chosen = ["--model", str(case.model), "--transcoders", str(case.transcoders), "--device", "cpu"]
    result = CliRunner().invoke(app, ["intervene", prompt, *chosen, "--graph", str(path), "--ablate", f'"{guess}"'])
    assert result.exit_code == 0, result.output


def test_a_graph_of_another_model_gives_no_names(traced):
    graph = traced[1]
    with pytest.raises(ValueError, match="the graph was traced with other transcoders"):
        by_name([Ablate("→ a")], ReplacementModel.demo("cpu"), graph=graph)


def test_labels_mean_all_their_features_whatever_a_graph_holds(traced):
    model, graph = traced
    layer, feature = graph.feature_key(0)
    model.transcoders.labels = {(layer, feature): "Texas", (0, 90): "Texas"}
    try:
        labelled = dataclasses.replace(graph, feature_labels=["Texas", *[""] * (graph.layout.n_features - 1)])
        assert by_name([Ablate("Texas")], model, graph=labelled) == [Ablate("Texas")]  # the passes look it up
    finally:
        model.transcoders.labels = {}


def test_cards_may_lie_anywhere(tmp_path):
    """`intervene` and `validate` know automatic labels of the cards that `--cards` names, as `show` does."""
    cards = tmp_path / "elsewhere.safetensors"
    cards.write_bytes(CARDS_FILE.read_bytes())
    opened = FeatureCards(cards)
    key = next(iter(opened))
    model = ReplacementModel.demo("cpu")
    [found] = by_name([Ablate(opened.label(key))], model, cards=cards)
    assert FeatureAt(*key) in found.where.members
    with pytest.raises(OSError, match="absent"):
        by_name([Ablate(opened.label(key))], model, cards=tmp_path / "absent.safetensors")
    done = CliRunner().invoke(app, ["validate", "absent.safetensors", "--cards", str(cards)])
    assert done.exit_code == 1
    assert "absent.safetensors" in done.stderr
