"""Interventions on the cases: exact properties, for cross-layer and per-layer transcoders with and without skips."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import pytest
import torch
from cases import Case, load_case
from torch import Tensor

from crosstrace.replacement_model import (
    Ablate,
    Add,
    AllFeatures,
    ErrorAt,
    FeatureAt,
    Freeze,
    Intervention,
    LocalReplacementModel,
    ReplacementModel,
    Scale,
    Set,
    Supernode,
    SwapIn,
    TokenAt,
    intervene_batch,
)
from crosstrace.replacement_model.architectures.hooks import hooked
from crosstrace.replacement_model.interventions.edited_features import EditTable
from crosstrace.replacement_model.interventions.edits import resolve
from crosstrace.replacement_model.interventions.frozen_pass import frozen_pass
from crosstrace.replacement_model.interventions.held_errors import HeldErrors
from crosstrace.replacement_model.interventions.hooked_pass import hooked_pass
from crosstrace.replacement_model.interventions.outcomes import read_outcomes
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts

ROUNDING = 2e-6  # of logits of order one in float32
FREEZES = {
    "direct": Freeze.direct(),
    "constrained": Freeze.constrained(1),
    "constrained, attention free": Freeze.constrained(1, attention="free"),
    "iterative": Freeze.iterative(),
    "iterative, norms frozen": Freeze.iterative(norms="frozen"),
    "iterative, attention free": Freeze.iterative(attention="free"),
}


@lru_cache
def loaded(name: str) -> ReplacementModel:
    """Loaded once: most of a test's time would be loading."""
    case = load_case(name)
    return ReplacementModel.from_pretrained(case.model, case.transcoders)


@pytest.fixture
def model(case: Case) -> ReplacementModel:
    return loaded(case.name)


@pytest.fixture
def local(model: ReplacementModel, case: Case) -> LocalReplacementModel:
    return model.local(case.input_ids)


def some_features(local: LocalReplacementModel, step: int = 13) -> list[FeatureAt]:
    """Active features spread over layers and positions."""
    return [
        FeatureAt(layer, feature, position) for layer, position, feature in local.activations.indices[::step].tolist()
    ]


def strong(local: LocalReplacementModel) -> list[Intervention]:
    """Interventions of every kind, strong enough to change the logits."""
    members = some_features(local)
    last = local.n_positions - 1
    active = set(map(tuple, local.activations.indices.tolist()))
    silent = next(f for f in range(96) if (1, last, f) not in active)
    return [
        Scale(Supernode("some", tuple(members[::3])), -2.0),
        *(Ablate(member) for member in members[1::3]),
        *(Add(member, 1.5) for member in members[2::3]),
        Set(FeatureAt(1, silent, -1), 3.0),
    ]


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_doubling_under_direct_changes_each_target_by_the_edge(
    case: Case, model: ReplacementModel, local: LocalReplacementModel, padding_side: str
) -> None:
    features = local.activations.indices
    n_layers, first = model.description.n_layers, model.description.excluded_first
    places = [FeatureAt(layer, feature, position) for layer, position, feature in features.tolist()]
    places += [ErrorAt(layer, p) for layer in range(n_layers) for p in range(first, local.n_positions)]
    places += [TokenAt(p) for p in range(local.n_positions)]
    outcomes = intervene_batch(
        model,
        [(local, [Scale(place, 2.0)]) for place in places],
        "direct",
        read_features=features,
        padding_side=padding_side,
    )
    tokens = case.expected["logit_tokens"]
    measured = torch.stack(
        [
            torch.cat([o.preactivation_changes_t, o.logit_changes_qv[0, tokens] - o.logit_changes_qv[0].mean()])
            for o in outcomes
        ],
        dim=1,
    )
    expected = _edges(case, local, first)
    assert expected.norm() > 0
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


def _edges(case: Case, local: LocalReplacementModel, first: int) -> Tensor:
    """(targets, sources) of the case's exact adjacency, without the errors of excluded positions."""
    adjacency = case.expected["adjacency"].float()
    n, n_layers, n_positions = len(local.activations), len(local.layers), local.n_positions
    stop = n + n_layers * n_positions
    errors = torch.arange(n, stop).view(n_layers, n_positions)[:, first:].flatten()
    sources = torch.cat([torch.arange(n), errors, torch.arange(stop, stop + n_positions)])
    targets = torch.cat([torch.arange(n), torch.arange(stop + n_positions, len(adjacency))])
    return adjacency[targets][:, sources]


