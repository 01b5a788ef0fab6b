"""Features at their thresholds: rounding does not flip them, changes of their inputs do, and flips are counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from cases import Case
from safetensors.torch import load_file, save_file

from crosstrace.replacement_model import (
    Ablate,
    AllFeatures,
    ErrorAt,
    FeatureAt,
    Freeze,
    LocalReplacementModel,
    ReplacementModel,
    Scale,
    TokenAt,
    intervene_batch,
)

ROUNDING = 2e-6  # of logits of order one in float32
FREEZES = {
    "constrained": Freeze.constrained(1),
    "constrained, attention free": Freeze.constrained(1, attention="free"),
    "iterative": Freeze.iterative(),
    "iterative, norms frozen": Freeze.iterative(norms="frozen"),
    "iterative, attention free": Freeze.iterative(attention="free"),
}


def write_at_thresholds(case: Case, folder: Path) -> Path:
    """Copy a case's transcoders with the threshold of every active feature at a pre-activation of the prompt.

    Of neighbouring features one is active by the last bit of its pre-activation, the next is not.
    """
    shutil.copytree(case.transcoders, folder)
    local = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu").local(case.input_ids)
    files = sorted(folder.glob("**/*.safetensors"))
    below = torch.tensor(-torch.inf)
    for layer, path in enumerate(files):
        tensors, entries = load_file(path), local.activations.layer(layer)
        for number, feature in enumerate(local.activations.features[entries].unique().tolist()):
            values = local.activations.values[entries][local.activations.features[entries] == feature]
            value = values[number % len(values)]
            tensors["threshold"][feature] = value if number % 2 else value.nextafter(below)
        save_file(tensors, path)
    return folder


@pytest.fixture
def model(case: Case, tmp_path: Path) -> ReplacementModel:
    return ReplacementModel.from_pretrained(case.model, write_at_thresholds(case, tmp_path / "copy"), "cpu")


@pytest.fixture
def local(model: ReplacementModel, case: Case) -> LocalReplacementModel:
    return model.local(case.input_ids)


def n_at_threshold(local: LocalReplacementModel) -> int:
    """Count the active features that one bit less would switch off."""
    below, count = torch.tensor(-torch.inf), 0
    for layer in range(local.description.n_layers):
        entries = local.activations.layer(layer)
        thresholds = local.transcoders.encoder(layer).threshold_f[local.activations.features[entries]]
        count += int((local.activations.values[entries].nextafter(below) <= thresholds).sum())
    return count


@pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES.keys())
def test_no_change_flips_no_feature_at_its_threshold(
    model: ReplacementModel, local: LocalReplacementModel, freeze: Freeze
) -> None:
    assert n_at_threshold(local) > 20
    everywhere = range(local.n_positions)
    for same in ([], [Scale(AllFeatures(), 1.0)]):
        outcome = model.intervene(local, same, freeze=freeze, positions=everywhere)
        assert outcome.logit_changes_qv.abs().max() < ROUNDING
        assert torch.equal(outcome.activations.indices, local.activations.indices)
        assert (outcome.became_active, outcome.became_inactive) == (0, 0)


def test_with_frozen_attention_no_change_is_none_to_the_bit(
    model: ReplacementModel, local: LocalReplacementModel
) -> None:
    outcome = model.intervene(local, [], freeze="iterative")
    assert not outcome.logit_changes_qv.any()
    assert torch.equal(outcome.activations.values, local.activations.values)


def test_errors_given_back_flip_no_feature_at_its_threshold(
    model: ReplacementModel, local: LocalReplacementModel
) -> None:
    for attention in ("frozen", "free"):
        outcome = model.intervene(local, [], Freeze.iterative(attention=attention), errors=local.errors_lpd)  # type: ignore[arg-type]
        assert outcome.logit_changes_qv.abs().max() < ROUNDING


def test_positions_before_a_change_keep_their_activations(
    model: ReplacementModel, local: LocalReplacementModel
) -> None:
    """Attention looks back alone: nothing before the position of an intervention reads a change."""
    at = local.n_positions // 2
    before = local.activations.indices[local.activations.positions < at]
    for edit, exact in (
        (Scale(ErrorAt(0, at), 2.0), True),
        (Scale(TokenAt(at), 1.2), False),  # by the hooked pass, which rounds otherwise
    ):
        outcome = model.intervene(local, [edit], freeze="iterative")
        here = outcome.activations.positions < at
        assert torch.equal(outcome.activations.indices[here], before)
        if exact:
            same = local.activations.values[local.activations.positions < at]
            assert torch.equal(outcome.activations.values[here], same)
        assert outcome.became_active + outcome.became_inactive > 0


@pytest.mark.parametrize("attention", ["frozen", "free"])
def test_padding_flips_no_feature_at_its_threshold(
    model: ReplacementModel, case: Case, local: LocalReplacementModel, attention: str
) -> None:
    freeze = Freeze.iterative(attention=attention)  # type: ignore[arg-type]
    short = model.local(case.input_ids[:-3])
    runs = [(local, []), (short, []), (local, [Ablate(AllFeatures())])]
    for side in ("left", "right"):
        whole, cut, ablated = intervene_batch(model, runs, freeze, padding_side=side)
        for outcome, prompt in ((whole, local), (cut, short)):
            assert torch.equal(outcome.activations.indices, prompt.activations.indices)
            assert outcome.logit_changes_qv.abs().max() < ROUNDING
            assert outcome.became_active == outcome.became_inactive == 0
        assert ablated.became_inactive > 0


def test_generation_without_interventions_is_the_model_s_own(
    model: ReplacementModel, case: Case, local: LocalReplacementModel
) -> None:
    with torch.no_grad():
        logits_v = model.model(torch.tensor([case.input_ids])).logits[0, -1]
    for prompt_only in (True, False):
        generated = model.generate(local, max_new_tokens=2, freeze_prompt_only=prompt_only, return_logits=True)
        assert generated.logits_rtv is not None
        torch.testing.assert_close(generated.logits_rtv[0, 0], logits_v, rtol=0, atol=ROUNDING)
        assert (generated.became_active, generated.became_inactive) == (0, 0)


def test_flips_are_counted_as_the_activations_show_them(model: ReplacementModel, local: LocalReplacementModel) -> None:
    """The edited features aside, which are not counted."""
    layer, position, feature = local.activations.indices[0].tolist()
    edit = [Scale(FeatureAt(layer, feature, position), 20.0)]
    outcome = model.intervene(local, edit, freeze="iterative")
    before, after = (
        set(map(tuple, activations.indices.tolist())) for activations in (local.activations, outcome.activations)
    )
    assert outcome.became_active == len(after - before) > 0
    assert outcome.became_inactive == len(before - after) > 0
    generated = model.generate(local, edit, max_new_tokens=1)
    assert (generated.became_active, generated.became_inactive) == (outcome.became_active, outcome.became_inactive)
    assert model.intervene(local, edit, freeze="direct").became_active == 0


def test_small_changes_of_inputs_still_flip(model: ReplacementModel, local: LocalReplacementModel) -> None:
    """One percent more or less of the last token."""
    outcomes = [model.intervene(local, [Scale(TokenAt(-1), factor)], freeze="iterative") for factor in (0.99, 1.01)]
    assert all(outcome.became_active + outcome.became_inactive > 0 for outcome in outcomes)
