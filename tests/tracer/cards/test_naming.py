"""Guesses at what unnamed features mean: from what they promote, kept in the graph, never in the place of a label."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import Case

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.graphs.cards.labels import (
    GUESS_LEGEND,
    GUESS_MARK,
    guessed_label,
    is_automatic,
    is_guess,
    is_weak_guess,
    stands_out_at,
)
from crosstrace.graphs.exporters.neuronpedia import graph_as_json
from crosstrace.replacement_model import ReplacementModel, demo, direct_logits
from crosstrace.replacement_model.readouts.direct_logits import coherence_by_chance, promoted_tokens
from crosstrace.tracer import guesses, trace, with_guesses

LARGE = 262144


def unnamed(graph: AttributionGraph) -> AttributionGraph:
    return dataclasses.replace(graph, feature_labels=[])


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


@pytest.fixture(scope="module")
def graph(model: ReplacementModel) -> AttributionGraph:
    return trace(model, demo.DALLAS_PROMPT, progress=False)


@pytest.mark.parametrize("count", [1, 8, 10_000])
def test_promoted_tokens_are_the_upper_end_of_the_direct_logits(case: Case, count: int) -> None:
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    layers = range(model.description.n_layers)
    features = [(layer, feature) for feature in (7, 0, 31) for layer in reversed(layers)]
    found = promoted_tokens(model, features, count)
    for row, (layer, feature) in enumerate(features):
        one = direct_logits(model, layer, torch.tensor([feature]), count)
        torch.testing.assert_close(found.raised[row], one.raised[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.spread[row], one.spread[0], rtol=1e-4, atol=1e-5)
        assert len(set(found.promoted[row].tolist())) == found.promoted.shape[1]
    assert promoted_tokens(model, [], count).promoted.shape[0] == 0


def test_features_that_do_not_exist_are_named(model: ReplacementModel) -> None:
    with pytest.raises(ValueError, match=r"crosstrace-demo-clt has layers 0 to 5, not 6"):
        promoted_tokens(model, [(6, 0)])
    with pytest.raises(ValueError, match=r"layer 2 has features 0 to 511, not 512"):
        promoted_tokens(model, [(2, 512)])


@pytest.mark.parametrize(
    ("promoted", "guess"),
    [
        ([("AG", 9.0), (" AG", 8.5), ("ag", 8.0), (" cat", 0.5)], "→ AG, ag"),
        ([(" Paris", 9.0), (" Lyon", 8.5), (" Nice", 8.0), (" Lille", 7.9)], "→ Paris, Lyon, Nice"),
        ([(" Switzerland", 9.0), (" Liechtenstein", 8.5), (" Luxembourg", 8.0)], "→ Switzerland, Liechtenstein"),
        ([(" the", 9.0), (" a", 1.0)], "→ the"),
        ([("<0xE2>", 9.0), ("<0x80>", 8.9)], "→ <0xE2>, <0x80>"),
        ([("\n", 9.0), ("   ", 8.9), (" ", 8.8)], "→ ↵, ␣␣␣, ␣"),
        ([(",", 9.0), ("',", 8.9), (".", 8.8)], "→ ',', '',', ."),
        ([("\u202e", 9.0)], "→ ⟨202E⟩"),
        ([(" flat", 4.9), (" decoder", 4.8)], "→ flat, decoder"),
        ([], ""),
    ],
)
def test_a_guess_names_two_or_three_tokens_that_look_different(promoted, guess) -> None:
    assert guessed_label(promoted, 1.0, LARGE, coherent=True) == guess
    assert not guess or (is_guess(guess) and not is_weak_guess(guess))


def test_a_guess_that_chance_would_give_is_marked_as_weak() -> None:
    assert guessed_label([("x", 6.1)], 1.0, LARGE, coherent=False) == "→ x"
    weak = guessed_label([("x", 5.9), ("y", 5.8)], 1.0, LARGE, coherent=False)
    assert weak == "→? x, y"
    assert all(says(weak) for says in (is_guess, is_automatic, is_weak_guess))
    assert GUESS_LEGEND.split()[0] == weak.split()[0]
    assert guessed_label([("x", 5.9)], 1.0, 820, coherent=False) == "→ x"  # of fewer tokens the largest is smaller
    assert not guessed_label([("x", 0.0)], 0.0, LARGE, coherent=False)  # a decoder of zeros
    assert not is_weak_guess("→ ?, !")  # the token "?"


def test_every_kept_feature_of_a_graph_without_labels_has_a_guess(model, graph) -> None:
    pruned = with_guesses(prune(unnamed(graph)), model)
    kept = [node for node in pruned.kept_nodes() if node < pruned.layout.n_features]
    keys = {pruned.feature_key(node) for node in kept}
    assert set(pruned.settings["guesses"]) == {f"L{layer}/{feature}" for layer, feature in keys}  # and no others
    named = guesses(model, sorted(keys))
    assert set(named) == keys
    for node in kept:
        assert pruned.name_of(node) == named[pruned.feature_key(node)]
        assert is_guess(pruned.name_of(node))
        assert not pruned.feature_labels[node]


def test_guesses_are_weak_where_promoted_tokens_say_nothing_by_the_rule_of_cards(model, graph) -> None:
    features = [(layer, feature) for layer in range(model.description.n_layers) for feature in range(0, 512, 9)]
    named = guesses(model, features)
    chance = coherence_by_chance(model, 128)
    expected = set()
    for layer in range(model.description.n_layers):
        own = [feature for other, feature in features if other == layer]
        found = direct_logits(model, layer, torch.tensor(own), 1)
        alike = found.coherence > chance
        stands_out = found.raised[:, 0] >= stands_out_at(model.description.vocab_size) * found.spread
        expected |= {(layer, own[i]) for i in (~alike & ~stands_out).nonzero().flatten().tolist()}
    assert {key for key, guess in named.items() if is_weak_guess(guess)} == expected
    assert 0 < len(expected) < len(features)


def test_a_decoder_of_zeros_promotes_nothing(case: Case) -> None:
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    features = [(0, 0), (1, 3)]
    assert set(guesses(model, features)) == set(features)
    rows = model.transcoders.decoder_rows
    model.transcoders.decoder_rows = lambda layer, numbers: rows(layer, numbers) * (layer != 0)
    assert set(guesses(model, features)) == {(1, 3)}


def test_a_guess_is_what_the_decoder_promotes(model, graph) -> None:
    texas = next(node for node, label in enumerate(graph.feature_labels) if label == "Texas")
    layer, feature = graph.feature_key(texas)
    found = direct_logits(model, layer, torch.tensor([feature]), 1)
    token = model.token_strings(found.promoted[0])[0]
    assert guesses(model, [(layer, feature)])[layer, feature].startswith(f"{GUESS_MARK} {token}")


def test_labels_come_before_guesses(model, graph) -> None:
    assert "guesses" not in graph.settings  # all labelled: nothing is guessed
    labels = ["" if node % 2 else "given" for node in range(len(graph.feature_labels))]
    named = with_guesses(dataclasses.replace(graph, feature_labels=labels), model, 1000)
    assert named.feature_labels == labels
    assert all(named.name_of(node) == "given" for node in range(0, len(labels), 2))
    assert any(named.name_of(node).startswith(GUESS_MARK) for node in range(1, len(labels), 2))


def test_guesses_stay_in_the_file_and_nothing_is_guessed_twice(model, graph, tmp_path) -> None:
    named = with_guesses(unnamed(graph), model)
    named.save(tmp_path / "g.safetensors")
    loaded = AttributionGraph.load(tmp_path / "g.safetensors")
    assert loaded.settings["guesses"] == named.settings["guesses"]
    assert with_guesses(loaded, model) is loaded
    pruned = prune(loaded, 0.6)
    content = graph_as_json(pruned)
    clerps = {node["node_id"]: node["clerp"] for node in content["nodes"] if node["feature_type"].startswith("cross")}
    assert clerps
    assert any(clerp.startswith(GUESS_MARK) for clerp in clerps.values())
    assert "guesses" not in content["metadata"]["generation_settings"]


def test_a_trace_guesses_when_asked(model) -> None:
    nameless = ReplacementModel.demo("cpu")
    nameless.transcoders.labels.clear()
    named = trace(nameless, demo.DALLAS_PROMPT, progress=False, guess_names=True)
    kept = prune(named)
    names = [kept.name_of(node) for node in kept.kept_nodes() if node < kept.layout.n_features]
    assert all(names)
    without = trace(nameless, demo.DALLAS_PROMPT, progress=False)
    assert "guesses" not in without.settings
