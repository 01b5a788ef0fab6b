"""Targets: how they are written, and which are refused."""

from __future__ import annotations

import pytest
import torch
from cases import load_case

from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel
from crosstrace.tracer import Contrast, Direction, Feature, Logit, parse_target
from crosstrace.tracer.attribution.targets import resolve_targets, top_logits


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    case = load_case("clt_affine")
    return ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")


@pytest.fixture(scope="module")
def local(model) -> LocalReplacementModel:
    return model.local(load_case("clt_affine").input_ids)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ('" Austin"', Logit(" Austin")),
        ('" Austin"@3', Logit(" Austin", 3)),
        (" Austin", Logit(" Austin")),
        ("a - b", Logit("a - b")),
        ('" Austin" - " Dallas"', Contrast(" Austin", " Dallas")),
        ('"a"-"b"@-2', Contrast("a", "b", -2)),
        (r'"say \"hi\""', Logit('say "hi"')),
        ('"\n"', Logit("\n")),
        ("L3/417@7", Feature(3, 417, 7)),
        ("L3/417", Feature(3, 417)),
        ("3/417@-1", Feature(3, 417, -1)),
        ('"3/417"', Logit("3/417")),
        ("L3", Logit("L3")),
    ],
)
def test_parse(text, target):
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L3/417@2:4", "target 'L3/417@2:4' must name one position, as in L3/417@7"),
        ("L3/417@x", "positions 'x' cannot be read; write 7, -1"),
        ("L3/x", "feature 'L3/x' cannot be read; write L3/417 or L3/417@7"),
    ],
)
def test_features_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        parse_target(text)


def test_fewest_top_logits_that_reach_the_probability():
    logits = torch.log(torch.tensor([0.5, 0.05, 0.3, 0.15]))
    assert top_logits(logits, 10, 0.5)[0].tolist() == [0]
    assert top_logits(logits, 10, 0.79)[0].tolist() == [0, 2]
    assert top_logits(logits, 10, 0.949)[0].tolist() == [0, 2, 3]
    assert top_logits(logits, 10, 1.0)[0].tolist() == [0, 2, 3, 1]
    assert top_logits(logits, 2, 1.0)[0].tolist() == [0, 2]
    assert top_logits(logits, 10, 0.79)[1].tolist() == pytest.approx([0.5, 0.3])


def resolve(model, local, targets, position=-1):
    return resolve_targets(model, local, targets, position, 10, 0.95)


def test_token_by_id_and_by_text_are_the_same(model, local):
    by_id, by_text = resolve(model, local, [5, "w5"])
    assert by_id.token == by_text.token == 5
    assert by_id.string == "w5"
    assert by_id.weight == by_text.weight == 0.5
    assert by_id.probability == pytest.approx(local.logits().softmax(-1)[5].item(), rel=1e-5)
    assert torch.equal(by_id.target.gradient_d, by_text.target.gradient_d)


def test_own_position_goes_before_the_trace_s(model, local):
    (target,) = resolve(model, local, '"w5"@3', position=6)
    assert target.target.position == 3
    (target,) = resolve(model, local, '"w5"', position=6)
    assert target.target.position == 6
    (target,) = resolve(model, local, '"w5"@-1', position=6)
    assert target.target.position == local.n_positions - 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("w5 w6", r"target 'w5 w6' is not a single token but 2: \['w5', 'w6'\]"),
        ("Texas", "target 'Texas' is not in the vocabulary"),
        (97, "target token id 97 is out of range; the vocabulary has ids 0 to 96"),
        (Contrast(3, 3), "two different tokens"),
        (Feature(4, 0), "L4/0: the model has layers 0 to 3"),
        (Feature(0, 96), "L0/96: layer 0 has features 0 to 95"),
        (Feature(0, 5, 0), "the first 1 positions carry no features"),
        (Logit(3, 12), "target position 12 is outside the prompt, which has 12 tokens"),
        (Logit(3, -13), "target position -13 is outside the prompt"),
        (Direction(torch.zeros(3), 1), r"its vector has shape \(3,\); expected \(64,\)"),
        (Direction(torch.full((64,), torch.nan), 1), "all finite"),
        (Direction(torch.zeros(64), 9, label="probe"), "'probe': layer 9 is outside 0 to 4"),
    ],
    ids=str,
)
def test_targets_that_cannot_be_traced(model, local, target, message):
    with pytest.raises(ValueError, match=message):
        resolve(model, local, target)


def test_model_without_tokenizer_needs_ids(local):
    case = load_case("clt_affine")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    model.tokenizer = None
    with pytest.raises(ValueError, match="as a token id"):
        resolve(model, local, "w5")
    assert resolve(model, local, 5)[0].string == "<5>"


def test_a_feature_that_is_not_active_there_says_so(model, local):
    layer, position, feature = local.activations.indices[0].tolist()
    silent = next(f for f in range(96) if [layer, position, f] not in local.activations.indices.tolist())
    active, other = resolve(model, local, [Feature(layer, feature, position), Feature(layer, silent, position)])
    assert active.string == f"L{layer}/{feature}@{position}"
    assert other.string == f"L{layer}/{silent}@{position}, not active there"
