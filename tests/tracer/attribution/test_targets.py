"""Targets: how they are written, and which are refused."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from cases import load_case
from small_tokenizer import id_of, write_tokenizer

from crosstrace.graphs import graph_scores
from crosstrace.graphs.exporters.neuronpedia import graph_as_json
from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel
from crosstrace.tracer import Contrast, Direction, Feature, Logit, parse_target, trace
from crosstrace.tracer.attribution.targets import resolve_targets, target_notes, top_logits


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
        (r'"\n"', Logit("\n")),
        (r'"a\tb\\n"', Logit("a\tb\\n")),
        (r'"\u00e9"', Logit("é")),
        (r'"\ud83d\ude00"', Logit("😀")),
        (r'"\u000d" - "\n"', Contrast("\r", "\n")),
        ('"<0x0A>"', Logit("<0x0A>")),
        ("#24278", Logit(24278)),
        ("#24278@3", Logit(24278, 3)),
        ('#5 - " Dallas"@-1', Contrast(5, " Dallas", -1)),
        ('"#5"', Logit("#5")),
        ("#", Logit("#")),
        (r"\n", Logit("\\n")),
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
        (r'"\q"', r'target "\\q": \\q is not an escape; known are \\n, \\t, \\uXXXX'),
        (r'"a" - "\u12"', r"\\u is not an escape"),
        (r'"\r"', r"\\r is not an escape"),
        (r'"\ud800"', "half of a surrogate pair"),
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
    assert by_id.weight == by_text.weight == 1
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


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ReplacementModel:
    """A model whose vocabulary has blanks, line breaks and bytes."""
    case = load_case("clt_affine")
    folder = shutil.copytree(case.model, tmp_path_factory.mktemp("small") / "model")
    write_tokenizer(folder)
    return ReplacementModel.from_pretrained(folder, case.transcoders, device="cpu")


def test_targets_by_text_byte_and_id(small):
    wanted = [r'"\n"', '"<0x0A>"', '" Austin"', "Austin", f"#{id_of('<0xE2>')}", r"\n"]
    found = resolve(small, small.local("Austin"), wanted)
    names = ["\n", "<0x0A>", " Austin", "Austin", "<0xE2>", "\\n"]
    assert [target.token for target in found] == [id_of(name) for name in names]
    assert [target.string for target in found] == names
    assert {target.weight for target in found} == {1.0}
    assert [t.probability for t in found] == pytest.approx(
        small.local("Austin").logits().softmax(-1)[[id_of(name) for name in names]].tolist(), rel=1e-5
    )


def test_the_token_that_was_probably_meant_is_named(small):
    local = small.local("Austin")
    with pytest.raises(
        ValueError, match=r"target 'Sacramento' is not a single token but 10: .*; \" Sacramento\" is one token"
    ):
        resolve(small, local, '"Austin" - "Sacramento"')
    with pytest.raises(ValueError, match='; " Austin" and "Austin" are one token each'):
        resolve(small, local, "austin")


def test_a_contrast_shows_its_two_tokens_apart(small):
    (target,) = resolve(small, small.local("Austin"), '" Austin" - "Austin"')
    assert target.string == "␣Austin − Austin"
    (target,) = resolve(small, small.local("Austin"), r'" Paris" - "\n"')
    assert target.string == "Paris − ↵"


def test_a_much_likelier_spelling_is_noted(small, monkeypatch):
    local = small.local("Austin")
    logits = torch.zeros(97)
    logits[id_of(" Austin")] = 9.0
    monkeypatch.setattr(local, "logits", lambda place: logits)
    (note,) = target_notes(small, local, ['"Austin"', '" Austin"', "#5", r'"\n"'], -1)
    assert note.startswith('" Austin" (p=0.988) is 8,103 times as likely as the target "Austin" (p=1.2e-04)')
    assert target_notes(small, local, None, -1) == []
    (note,) = target_notes(small, local, r"\n", -1)
    assert note == r"target \n is read as a backslash and a letter; in quotation marks it is a line break"


def test_targets_by_hand_weigh_the_same_and_keep_their_probability(model, local):
    graph = trace(model, local.tokens_p, targets=[5, 9, Contrast(5, 9)])
    assert graph.logit_probabilities.tolist() == [1.0] * 3
    shares = local.logits().softmax(-1)
    assert [graph.probability_of(i) for i in range(3)] == [pytest.approx(shares[5]), pytest.approx(shares[9]), None]
    content = [node for node in graph_as_json(graph)["nodes"] if node["feature_type"] == "logit"]
    assert [node["token_prob"] for node in content[:2]] == pytest.approx(shares[[5, 9]].tolist(), rel=1e-5)
    assert list(graph_as_json(graph)["metadata"]["target_weights"].values()) == [1.0] * 3


def test_what_is_probably_not_meant_is_a_warning_or_a_note(small):
    with pytest.warns(UserWarning, match="<bos> stands at position 1 too"):
        trace(small, [2, 2, id_of("Austin")])
    said: list[str] = []
    trace(small, [2, 2, id_of("Austin")], note=said.append)
    assert len(said) == 1


def test_a_trace_of_excluded_positions_has_no_score(model, local):
    graph = trace(model, local.tokens_p, excluded_first=local.n_positions)
    assert graph.settings["excluded_first"] == local.n_positions
    assert all(math.isnan(score) for score in graph_scores(graph))
    assert graph_as_json(graph)["metadata"]["scores"] == {
        "replacement": None,
        "completeness": None,
        "counted": "the whole graph",
    }
    assert graph.completeness_error() < 1e-5
