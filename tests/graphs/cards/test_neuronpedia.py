"""Cards as public viewers read them."""

from __future__ import annotations

import json

import pytest
from card_samples import write_sample
from graph_samples import HOSTILE

from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.cards.neuronpedia import card_as_json, export_cards
from crosstrace.graphs.exporters.neuronpedia import graph_as_json
from crosstrace.graphs.viewer_ids import cantor_pairing


@pytest.fixture
def cards(tmp_path) -> FeatureCards:
    return FeatureCards(write_sample(tmp_path / "cards.safetensors"))


def test_every_feature_gets_the_file_that_viewers_ask_for(cards, tmp_path):
    assert export_cards(cards, tmp_path / "site") == 3
    names = {path.name for path in (tmp_path / "site" / "features" / "model").iterdir()}
    assert names == {f"{cantor_pairing(*key)}.json" for key in cards}
    for key in cards:
        file = tmp_path / "site" / "features" / "model" / f"{cantor_pairing(*key)}.json"
        assert json.loads(file.read_text("ascii")) == card_as_json(cards, key)


def test_one_feature_by_hand(cards):
    example = {"tokens": [" is", " Austin"], "tokens_acts_list": [0.25, 1.0], "train_token_ind": 1}
    assert card_as_json(cards, (0, 3)) == {
        "index": 9,  # (0 + 3)(0 + 3 + 1) / 2 + 3
        "examples_quantiles": [
            {"quantile_name": "Top activations", "examples": [{**example, "is_repeated_datapoint": False}]}
        ],
        "top_logits": [" Austin", " Texas"],
        "bottom_logits": [" Paris", " Dallas"],
        "act_min": 0.0,
        "act_max": 1.0,
        "activation_frequency": 0.4,
        "histogram": [0, 1, 0, 0, 1],
    }


def test_numbers_and_scan_are_those_of_the_graph_s_json(cards, tmp_path):
    from graph_samples import random_graph

    graph = random_graph(model_name="some/model")
    content = graph_as_json(graph)
    features = [node for node in content["nodes"] if node["feature_type"] == "cross layer transcoder"]
    layer, _, feature = graph.feature_of(0)
    assert features[0]["feature"] == cantor_pairing(layer, feature)
    export_cards(cards, tmp_path / "site", [(0, 1)])
    assert (tmp_path / "site" / "features" / content["metadata"]["scan"] / "2.json").is_file()


def test_some_features_under_another_name(cards, tmp_path):
    assert export_cards(cards, tmp_path / "site", [(1, 0)], scan="mine") == 1
    assert [path.name for path in (tmp_path / "site" / "features" / "mine").iterdir()] == ["1.json"]
    with pytest.raises(KeyError):
        export_cards(cards, tmp_path / "site", [(1, 2)])
    with pytest.raises(ValueError, match="scan"):
        export_cards(cards, tmp_path / "site", scan="../up")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export_cards(cards, tmp_path / "no" / "site")


def test_hostile_strings_are_escaped(tmp_path):
    cards = FeatureCards(write_sample(tmp_path / "c.safetensors", HOSTILE[:6]))
    export_cards(cards, tmp_path)
    for path in (tmp_path / "features" / "model").iterdir():
        json.loads(path.read_bytes().decode("ascii"))
    assert card_as_json(cards, (0, 1))["examples_quantiles"][0]["examples"][0]["tokens"] == HOSTILE[:3]
