"""Recipes and what they may say."""

import json

import pytest

from crosstrace.replacement_model.training.settings import RECIPES, TrainingSettings, load_recipe


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["clt", "transcoders", "sae"])
def test_recipes_load_for_every_kind(name, kind):
    settings = load_recipe(name, kind=kind)
    assert settings.kind == kind
    assert settings.end_to_end is False or kind != "sae"


def test_a_training_json_is_a_recipe(tmp_path):
    settings = load_recipe("laptop", features=77, matryoshka=[0.5, 1.0], kind="sae", layers=[1, 3])
    path = tmp_path / "training.json"
    path.write_text(json.dumps({"settings": settings.as_dict()}))
    assert load_recipe(path) == settings
    assert TrainingSettings(**settings.as_dict()) == settings


def test_a_training_json_of_an_earlier_version_is_a_recipe(tmp_path):
    settings = load_recipe("laptop", buffer_passes=1)
    earlier = {"clip": 0.0} | settings.as_dict()
    del earlier["buffer_passes"]
    path = tmp_path / "training.json"
    path.write_text(json.dumps({"settings": earlier}))
    assert load_recipe(path) == settings


def test_a_partial_recipe_stands_on_laptop(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("tokens = 5000\n[clt]\nlearning_rate = 0.5\n")
    base, own = load_recipe("laptop"), load_recipe(path)
    assert own == base.changed(tokens=5000, minutes=None, learning_rate=0.5)
    assert (
        load_recipe(path, kind="transcoders").learning_rate == load_recipe("laptop", kind="transcoders").learning_rate
    )


def test_a_length_in_tokens_replaces_one_in_minutes():
    assert load_recipe("laptop").minutes is not None
    settings = load_recipe("laptop", tokens=9)
    assert (settings.tokens, settings.minutes) == (9, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"featuers": 3}, r"unknown key 'featuers'"),
        ({"tokens": 1, "minutes": 1.0}, r"tokens and minutes: both are given; expected one"),
        ({"l0": "x"}, r"l0 = 'x': expected a number"),
        ({"features": 2.5}, r"features = 2\.5: expected a whole number"),
        ({"features": True}, r"features = True: expected a whole number"),
        ({"skip": 1}, r"skip = 1: expected true or false"),
        ({"kind": "plt"}, r"kind = 'plt': expected one of transcoders, clt, sae"),
        ({"learning_rate": float("nan")}, r"learning_rate = nan: expected a finite number"),
        ({"features": 0}, r"features = 0: expected a number above 0"),
        ({"threshold_start": 0}, r"threshold_start = 0\.0: expected a number above 0"),
        ({"start_margin": 1}, r"start_margin = 1\.0: expected a number below 1"),
        ({"held_out_share": 1.5}, r"held_out_share = 1\.5: expected a share between 0 and 1"),
        ({"adam_beta2": 1.0}, r"adam_beta2 = 1\.0: expected a number below 1"),
        ({"features": 3}, r"l0 = 20 contradicts features = 3"),
        ({"matryoshka": [0.5, 0.25, 1.0]}, r"matryoshka = \[0\.5, 0\.25, 1\.0\]: expected ascending shares"),
        ({"matryoshka": [0.5]}, r"the last prefix is all features, expected 1"),
        ({"batch_tokens": 500}, r"batch_tokens = 500 contradicts chunk_positions = 16"),
        ({"buffer_tokens": 16}, r"buffer_tokens = 16 contradicts batch_tokens"),
        ({"layers": [1]}, r"layers contradicts kind = 'clt'"),
        ({"kind": "sae", "skip": True}, r"skip = true contradicts kind = 'sae'"),
        ({"kind": "transcoders", "initialise_from": "x"}, r"initialise_from contradicts kind = 'transcoders'"),
        ({"activation": "ste-jumprelu", "l0_loss": "none"}, r"l0_loss = 'none' contradicts activation"),
    ],
)
def test_wrong_values_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        load_recipe("laptop", **changes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("learning_rate =", r"recipe .*own\.toml: is not TOML"),
        ("clt = 3", r"clt = 3: expected a table, \[clt\]"),
        ("[clt]\nlearning = 3", r"unknown key 'learning'; did you mean .*learning_rate"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, said):
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        load_recipe(path)


def test_missing_recipes_are_named():
    with pytest.raises(FileNotFoundError, match=r"recipe lap: no such file, .*\(laptop, gemma-scope-2"):
        load_recipe("lap")
