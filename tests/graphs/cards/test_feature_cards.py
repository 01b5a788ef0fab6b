"""The file of cards: what is in it comes out, one card at a time; damage and mismatches get one line."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from card_samples import HEADER, STRINGS, sample_tensors, write_sample
from graph_samples import HOSTILE, random_graph

from crosstrace.graphs.cards.feature_cards import FeatureCards, with_card_labels


@pytest.fixture
def cards(tmp_path) -> FeatureCards:
    return FeatureCards(write_sample(tmp_path / "cards.safetensors"))


def test_a_card_by_hand(cards):
    assert cards[0, 1] == {
        "label": "~ token: Dallas",
        "promoted": [[" Texas", 0.5], [" Austin", 0.25]],
        "suppressed": [[" Paris", -1.0], ["<bos>", -0.5]],
        "contexts": [
            {"tokens": ["<bos>", " Dallas", " is"], "activations": [0.0, 2.5, 0.0], "peak": 1},
            {"tokens": ["<bos>", " Dallas", " is"], "activations": [0.0, 1.0, 0.0], "peak": 1},
        ],
        "histogram": {"counts": [0, 0, 1, 0, 0, 1], "edges": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]},
        "firing_rate": 0.4,
        "max_activation": 2.5,
    }
    assert cards[0, 3]["contexts"] == [{"tokens": [" is", " Austin"], "activations": [0.25, 1.0], "peak": 1}]
    assert cards[0, 3]["label"] == "~ Austin → Austin"  # 8 spreads are more than 1.2 √(2 ln 100)
    assert cards[1, 0]["histogram"]["edges"][-1] == 0.5


def test_a_mapping_of_the_features_that_fired(cards):
    assert list(cards) == [(0, 1), (0, 3), (1, 0)]
    assert len(cards) == 3
    for key in [(0, 0), (0, 4), (2, 0), (-1, 0), (0, -1), "L0/1", (0,), None]:
        assert key not in cards
    with pytest.raises(KeyError, match="L0/2"):
        cards[0, 2]
    assert cards.firing_rates() == [[0.4, 0.4], [0.2]]
    assert [cards.label(key) for key in cards] == [cards[key]["label"] for key in cards]


def test_ids_of_promoted_tokens(cards):
    assert [cards.promoted_ids(key) for key in cards] == [[43, 42], [42, 43], [42, 43]]
    with pytest.raises(KeyError, match="L0/2"):
        cards.promoted_ids((0, 2))


def test_searching_tokens(cards):
    assert cards.search("austin") == [(1, 0), (0, 3), (0, 1)]  # in labels by logit; promoted, but not the most
    assert cards.find(" DALLAS ") == {(0, 1): "automatic label", (1, 0): "context"}
    assert cards.find("is") == {(1, 0): "fires on", (0, 3): "context", (0, 1): "context"}
    assert cards.find("~ austin → aus") == {(0, 3): "automatic label"}
    assert cards.search("nothing") == []
    assert cards.search("a", limit=1) == [(1, 0)]


@pytest.mark.parametrize("first", [",", "',", "→", "~ a, b", "'", "…"])
def test_a_feature_is_found_by_its_whole_label(tmp_path, first):
    cards = FeatureCards(
        write_sample(tmp_path / "c.safetensors", [f"{first}{i}" * (i > 0) or first for i in range(len(STRINGS))])
    )
    for key in cards:
        assert key in cards.find(cards.label(key))


def test_hostile_strings_come_back_as_they_were(tmp_path):
    strings = [*HOSTILE, *STRINGS][: len(STRINGS)]
    cards = FeatureCards(write_sample(tmp_path / "c.safetensors", strings))
    assert cards[0, 1]["contexts"][0]["tokens"] == strings[:3]
    assert all(isinstance(cards.label(key), str) for key in cards)
    cards.search(strings[1])


def test_nothing_but_the_card_is_read(tmp_path):
    """The context tables of the other layer may be anything."""
    tensors = sample_tensors()
    tensors["0.context"][:] = 255
    tensors["0.windows"][:] = 255
    path = tmp_path / "c.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"crosstrace-cards": json.dumps(HEADER)})
    assert FeatureCards(path)[1, 0]["max_activation"] == 0.46875


def test_files_that_are_no_cards(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError):
        FeatureCards(path)
    safetensors.numpy.save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"x\.safetensors: not a file of feature cards"):
        FeatureCards(path)
    random_graph().save(path)
    with pytest.raises(ValueError, match="not a file of feature cards"):
        FeatureCards(path)
    write_sample(path, header={"version": 2})
    with pytest.raises(ValueError, match="written by a newer crosstrace: format 2, this version reads up to 1"):
        FeatureCards(path)
    write_sample(path, header={"n_features": [4, 3, 9]})
    with pytest.raises(ValueError, match=r"x\.safetensors: incomplete, it lacks 2\.features, 2\.fired"):
        FeatureCards(path)


def test_damage_inside_a_file(tmp_path):
    path, tensors = tmp_path / "x.safetensors", sample_tensors()
    metadata = {"crosstrace-cards": json.dumps(HEADER)}
    tensors["0.context"][:] = 200
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"x\.safetensors: the card of L0/1 is damaged"):
        FeatureCards(path)[0, 1]
    del tensors["0.peak"], tensors["tokens"]
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"x\.safetensors: incomplete, it lacks tokens, 0\.peak"):
        FeatureCards(path)


def test_what_cards_belong_to(cards):
    prints = HEADER["fingerprints"]
    assert cards.belongs_to("some/model", "some/transcoders", prints) == ""
    assert cards.belongs_to("/home/me/model", "elsewhere", prints) == ""  # the same weights under other names
    assert cards.belongs_to("x/model", "/copy/of/transcoders@main") == ""  # names alone: by their last part
    assert "made of some/transcoders, the graph of x/others" in cards.belongs_to("some/model", "x/others")
    assert "other transcoders: made of some/transcoders with other weights" in cards.belongs_to(
        "some/model", "some/transcoders", {**prints, "transcoders": "t2"}
    )
    assert "other model weights" in cards.belongs_to("some/model", "some/transcoders", {**prints, "model": "m2"})


def test_labels_for_features_without_one(cards):
    graph = random_graph(3, L=2, P=4, per_layer=5, k=2)
    n = len(graph.selected_features)
    active = graph.active_features.clone()
    active[:, 2] = torch.arange(n) % 4
    graph = dataclasses.replace(graph, active_features=active, feature_labels=["named", *[""] * (n - 1)])
    labelled = with_card_labels(graph, cards)
    assert labelled.feature_labels[0] == "named"
    for node in range(1, n):
        key = graph.feature_key(node)
        assert labelled.feature_labels[node] == (cards.label(key) if key in cards else "")
    assert any(label.startswith("~") for label in labelled.feature_labels)
    mask = torch.ones(graph.n, dtype=torch.bool)
    mask[1:n] = False
    pruned = dataclasses.replace(graph, node_mask=mask)
    # Lists and neighbours name features that pruning dropped, too.
    assert with_card_labels(pruned, cards).feature_labels == labelled.feature_labels
    assert with_card_labels(graph, None) is graph
