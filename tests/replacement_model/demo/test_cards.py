"""The demo's cards and labels are those of its weights and its own sentences, made again here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from places import EXAMPLES
from typer.testing import CliRunner

from crosstrace.graphs import FeatureCards
from crosstrace.replacement_model import ReplacementModel, demo
from crosstrace.replacement_model.fingerprints import weight_fingerprints
from crosstrace.tracer.cards.lookup import find_cards
from crosstrace.tracer.commands.app import app

FLOAT32 = torch.float32


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


@pytest.fixture(scope="module")
def shipped() -> FeatureCards:
    return FeatureCards(demo.CARDS_FILE)


@pytest.fixture(scope="module")
def training(request):
    """The package that makes the demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import demo_training.activations
        import demo_training.cards
        import demo_training.labels
        import demo_training.model
        import demo_training.quality

        yield demo_training


@pytest.fixture(scope="module")
def made_again(training, tmp_path_factory) -> FeatureCards:
    """By the command, as anybody would."""
    folder = tmp_path_factory.mktemp("demo")
    corpus, path = training.cards.write_corpus(folder), folder / "cards.safetensors"
    settings = ["--top", training.cards.TOP, "--logits", training.cards.LOGITS]
    arguments = ["features", "--corpus", corpus, "-o", path, "-q", *settings]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return FeatureCards(path)


def test_the_cards_are_of_the_weights_beside_them(model, shipped):
    assert shipped.fingerprints == weight_fingerprints(model), "run: python examples/train_demo.py --describe"
    cards = find_cards(model.name, model.transcoders.name, weight_fingerprints(model))
    assert cards is not None
    assert cards.path == demo.CARDS_FILE


def test_the_demo_s_sentences_give_the_same_cards(shipped, made_again):
    assert made_again.corpus == shipped.corpus
    assert made_again.settings == shipped.settings
    assert made_again.positions == shipped.positions
    # Sums are rounded in another order on another machine: a feature at its threshold may fire once more or less.
    assert len(set(shipped) ^ set(made_again)) <= len(shipped) // 200
    both = [key for key in shipped if key in made_again]
    same = 0
    for key in both:
        one, other = shipped[key], made_again[key]
        np.testing.assert_allclose(one["max_activation"], other["max_activation"], rtol=2e-3)
        np.testing.assert_allclose(one["firing_rate"], other["firing_rate"], rtol=0.05, atol=2 / shipped.positions)
        wordings = [[context["tokens"] for context in card["contexts"]] for card in (one, other)]
        same += wordings[0] == wordings[1] and one["label"] == other["label"]
    assert same >= 0.97 * len(both)


def test_the_demo_s_sentences_give_the_same_labels(model, training):
    facts = demo.load_facts()
    texts = list(training.cards.sentences(facts))
    ids = training.model.encode(texts, model.tokenizer)
    # In float32, as the labels were made: whole batches of sentences run faster.
    whole = ReplacementModel.from_pretrained(demo.MODEL_DIR, demo.TRANSCODERS_DIR, "cpu", dtype=FLOAT32)
    activations = training.activations.collect(whole.model, ids, whole.tokenizer)
    found = training.quality.firings(whole, activations)
    labels = training.labels.make_labels(whole, found, activations, texts, whole.tokenizer, facts)
    shipped = json.loads(demo.LABELS_FILE.read_text(encoding="utf-8"))
    total = same = 0
    for one, other in zip(json.loads(json.dumps(labels))["layers"], shipped["layers"], strict=True):
        total += len(other)
        same += sum(one.get(feature) == entry for feature, entry in other.items())
    assert same >= 0.99 * total


def test_labels_and_cards_tell_the_same(shipped):
    """Labelled features have cards; what it promotes, and the words it fires on, are the card's too."""
    labels = {
        (layer, feature): entry for layer, some in enumerate(demo.load_labels()) for feature, entry in some.items()
    }
    assert len(set(labels) ^ set(shipped)) <= len(labels) // 200  # as above
    on_its_words = shown = 0
    for key in set(labels) & set(shipped):
        entry, card = labels[key], shipped[key]
        if entry["promotes"] and card["promoted"]:  # shown where they say something
            assert card["promoted"][0][0] == entry["promotes"][0]
            shown += 1
        words = {words.rpartition(" … ")[2] for words in entry["fires_on"]}
        on_its_words += any(context["tokens"][context["peak"]] in words for context in card["contexts"])
    # Labels go by the mass of all activations, cards by single contexts: nearly always the same words.
    assert on_its_words >= 0.9 * len(labels)
    assert shown >= 0.8 * len(labels)


def test_the_demo_stays_small():
    assert demo.CARDS_FILE.stat().st_size < 0.75e6
