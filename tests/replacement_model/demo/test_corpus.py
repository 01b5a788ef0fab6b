"""The demo's facts, sentences, tokenizer and stored files hang together."""

import json
from collections import Counter

import pytest
from safetensors import safe_open

from crosstrace.replacement_model.demo import (
    DALLAS_ANSWER,
    DALLAS_PROMPT,
    LABELS_FILE,
    MODEL_DIR,
    TRANSCODERS_DIR,
    load_facts,
    load_labels,
)
from crosstrace.replacement_model.demo.corpus import (
    build_tokenizer,
    held_out_cities,
    held_out_sentences,
    sentences,
    training_sentences,
)


@pytest.fixture(scope="module")
def facts():
    return load_facts()


@pytest.fixture(scope="module")
def tokenizer(facts):
    return build_tokenizer(facts)


@pytest.fixture(scope="module")
def stored_tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(MODEL_DIR)


def test_states_are_complete(facts):
    assert len(facts.states) == 50
    for key in ("name", "abbreviation", "capital"):
        assert len({getattr(state, key) for state in facts.states}) == 50, key
    assert all(6 <= len(state.cities) <= 8 for state in facts.states)


def test_countries_are_complete(facts):
    assert 40 <= len(facts.countries) <= 50
    assert len({country.capital for country in facts.countries}) == len(facts.countries)
    assert all(country.language and country.continent and len(country.cities) >= 3 for country in facts.countries)


def test_no_name_stands_for_two_things(facts):
    names = [n for state in facts.states for n in (state.name, state.abbreviation, state.capital, *state.cities)]
    names += [n for country in facts.countries for n in (country.name, country.capital, *country.cities)]
    names += sorted({c.language for c in facts.countries} | {c.continent for c in facts.countries})
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert sorted(names) == sorted(facts.entities())


def test_a_fifth_of_the_cities_is_held_out(facts):
    held_out = held_out_cities(facts)
    assert "Dallas" in held_out
    for places in (facts.states, facts.countries):
        cities = [city for place in places for city in place.cities]
        assert len(held_out & set(cities)) == round(len(cities) / 5)
    assert all(held_out & set(state.cities) for state in facts.states)
    assert held_out_cities(facts) == held_out


def test_held_out_cities_stand_in_one_step_sentences_only(facts):
    held_out = held_out_cities(facts)
    trained_on = training_sentences(facts)
    assert all(s.steps == 1 for s in trained_on if s.city in held_out)
    assert {s.city for s in trained_on if s.steps == 1} >= held_out
    assert {s.city for s in held_out_sentences(facts)} == held_out
    assert len(trained_on) + len(held_out_sentences(facts)) == len(list(sentences(facts)))


def test_the_dallas_prompt_is_one_of_the_held_out(facts):
    found = [s for s in held_out_sentences(facts) if s.prompt == DALLAS_PROMPT]
    assert [s.answer for s in found] == [DALLAS_ANSWER.strip()]


def test_sentences_end_in_their_answer_and_no_two_are_alike(facts):
    texts = [s.text for s in sentences(facts)]
    assert len(set(texts)) == len(texts)
    assert all("{" not in text and "None" not in text for text in texts)
    answers: dict[str, set[str]] = {}
    for s in sentences(facts):
        answers.setdefault(s.prompt, set()).add(s.answer)
    assert [prompt for prompt, found in answers.items() if len(found) > 1] == []


def test_every_entity_is_one_token(facts, tokenizer):
    for name in facts.entities():
        for text in (name, f" {name}"):
            ids = tokenizer(text).input_ids
            assert ids[0] == tokenizer.bos_token_id
            assert [tokenizer.decode([i]) for i in ids[1:]] == [name]


def test_special_tokens_have_gemmas_ids(tokenizer):
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)


def test_sentences_survive_the_tokenizer(facts, tokenizer):
    for sentence in sentences(facts):
        ids = tokenizer(sentence.text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == sentence.text


def test_longer_names_win(tokenizer):
    assert tokenizer.tokenize("Oklahoma City in Oklahoma, Iowa City") == [
        "Oklahoma City",
        "in",
        "Oklahoma",
        "<unk>",
        "Iowa City",
    ]


def test_stored_tokenizer_is_the_built_one(facts, tokenizer, stored_tokenizer):
    assert stored_tokenizer.get_vocab() == tokenizer.get_vocab()
    for sentence in list(sentences(facts))[::97]:
        assert stored_tokenizer(sentence.text).input_ids == tokenizer(sentence.text).input_ids


def test_stored_files_stay_under_ten_megabytes():
    files = [path for folder in (MODEL_DIR, TRANSCODERS_DIR) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6


def test_labels_are_well_formed():
    raw = json.loads(LABELS_FILE.read_text(encoding="utf-8"))
    assert raw["format"] == "crosstrace-labels/1"
    layers = load_labels()
    config = json.loads((TRANSCODERS_DIR / "config.json").read_text(encoding="utf-8"))
    assert len(layers) == len(config["hf_hook_point_in"])
    for layer, entries in enumerate(layers):
        with safe_open(TRANSCODERS_DIR / f"params_layer_{layer}.safetensors", framework="pt") as file:
            features = file.get_slice("b_enc").get_shape()[0]
        assert set(entries) <= set(range(features))
        for entry in entries.values():
            assert set(entry) == {"label", "fires_on", "promotes"}
            assert 0 < len(entry["label"]) <= 40
            assert entry["fires_on"]
    assert any("Texas" in entry["label"] for entries in layers for entry in entries.values())
