"""A sample of a corpus: all that fires in some contexts, the same however it is read, never larger than asked."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from dense_weights import dense_statistics

from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.tensor_file import TensorSource, write_tensors
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo import load_facts
from crosstrace.replacement_model.demo.corpus import sentences
from crosstrace.tracer.cards import build as cards_module
from crosstrace.tracer.cards.build import build_cards
from crosstrace.tracer.cards.run import CardsInterrupted
from crosstrace.tracer.samples.build import build_sample
from crosstrace.tracer.samples.sample import CorpusSample, sample_of_cards, sample_path

SETTINGS = {"top": 2, "logits": 2, "progress": False}


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [sentence.text for sentence in sentences(load_facts())][::301]


@pytest.fixture(scope="module")
def folder(model, texts, tmp_path_factory):
    """Cards with their sample, and the sample alone."""
    place = tmp_path_factory.mktemp("cards")
    build_cards(model, texts, place / "cards.safetensors", sample_tokens=10_000, **SETTINGS)
    build_sample(model, texts, place / "alone.safetensors", tokens=10_000, progress=False)
    return place


@pytest.fixture(scope="module")
def sample(folder) -> CorpusSample:
    return CorpusSample(sample_path(folder / "cards.safetensors"))


def test_it_holds_what_tracing_each_context_finds(model, texts, sample):
    acts, _, _ = dense_statistics(model, [model.tokenize(text).tolist() for text in texts])
    found = np.concatenate([sample.activations(layer).toarray()[sample.counted] for layer in range(6)], axis=1)
    assert sample.positions == len(acts)
    assert np.allclose(found, acts.numpy(), rtol=1e-4, atol=1e-5)


def test_it_holds_the_texts(model, texts, sample):
    assert sample.n_contexts == len(texts)
    starts = sample.starts.tolist()
    for i, text in enumerate(texts):
        ids = model.tokenize(text)
        assert sample.token_texts(*starts[i : i + 2]) == model.token_strings(ids)
        assert sample.counted[starts[i] : starts[i + 1]].tolist() == [False] + [True] * (len(ids) - 1)


def test_a_feature_is_where_its_column_is(sample):
    layer = 1
    feature = int(sample.fired(layer).argmax())
    tokens, values = sample.feature(layer, feature)
    column = sample.activations(layer)[:, [feature]].toarray()[:, 0]
    assert tokens.tolist() == np.flatnonzero(column).tolist()
    assert values.tolist() == pytest.approx(column[tokens].tolist())
    assert len(tokens) == sample.fired(layer)[feature]


def test_the_pass_for_cards_takes_the_same_sample(sample, folder):
    alone = CorpusSample(folder / "alone.safetensors")
    for layer in range(6):
        assert (alone.activations(layer) != sample.activations(layer)).nnz == 0
    assert np.allclose(alone.norm_scales().inverse_rms_l3, sample.norm_scales().inverse_rms_l3)


def test_cards_are_the_same_with_a_sample_and_without(model, texts, folder, tmp_path):
    path = build_cards(model, texts, tmp_path / "cards.safetensors", **SETTINGS).path
    assert path.read_bytes() == (folder / "cards.safetensors").read_bytes()
    assert not sample_path(path).exists()


def test_a_large_corpus_is_thinned_to_the_tokens_asked_for_whatever_the_batches(model, texts, tmp_path):
    samples = [
        build_sample(
            model, texts * 4, tmp_path / f"{batch}.safetensors", tokens=300, batch_tokens=batch, progress=False
        )
        for batch in (64, 1000)
    ]
    one, other = samples
    assert 0 < len(one.counted) <= 300
    assert one.share in (0.5, 0.25, 0.125)
    assert one.numbers().tolist() == other.numbers().tolist()
    assert len(one.numbers()) == pytest.approx(one.share * len(texts) * 4, rel=0.35)


def test_an_interrupted_run_ends_with_the_same_sample(model, texts, folder, tmp_path, monkeypatch):
    path, done, real = tmp_path / "cards.safetensors", [], cards_module.add_batch

    def add_batch(*args):
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        real(*args)

    monkeypatch.setattr(cards_module, "add_batch", add_batch)
    settings = {**SETTINGS, "sample_tokens": 10_000, "batch_tokens": 60}
    with pytest.raises(CardsInterrupted):
        build_cards(model, texts, path, **settings)
    resumed = build_cards(model, texts, path, resume=True, **settings)
    whole, found = CorpusSample(sample_path(folder / "cards.safetensors")), sample_of_cards(resumed)
    assert found is not None
    assert found.numbers().tolist() == whole.numbers().tolist()
    for layer in range(6):
        assert np.allclose(found.activations(layer).toarray(), whole.activations(layer).toarray(), rtol=1e-4, atol=1e-5)
    assert np.allclose(found.norm_scales().inverse_rms_l3, whole.norm_scales().inverse_rms_l3, rtol=1e-5)


def test_a_run_is_not_resumed_with_another_sample(model, texts, tmp_path, monkeypatch):
    def stop(*args):
        raise ValueError("stopped")

    path = tmp_path / "cards.safetensors"
    monkeypatch.setattr(cards_module, "write_cards", stop)
    with pytest.raises(ValueError, match="stopped"):
        build_cards(model, texts, path, sample_tokens=100, **SETTINGS)
    with pytest.raises(ValueError, match="different number of tokens in the sample"):
        build_cards(model, texts, path, sample_tokens=200, resume=True, **SETTINGS)


def test_files_of_others_are_refused_in_one_line(folder, tmp_path, model):
    with pytest.raises(ValueError, match="not a sample of a corpus"):
        CorpusSample(folder / "cards.safetensors")
    write_tensors(tmp_path / "new.safetensors", ("crosstrace-sample", '{"version": 9}'), [])
    with pytest.raises(ValueError, match="written by a newer crosstrace"):
        CorpusSample(tmp_path / "new.safetensors")
    write_tensors(
        tmp_path / "half.safetensors",
        (
            "crosstrace-sample",
            '{"version": 1, "model": "m", "transcoders": "t", "fingerprints": {}, "corpus": {}, "n_features": [2], "share": 1}',
        ),
        [TensorSource.of("starts", np.zeros(1))],
    )
    with pytest.raises(ValueError, match="incomplete, it lacks first"):
        CorpusSample(tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="nothing to read"):
        build_sample(model, [""], progress=False)


def test_a_sample_of_other_weights_beside_cards_is_refused(folder, tmp_path):
    cards = FeatureCards(folder / "cards.safetensors")
    assert sample_of_cards(cards) is not None
    cards.fingerprints = {"transcoders": "others"}
    sample = CorpusSample(sample_path(cards.path))
    assert "other transcoders" in sample.belongs_to(
        cards.model_name, cards.transcoders_name, {"transcoders/2": "others", "transcoders": "others"}
    )
