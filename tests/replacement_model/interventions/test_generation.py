"""Generation under interventions: with and without the cache, and against the model without interventions."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from cases import Case, load_case
from transformers import GenerationConfig

from crosstrace.replacement_model import (
    Add,
    FeatureAt,
    Freeze,
    Intervention,
    LocalReplacementModel,
    ReplacementModel,
    Scale,
    Set,
)

NEW = 6


@lru_cache
def loaded(name: str) -> ReplacementModel:
    """Loaded once: most of a test's time would be loading."""
    case = load_case(name)
    model = ReplacementModel.from_pretrained(case.model, case.transcoders)
    model.model.generation_config.eos_token_id = None  # random weights should not decide how long a test is
    return model


@pytest.fixture
def model(case: Case) -> ReplacementModel:
    return loaded(case.name)


def wishes(local: LocalReplacementModel) -> list[Intervention]:
    """On the prompt alone, on prompt and generated tokens, and on a feature that is not active."""
    rows = local.activations.indices[::13].tolist()
    open_ended = [Scale(FeatureAt(layer, feature, slice(3, None)), -2.0) for layer, _, feature in rows[::2]]
    return [
        *open_ended,
        *(Add(FeatureAt(*_place(row)), 1.0) for row in rows[1::2] if row[2] not in {r[2] for r in rows[::2]}),
    ]


def _place(row: list[int]) -> tuple[int, int, int]:
    return row[0], row[2], row[1]


def test_without_interventions_the_model_generates_as_it_does(model: ReplacementModel, case: Case) -> None:
    ids = torch.tensor([case.input_ids])
    with torch.no_grad():
        plain = model.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    for prompt_only in (True, False):
        ours = model.generate(case.input_ids, max_new_tokens=NEW, freeze_prompt_only=prompt_only, return_logits=True)
        assert torch.equal(ours.tokens_rt, plain.sequences[:, len(case.input_ids) :])
        torch.testing.assert_close(ours.logits_rtv, torch.stack(plain.logits, 1), rtol=0, atol=5e-6)