@pytest.mark.parametrize("errors", ["frozen", "recomputed"])
@pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES.keys())
def test_no_change_is_the_unchanged_model(
    case: Case, model: ReplacementModel, local: LocalReplacementModel, freeze: Freeze, errors: str
) -> None:
    if errors == "recomputed" and freeze.norms:
        with pytest.raises(ValueError, match="norms"):
            model.intervene(local, [], freeze=freeze, errors=errors)
        return
    with torch.no_grad():
        logits_pv = model.model(torch.tensor([case.input_ids])).logits[0]
    outcome = model.intervene(local, [], freeze=freeze, errors=errors, positions=range(local.n_positions))
    torch.testing.assert_close(outcome.logits_qv, logits_pv, rtol=0, atol=ROUNDING)
    assert torch.equal(outcome.activations.indices, local.activations.indices)


@pytest.mark.parametrize("attention", ["frozen", "free"])
def test_scaling_nothing_is_the_unchanged_model(
    model: ReplacementModel, local: LocalReplacementModel, attention: str
) -> None:
    same: list[Intervention] = [Scale(AllFeatures(), 1.0)]
    same += [Add(member, 0.0) for member in some_features(local) if member.layer != 2]
    same += [SwapIn(FeatureAt(2, feature, slice(1, 9)), local) for feature in range(0, 80, 7)]
    outcome = model.intervene(local, same, freeze=Freeze.iterative(attention=attention))  # type: ignore[arg-type]
    assert outcome.logit_changes_qv.abs().max() < ROUNDING


def test_ablating_everything_without_errors_is_the_replacement_model_with_no_features(
    model: ReplacementModel, local: LocalReplacementModel, case: Case
) -> None:
    outcome = model.intervene(
        local, [Ablate(AllFeatures())], freeze=Freeze.iterative(attention="free"), errors="dropped"
    )
    assert len(outcome.activations) == 0
    expected = _skips_and_biases_alone(model, case.input_ids)
    torch.testing.assert_close(outcome.logits_v, expected, rtol=0, atol=ROUNDING)
    assert outcome.logit_changes_qv.abs().max() > 0.1


def _skips_and_biases_alone(model: ReplacementModel, ids: list[int]) -> Tensor:
    """The model with each MLP output past the excluded positions set to u W_skip + b_dec, written out again here."""
    first, inputs = model.description.excluded_first, {}

    def remember(layer: int, output: Tensor) -> None:
        inputs[layer] = output[0]

    def replace(layer: int, output: Tensor) -> Tensor:
        output = output.clone()
        skip = model.transcoders.reader.skip(layer)
        written = model.transcoders.reader.bias(layer).expand(len(ids), -1)
        if skip is not None:
            written = written + inputs[layer] @ skip
        output[0, first:] = written[first:]
        return output

    hooks = []
    for i, layer in enumerate(model.sites.layers):
        hooks.append((layer.pre_feedforward_norm, lambda a, k, out, i=i: remember(i, out)))
        hooks.append((layer.post_feedforward_norm, lambda a, k, out, i=i: replace(i, out)))
    with hooked(hooks), torch.no_grad():
        return model.model(torch.tensor([ids])).logits[0, -1]


def test_dropped_errors_with_free_attention_are_the_replacement_model(
    model: ReplacementModel, local: LocalReplacementModel, case: Case
) -> None:
    outcome = model.intervene(local, [], freeze=Freeze.iterative(attention="free"), errors="dropped")
    replaced = model.forward(case.input_ids)
    torch.testing.assert_close(outcome.logits_v, replaced.logits_v, rtol=0, atol=ROUNDING)
    assert torch.equal(outcome.activations.indices, replaced.activations.indices)
    assert outcome.logit_changes_qv.abs().max() > 0.1


def test_skip_connections_are_live_at_every_position(model: ReplacementModel, local: LocalReplacementModel) -> None:
    """A token at an excluded position reaches the next layers through the skip there, as in the graph's linear model."""
    skips = [model.transcoders.skip(layer) for layer in range(model.description.n_layers)]
    outcome = model.intervene(local, [Scale(TokenAt(0), 1.5)], freeze="direct", read_features=torch.tensor([[1, 1, 0]]))
    target = local.feature_target(1, 1, 0)
    edge = 0.5 * local.rows([target]).tokens_bp[0, 0]
    torch.testing.assert_close(outcome.preactivation_changes_t[0], edge, rtol=1e-4, atol=1e-7)
    assert any(skip is not None for skip in skips) == (model.transcoders.skip(0) is not None)


