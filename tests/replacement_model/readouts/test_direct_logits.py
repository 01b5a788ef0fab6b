"""Direct logits are the decoder rows through gain and centred unembedding, written out densely."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from cases import Case

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.readouts.direct_logits import direct_logits

module = importlib.import_module("crosstrace.replacement_model.readouts.direct_logits")


def dense(model: ReplacementModel, layer: int) -> torch.Tensor:
    """(F, V)"""
    unembedding = model.sites.unembedding.double()
    rows = model.transcoders.reader.decoder(layer).double().sum(1)
    return rows * (1 + model.sites.final_norm.weight.double()) @ (unembedding - unembedding.mean(0)).T


@pytest.fixture
def model(case: Case) -> ReplacementModel:
    return ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")


def test_both_ends_of_every_feature(model: ReplacementModel) -> None:
    for layer in range(model.description.n_layers):
        expected = dense(model, layer)
        found = direct_logits(model, layer, torch.arange(len(expected)), 3)
        torch.testing.assert_close(found.raised.double(), expected.topk(3).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.lowered.double(), (-expected).topk(3).values.neg(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.spread.double(), expected.std(1, correction=0), rtol=1e-4, atol=1e-5)
        for tokens, logits in ((found.promoted, found.raised), (found.suppressed, found.lowered)):
            torch.testing.assert_close(expected.gather(1, tokens).float(), logits, rtol=1e-4, atol=1e-5)


def test_some_features_in_any_blocks(model: ReplacementModel) -> None:
    some = torch.tensor([5, 0, 2])
    whole = direct_logits(model, 1, some, 4)
    blocks: list[int] = []
    one_by_one = direct_logits(model, 1, some, 4, blocks.append, block_size=1)
    assert blocks == [1, 1, 1]
    assert torch.equal(whole.promoted, one_by_one.promoted)
    torch.testing.assert_close(whole.raised, one_by_one.raised)
    assert direct_logits(model, 1, some[:0], 4).promoted.shape == (0, 4)


@pytest.mark.parametrize("count", [1, 10, 60, 820])
def test_groups_of_tokens_lose_none(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOKENS_AT_A_TIME", 256)  # several blocks, the last one of them short
    monkeypatch.setattr(module, "_NUMBERS_AT_A_TIME", 1 << 16)
    model = ReplacementModel.demo("cpu")
    expected = dense(model, 4)
    found = direct_logits(model, 4, torch.arange(len(expected)), count)
    torch.testing.assert_close(found.raised.double(), expected.topk(count).values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.lowered.double(), (-expected).topk(count).values.neg(), rtol=1e-4, atol=1e-5)
    for tokens in (found.promoted, found.suppressed):
        assert all(len(set(row)) == count for row in tokens.tolist())


def test_coherence_is_the_mean_cosine_of_pairs() -> None:
    model = ReplacementModel.demo("cpu")
    found = direct_logits(model, 5, torch.arange(6), 12)
    vectors = model.sites.unembedding.double() - model.sites.unembedding.double().mean(0)
    for tokens, coherence in zip(found.promoted.tolist(), found.coherence.tolist(), strict=True):
        pairs = itertools.combinations(tokens[:10], 2)
        cosines = [float(torch.cosine_similarity(vectors[a], vectors[b], dim=0)) for a, b in pairs]
        assert coherence == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert torch.equal(
        direct_logits(model, 5, torch.arange(6), 1).coherence, found.coherence
    )  # of ten, however few are kept


def test_the_same_token_again_and_again_is_coherent_and_opposite_ones_are_not() -> None:
    model = ReplacementModel.demo("cpu")
    assert float(module.coherence(model, torch.tensor([[7, 7, 7]]))) == pytest.approx(1, abs=1e-5)
    chance = module.coherence_by_chance(model)
    assert 0 < chance < 1
    assert chance == module.coherence_by_chance(model)


def test_a_decoder_that_writes_nothing_is_not_concentrated() -> None:
    model = ReplacementModel.demo("cpu")
    written_nd = torch.zeros(1, model.description.d_model)
    ends = module._Ends(model, written_nd, lowest=True)
    assert float(ends.spread_n) == 0.0
    assert ends.strongest(3)[1].tolist() == [[0.0, 0.0, 0.0]]