@pytest.mark.parametrize("errors", ["frozen", "recomputed", "dropped"])
@pytest.mark.parametrize(
    "freeze",
    [Freeze.iterative(), Freeze.iterative(attention="free"), Freeze.constrained(1)],
    ids=["iterative", "free", "constrained"],
)
def test_the_cache_changes_nothing(model: ReplacementModel, case: Case, freeze: Freeze, errors: str) -> None:
    local = model.local(case.input_ids)
    cached, whole = (
        model.generate(
            local,
            wishes(local),
            max_new_tokens=NEW,
            freeze=freeze,
            errors=errors,
            return_logits=True,
            return_activations=True,
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    )
    torch.testing.assert_close(cached.logits_rtv, whole.logits_rtv, rtol=0, atol=1e-5)
    assert torch.equal(cached.tokens_rt, whole.tokens_rt)
    assert torch.equal(cached.activations[0].indices, whole.activations[0].indices)
    assert cached.activations[0].n_positions == len(case.input_ids) + NEW - 1
    first = model.intervene(local, wishes(local), freeze=freeze, errors=errors)
    torch.testing.assert_close(cached.logits_rtv[0, 0], first.logits_v, rtol=0, atol=1e-5)
    assert first.logit_changes_qv.abs().max() > 0.1


def test_held_beyond_the_prompt_is_the_local_replacement_model_of_all_tokens(
    model: ReplacementModel, case: Case
) -> None:
    local, n = model.local(case.input_ids), len(case.input_ids)
    generated = model.generate(
        local, wishes(local), max_new_tokens=NEW, freeze="direct", freeze_prompt_only=False, return_logits=True
    )
    whole = model.local([*case.input_ids, *generated.tokens_rt[0, :-1].tolist()])
    same_places = wishes(local)  # open-ended ones reach the generated tokens of the longer prompt by themselves
    outcome = model.intervene(whole, same_places, freeze="direct", positions=range(n - 1, n + NEW - 1))
    torch.testing.assert_close(generated.logits_rtv[0], outcome.logits_qv, rtol=0, atol=1e-5)


def test_a_feature_set_on_generated_tokens_is_at_that_value(model: ReplacementModel, case: Case) -> None:
    n = len(case.input_ids)
    generated = model.generate(
        case.input_ids, [Set(FeatureAt(2, 5, slice(n, None)), 7.0)], max_new_tokens=NEW, return_activations=True
    )
    (active,) = generated.activations
    there = (active.layers == 2) & (active.features == 5) & (active.values == 7.0)
    assert active.positions[there].tolist() == list(range(n, n + NEW - 1))


def test_sampling_is_passed_through(model: ReplacementModel, case: Case) -> None:
    torch.manual_seed(0)
    sampled = model.generate(
        case.input_ids, max_new_tokens=NEW, do_sample=True, temperature=3.0, num_return_sequences=3
    )
    assert sampled.tokens_rt.shape == (3, NEW)
    assert len({tuple(row) for row in sampled.tokens_rt.tolist()}) > 1
    beams = model.generate(case.input_ids, max_new_tokens=3, num_beams=3)
    assert beams.tokens_rt.shape == (1, 3)


def test_hooks_are_gone_afterwards(model: ReplacementModel, case: Case) -> None:
    with torch.no_grad():
        before = model.model(torch.tensor([case.input_ids])).logits
    model.generate(case.input_ids, [Set("L1/3", 2.0)], max_new_tokens=1)
    with pytest.raises(ValueError, match="outside"):
        model.generate(case.input_ids, [Set("L1/3@99", 2.0)], max_new_tokens=1)
    with torch.no_grad():
        plain = model.model(torch.tensor([case.input_ids])).logits
    torch.testing.assert_close(plain, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
        ({"max_new_tokens": 600}, "come to 61.; model .* takes at most 512"),
        ({"freeze_prompt_only": False, "use_cache": True}, "cannot use the KV cache"),
        ({"num_beams": 2, "return_activations": True}, "beam search"),
    ],
)
def test_settings_that_cannot_be_get_one_line(model: ReplacementModel, case: Case, settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model.generate(case.input_ids, **settings)


@pytest.mark.parametrize("where", ["config", "generation_config", "argument"])
def test_a_cache_that_is_turned_off_changes_nothing(case: Case, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of training runs say use_cache: false."""
    model, edits = loaded(case.name), [Add(FeatureAt(1, 3), 3.0)]
    expected = model.generate(case.input_ids, edits, max_new_tokens=4, return_logits=True, use_cache=False)
    settings = {}
    if where == "argument":
        settings["generation_config"] = GenerationConfig(use_cache=False, pad_token_id=0)
    else:
        monkeypatch.setattr(getattr(model.model, where), "use_cache", False)
    found = model.generate(
        case.input_ids, edits, max_new_tokens=4, return_logits=True, return_activations=True, **settings
    )
    torch.testing.assert_close(found.logits_rtv, expected.logits_rtv, rtol=0, atol=1e-5)
    assert found.activations is not None
    assert found.activations[0].n_positions == len(case.input_ids) + 3


def test_excluded_positions_after_the_prompt_keep_their_mlps(case: Case) -> None:
    """On chat models the first four positions carry no features: of a shorter prompt, some of them are generated."""
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, excluded_first=4)
    model.model.generation_config.eos_token_id = None
    made = model.generate(case.input_ids[:2], max_new_tokens=4, errors="dropped", return_logits=True)
    assert made.logits_rtv is not None
    tokens = [*case.input_ids[:2], *made.tokens_rt[0].tolist()]
    for step in range(4):
        plain = model.forward(tokens[: 2 + step])
        torch.testing.assert_close(made.logits_rtv[0, step], plain.logits_v, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"errors": torch.zeros(1)}, "generation takes errors that are frozen, recomputed or dropped"),
        ({"num_beams": 3, "return_logits": True}, "a beam search mixes sequences"),
        ({"generation_config": GenerationConfig(num_beams=3), "return_activations": True}, "a beam search"),
        ({"guidance_scale": 1.5}, "guidance_scale runs the model on other texts too"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens runs"),
        ({"prefill_chunk_size": 5}, "prefill_chunk_size runs"),
    ],
)
def test_what_does_not_go_together_is_refused(case: Case, settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loaded(case.name).generate(case.input_ids, max_new_tokens=2, **settings)
