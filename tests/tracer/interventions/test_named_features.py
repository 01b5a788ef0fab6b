"""Names seen on a graph's page name features of interventions: saved groups, and automatic labels of cards."""

from __future__ import annotations

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
    return model, prune(trace(model, case.input_ids))


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