@pytest.mark.parametrize("errors", ["frozen", "dropped"])
@pytest.mark.parametrize(
    "freeze", [f for f in FREEZES.values() if f.attention], ids=[k for k, f in FREEZES.items() if f.attention]
)
def test_frozen_attention_through_hooks_gives_the_same(
    model: ReplacementModel, local: LocalReplacementModel, freeze: Freeze, errors: Literal["frozen", "dropped"]
) -> None:
    """The pass on changes and the pass through the transformers model are two ways to one answer."""
    prompts, held = PaddedPrompts([local], [0], "right"), HeldErrors.parse(errors)
    edits = [resolve(strong(local), local, model.localizer())]
    table = EditTable(edits, model.transcoders.reader.n_features, model.device)
    own, hooks = (
        read_outcomes(model, prompts, result, read_features=local.activations.indices)[0]
        for result in (
            frozen_pass(prompts, table, freeze, held),
            hooked_pass(model, prompts, table, freeze, held),
        )
    )
    asked = model.intervene(local, strong(local), freeze=freeze, errors=errors, read_features=local.activations.indices)
    assert torch.equal(asked.logits_v, own.logits_v)
    assert own.logit_changes_qv.abs().max() > 0.1
    torch.testing.assert_close(own.logits_v, hooks.logits_v, rtol=0, atol=1e-5)
    torch.testing.assert_close(own.preactivations_t, hooks.preactivations_t, rtol=0, atol=2e-5)
    assert torch.equal(own.activations.indices, hooks.activations.indices)


POSSIBLE = {  # with frozen norms the model's own MLPs do not run
    f"{name}, errors {errors}": (freeze, errors)
    for name, freeze in FREEZES.items()
    for errors in ("frozen", "recomputed")
    if errors == "frozen" or not freeze.norms
}


@pytest.mark.parametrize(("freeze", "errors"), POSSIBLE.values(), ids=POSSIBLE.keys())
def test_a_batch_gives_what_one_by_one_gives_however_it_is_padded(
    model: ReplacementModel, case: Case, local: LocalReplacementModel, freeze: Freeze, errors: str
) -> None:
    short = model.local(case.input_ids[:-4])
    runs = [(local, strong(local)), (short, strong(short)), (local, []), (short, [Ablate(AllFeatures(but=("L1/3",)))])]
    alone = [model.intervene(prompt, edits, freeze=freeze, errors=errors) for prompt, edits in runs]
    assert alone[0].logit_changes_qv.abs().max() > 0.1
    for side, batch_size in (("left", None), ("right", 3)):
        together = intervene_batch(model, runs, freeze, errors, padding_side=side, batch_size=batch_size)  # type: ignore[arg-type]
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one.logits_v, other.logits_v, rtol=0, atol=1e-5)
            assert torch.equal(one.activations.indices, other.activations.indices)


