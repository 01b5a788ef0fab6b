"""Prompts read in batches under edits: the same as one prompt at a time, in the model without a cache."""

from __future__ import annotations

import pytest
import torch

from crosstrace.replacement_model import Ablate, Add, FeatureAt, Freeze, ReplacementModel
from crosstrace.replacement_model.interventions.edits import resolve
from crosstrace.tracer.chat.passes import Reading, Run, answer_all, force_all, in_batches, token_log_probabilities

PROMPTS = ["The capital of the state containing Dallas is", "Dallas is a city in", "The capital of Texas is"]


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo(device="cpu")


@pytest.fixture(scope="module")
def prompts(model) -> list[list[int]]:
    return [model.tokenize(text).tolist() for text in PROMPTS]


def logits_of(model, tokens) -> torch.Tensor:
    return model.sites.unembed(model.sites.run(model.sites.embed(torch.tensor(tokens))[None])[0])


def test_greedy_answers_are_those_of_the_model(model, prompts):
    for prompt, answered in zip(prompts, answer_all(model, [Run(p) for p in prompts], 4, ends=[]), strict=True):
        text = list(prompt)
        for _ in range(4):
            text.append(int(logits_of(model, text)[-1].argmax()))
        assert answered.tokens == text[len(prompt) :]


def test_an_ending_is_left_out(model, prompts):
    plain = answer_all(model, [Run(prompts[0])], 4, ends=[])[0].tokens
    assert answer_all(model, [Run(prompts[0])], 4, ends=[plain[1]])[0].tokens == plain[:1]


def test_continuations_have_the_probability_that_the_model_gives_them(model, prompts):
    continuations = [[5, 6, 7], [8], [5, 9]]
    for prompt, answered in zip(
        prompts, answer_all(model, [Run(p) for p in prompts], 0, [], continuations), strict=True
    ):
        for tokens, found in zip(continuations, answered.log_probabilities, strict=True):
            log_p = logits_of(model, [*prompt, *tokens]).double().log_softmax(-1)
            expected = sum(log_p[len(prompt) - 1 + i, token].item() for i, token in enumerate(tokens))
            assert found == pytest.approx(expected, abs=1e-4)


def test_forced_answers_of_different_lengths(model, prompts):
    answers = [[5], [6, 7, 8], [9, 10]]
    for prompt, answer, normed in zip(
        prompts, answers, force_all(model, [Run(p) for p in prompts], answers), strict=True
    ):
        log_p = logits_of(model, [*prompt, *answer]).double().log_softmax(-1)
        expected = [log_p[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
        assert token_log_probabilities(model, normed, torch.tensor(answer)).tolist() == pytest.approx(
            expected, abs=1e-4
        )


def test_edits_are_interventions_with_free_attention(model, prompts):
    locals_ = [model.local(prompt) for prompt in prompts]
    layer, position, feature = locals_[0].activations.indices[40].tolist()
    changes = [[Ablate(FeatureAt(layer, feature, position))], [Add(FeatureAt(1, 3, 2), 5.0)], []]
    runs = [
        Run(prompt, resolve(change, local, lambda one: one))
        for prompt, change, local in zip(prompts, changes, locals_, strict=True)
    ]
    reading = Reading(model, runs)
    for row, (local, change) in enumerate(zip(locals_, changes, strict=True)):
        expected = model.intervene(local, change, Freeze.iterative(attention="free"), "recomputed").logits_v
        torch.testing.assert_close(model.sites.unembed(reading.last_bd[row]), expected, atol=1e-4, rtol=1e-4)


def test_activations_are_those_of_the_prompt(model, prompts):
    for prompt, found in zip(
        prompts, Reading(model, [Run(p) for p in prompts], want_activations=True).activations, strict=True
    ):
        expected = model.local(prompt).activations
        assert found.indices.tolist() == expected.indices.tolist()
        torch.testing.assert_close(found.values, expected.values, atol=1e-4, rtol=1e-4)


def test_a_span_that_is_cut_off_cannot_be_seen(model, prompts):
    other = list(prompts[0])
    other[3] = prompts[1][1]  # another token within the span
    cut, changed, whole, empty = (
        Reading(model, [Run(tokens, cut=span)]).last_bd
        for tokens, span in ((prompts[0], (3, 4)), (other, (3, 4)), (prompts[0], None), (prompts[0], (3, 3)))
    )
    torch.testing.assert_close(cut, changed)
    torch.testing.assert_close(whole, empty, atol=1e-4, rtol=1e-4)
    assert (cut - whole).abs().max() > 1e-3


def test_a_base_model_takes_no_edits(prompts):
    from crosstrace.replacement_model import BaseModel
    from crosstrace.replacement_model.interventions.edits import Edits

    base = BaseModel.from_pretrained("demo", device="cpu")
    assert len(list(in_batches(base, [Run(p) for p in prompts]))) == 1
    with pytest.raises(ValueError, match="no transcoders"):
        Reading(base, [Run(prompts[0], Edits(features={(0, 2, 3): (0.0, 0.0)}))])