def test_what_is_set_is_there_and_what_is_held_stays(model: ReplacementModel, local: LocalReplacementModel) -> None:
    layer, position, feature = local.activations.indices[len(local.activations) // 3].tolist()
    place = FeatureAt(layer, feature, position)
    for freeze in FREEZES.values():
        outcome = model.intervene(local, [Set(place, 2.5)], freeze=freeze)
        assert _activation(outcome.activations, place) == 2.5
        for held in range(model.description.n_layers):
            same = torch.equal(
                outcome.activations.values[outcome.activations.layer(held)],
                local.activations.values[local.activations.layer(held)],
            )
            if freeze.holds_features(held) and held != layer:
                assert same, f"layer {held} is held under {freeze.name}"
    moved = model.intervene(local, [Set(place, 2.5)], freeze="iterative").activations
    assert not torch.equal(moved.values, local.activations.values)  # later features follow where nothing holds them


def _activation(activations, place: FeatureAt) -> float:  # type: ignore[no-untyped-def]
    rows = (activations.indices == torch.tensor([place.layer, place.positions, place.feature])).all(1)
    return float(activations.values[rows].sum())


def test_direct_effects_add_up(model: ReplacementModel, local: LocalReplacementModel) -> None:
    members = some_features(local)
    together = model.intervene(local, [Scale(Supernode("all", tuple(members)), 3.0)], freeze="direct")
    single = intervene_batch(model, [(local, [Scale(member, 3.0)]) for member in members], "direct")
    torch.testing.assert_close(
        together.logit_changes_qv, sum(one.logit_changes_qv for one in single), rtol=1e-4, atol=1e-5
    )


def test_swapping_in_another_prompt_sets_its_activations(
    model: ReplacementModel, local: LocalReplacementModel, case: Case
) -> None:
    other = model.local(list(reversed(case.input_ids)))
    layer, position, feature = other.activations.indices[-1].tolist()
    place = FeatureAt(layer, feature, 4)
    value = float(other.activations.values[-1])
    outcome = model.intervene(local, [SwapIn(place, other, source_position=position, factor=2.0)])
    assert _activation(outcome.activations, place) == pytest.approx(2 * value, rel=1e-6)
    silent = model.intervene(local, [SwapIn(FeatureAt(*some_features(local)[0].__dict__.values()), other)])
    as_ids = model.intervene(local, [SwapIn(some_features(local)[0], list(reversed(case.input_ids)))])
    torch.testing.assert_close(silent.logits_v, as_ids.logits_v, rtol=0, atol=ROUNDING)


def test_own_error_vectors_change_nothing_and_no_vectors_are_dropped_errors(
    model: ReplacementModel, local: LocalReplacementModel
) -> None:
    own = model.intervene(local, [], errors=local.errors_lpd)
    assert own.logit_changes_qv.abs().max() < ROUNDING
    none = model.intervene(local, [], errors=torch.zeros_like(local.errors_lpd))
    dropped = model.intervene(local, [], errors="dropped")
    torch.testing.assert_close(none.logits_v, dropped.logits_v, rtol=0, atol=ROUNDING)
    with pytest.raises(ValueError, match="shape"):
        model.intervene(local, [], errors=local.errors_lpd[:1])


def test_bfloat16_weights_compute_in_float32(case: Case) -> None:
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, dtype=torch.bfloat16)
    local = model.local(case.input_ids)
    for attention in ("frozen", "free"):
        for errors in ("frozen", "recomputed"):
            outcome = model.intervene(local, [], freeze=Freeze.iterative(attention=attention), errors=errors)  # type: ignore[arg-type]
            assert outcome.logit_changes_qv.abs().max() < ROUNDING
    own = model.intervene(local, strong(local), freeze=Freeze.iterative())
    generated = model.generate(local, strong(local), max_new_tokens=1, return_logits=True)
    torch.testing.assert_close(own.logits_v, generated.logits_rtv[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", [(0,), (0, 1, 2), range(10)])
def test_ablated_tokens_are_the_model_without_them(
    model: ReplacementModel, local: LocalReplacementModel, tokens: tuple[int, ...]
) -> None:
    """Where the residual stream is zero, norms divide by √ε alone; they must not magnify rounding."""
    edits = [Ablate(TokenAt(position)) for position in tokens]
    outcome = model.intervene(local, edits)
    # the pass of transformers, with the same values held by hooks
    through_hooks = model.generate(local, edits, max_new_tokens=1, return_logits=True)
    assert through_hooks.logits_rtv is not None
    assert outcome.logit_changes_qv.abs().max() > 0.1
    torch.testing.assert_close(outcome.logits_v, through_hooks.logits_rtv[0, 0], rtol=0, atol=2e-3)


def test_features_are_read_at_each_prompt_s_own_end(model: ReplacementModel, local: LocalReplacementModel) -> None:
    short, edits = model.local(local.tokens_p[:6]), [Set("L0/3", 4.0)]
    asked = torch.tensor([[1, -1, 1], [2, 3, 5]])
    alone = [model.intervene(one, edits, read_features=asked) for one in (short, local)]
    for side in ("left", "right"):
        batch = intervene_batch(
            model, [(short, edits), (local, edits)], read_features=asked, padding_side=side, batch_size=2
        )
        for one, other in zip(alone, batch, strict=True):
            torch.testing.assert_close(one.preactivations_t, other.preactivations_t, rtol=0, atol=ROUNDING)
            torch.testing.assert_close(
                one.preactivation_changes_t, other.preactivation_changes_t, rtol=0, atol=ROUNDING
            )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"read_features": torch.tensor([[9, 1, 1]])}, "layer 9 does not exist"),
        ({"read_features": torch.tensor([[-1, 1, 1]])}, "layer -1 does not exist"),
        ({"read_features": torch.tensor([[1, 1, 9999]])}, "L1/9999 does not exist"),
        ({"read_features": torch.tensor([[1, 99, 1]])}, "position 99 is outside the prompt"),
        ({"read_features": [[1, 1, 1]]}, r"must be a \(T, 3\) tensor"),
        ({"read_features": torch.tensor([[0.0, 1.0, 1.0]])}, "whole numbers"),
        ({"positions": ()}, "positions are empty"),
        ({"freeze": None}, "freeze must be"),
        ({"errors": None}, "unknown errors None"),
    ],
)
def test_invalid_settings_are_refused(
    model: ReplacementModel, local: LocalReplacementModel, settings: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        model.intervene(local, [], **settings)


def test_batches_may_be_empty_but_not_negative(model: ReplacementModel, local: LocalReplacementModel) -> None:
    assert intervene_batch(model, []) == []
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        intervene_batch(model, [(local, [])], batch_size=-1)
    with pytest.raises(ValueError, match="padding_side"):
        intervene_batch(model, [(local, [])], padding_side="top")  # type: ignore[arg-type]
