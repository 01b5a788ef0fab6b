"""What interventions may say: places and labels as they are written, and one clear line for what cannot be."""

from __future__ import annotations

import pytest
from cases import load_case

from crosstrace.replacement_model import (
    Ablate,
    Add,
    AllFeatures,
    ErrorAt,
    FeatureAt,
    Freeze,
    Intervention,
    ReplacementModel,
    Scale,
    Set,
    Supernode,
    SwapIn,
    TokenAt,
)
from crosstrace.replacement_model.interventions.edits import resolve

LABELS = {(0, 3): "Texas", (2, 7): "Texas", (1, 1): "Texas, Utah", (3, 9): "say Austin"}


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    case = load_case("clt_affine")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders)
    model.transcoders.labels = LABELS
    return model


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return load_case("clt_affine").input_ids


def test_every_place_gets_one_factor_and_offset(model: ReplacementModel, ids: list[int]) -> None:
    local = model.local(ids)
    edits = resolve(
        [
            Scale(FeatureAt(0, 1, 2), 3.0),
            Add(FeatureAt(0, 1, 2), 1.0),
            Scale(FeatureAt(0, 1, (2, -1)), 2.0),
            Set(Supernode("pair", (FeatureAt(1, 0, 3), FeatureAt(2, 5, 3))), (4.0, -5.0)),
            Ablate("Texas@1"),
            Scale(ErrorAt(1, -1), 0.5),
            Ablate(TokenAt(0)),
        ],
        local,
        lambda prompt: local,
    )
    last = local.n_positions - 1
    assert edits.features == {
        (0, 2, 1): (6.0, 2.0),  # 2 * (3 a + 1): in the order given
        (0, last, 1): (2.0, 0.0),
        (1, 3, 0): (0.0, 4.0),
        (2, 3, 5): (0.0, -5.0),
        (0, 1, 3): (0.0, 0.0),
        (2, 1, 7): (0.0, 0.0),
    }
    assert edits.errors == {(1, last): 0.5}
    assert edits.tokens == {0: 0.0}


def test_open_ends_reach_generated_tokens_and_start_after_excluded_ones(
    model: ReplacementModel, ids: list[int]
) -> None:
    local, n = model.local(ids), len(ids)

    def positions(place: FeatureAt, generated: int) -> list[int]:
        return [
            position for _, position, _ in resolve([Ablate(place)], local, lambda prompt: local, generated).features
        ]

    assert positions(FeatureAt(0, 1), 0) == list(range(1, n))
    assert positions(FeatureAt(0, 1), 3) == list(range(1, n + 3))
    assert positions(FeatureAt(0, 1, slice(-1, None)), 3) == list(range(n - 1, n + 3))
    assert positions(FeatureAt(0, 1, slice(2, 4)), 3) == [2, 3]
    assert positions(FeatureAt(0, 1, n + 2), 3) == [n + 2]


def test_said_of_one_beats_said_of_all(model: ReplacementModel, ids: list[int]) -> None:
    local = model.local(ids)
    for order in (1, -1):
        wishes: list[Intervention] = [Ablate(AllFeatures(but=("L0/1@2",))), Set(FeatureAt(0, 1, 2), 3.0)]
        edits = resolve(wishes[::order], local, lambda prompt: local)
        assert (edits.others, edits.features) == (0.0, {(0, 2, 1): (0.0, 3.0)})


BAD: list[tuple[Intervention, str]] = [
    (Ablate(FeatureAt(4, 0)), "L4/0: the model has layers 0 to 3"),
    (Ablate(FeatureAt(1, 96, 3)), "L1/96@3: layer 1 has features 0 to 95"),
    (Ablate(FeatureAt(1, 0, 12)), "L1/0@12: position 12 is outside the prompt; positions 1 to 11 are valid"),
    (Ablate(FeatureAt(1, 0, -13)), "L1/0@-13: position -13 is outside"),
    (Ablate(FeatureAt(1, 0, slice(2, 13))), "L1/0@2:13: position 13 is outside"),
    (Ablate(FeatureAt(1, 0, slice(5, 5))), "L1/0@5:5: the slice contains no position"),
    (Ablate(FeatureAt(1, 0, ())), "no position was given"),
    (Ablate(FeatureAt(1, 0, slice(1, 9, 2))), "steps of 2"),
    (
        Ablate(FeatureAt(1, 0, 0)),
        "L1/0@0: the first position carries no features and no errors; positions 1 to 11 are valid",
    ),
    (Ablate(FeatureAt(1, 0, slice(0, 3))), "the first position carries no features"),
    (Ablate(ErrorAt(1, 0)), "error L1@0: the first position carries no features and no errors"),
    (Ablate(ErrorAt(9, 2)), "error L9@2: the model has layers 0 to 3"),
    (Ablate(TokenAt(12)), "token @12: position 12 is outside the prompt; it has positions 0 to 11"),
    (Set(TokenAt(2), 1.0), "token @2 can be scaled or ablated, not Set"),  # type: ignore[arg-type]
    (Set(FeatureAt(1, 0), float("nan")), "L1/0: value must be a number between -1e+15 and 1e+15, not nan"),
    (Scale("Texas", float("inf")), "'Texas': factor must be a number between -1e+15 and 1e+15, not inf"),
    (Set("Texas", (1.0, 2.0, 3.0)), "'Texas' has 2 members, but 3 values were given"),
    (Ablate("Texa"), "unknown feature label 'Texa'; close labels: 'Texas'"),
    (Ablate(Supernode("none", ())), "supernode 'none' has no features"),
    (SwapIn(FeatureAt(1, 0, 3), [2, 5, 9], source_position=3), "the prompt to swap in from has 3 tokens"),
    (Ablate(3), "3 is not a place"),  # type: ignore[arg-type]
    ("L1/0=3", "'L1/0=3' is not an intervention"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("intervention", "said"), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_gets_one_line(
    model: ReplacementModel, ids: list[int], intervention: Intervention, said: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        model.intervene(ids, [intervention])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("second", [Set("L1/4", 2.0), Ablate("L1/4@3"), Scale("L1/4@3", 2.0), Add("L1/4@1:", 1.0)])
def test_contradictions_are_refused_in_either_order(
    model: ReplacementModel, ids: list[int], second: Intervention
) -> None:
    first = Set("L1/4@3", 1.0)
    for pair in ([first, second], [second, first]):
        with pytest.raises(ValueError, match="contradictory interventions on L1/4@3: "):
            model.intervene(ids, pair)
    model.intervene(ids, [first, first])  # saying the same twice contradicts nothing


@pytest.mark.parametrize(
    ("freeze", "errors", "said"),
    [
        ("frozen", "frozen", "unknown freeze 'frozen': known are direct, iterative, constrained:LAYER"),
        ("constrained:9", "frozen", "constrained up to layer 9: the model has layers 0 to 3"),
        ("iterative", "kept", "unknown errors 'kept'"),
        ("direct", "recomputed", "norms"),
    ],
)
def test_what_cannot_be_held_gets_one_line(
    model: ReplacementModel, ids: list[int], freeze: str, errors: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        model.intervene(ids, [], freeze=freeze, errors=errors)
    with pytest.raises(ValueError, match=said):
        model.generate(ids, [], freeze=freeze, errors=errors)


def test_freezes_as_written() -> None:
    assert Freeze.parse("constrained:2") == Freeze.constrained(2)
    assert Freeze.parse("direct").norms
    with pytest.raises(ValueError, match="attention must be frozen or free"):
        Freeze.iterative(attention="off")  # type: ignore[arg-type]


def test_errors_that_are_not_fixed_cannot_be_intervened_on(model: ReplacementModel, ids: list[int]) -> None:
    for errors in ("recomputed", "dropped"):
        with pytest.raises(ValueError, match="only where they are frozen"):
            model.intervene(ids, [Ablate(ErrorAt(1, 3))], errors=errors)


@pytest.mark.parametrize(
    "where",
    [
        FeatureAt(1, 3, (5, 5)),
        FeatureAt(1, 3, (5, -7)),
        Supernode("twice", (FeatureAt(1, 3, 5), FeatureAt(1, 3, slice(5, 6)))),
        "L1/3@5,5",
    ],
)
def test_one_intervention_changes_a_place_once(model: ReplacementModel, ids: list[int], where: object) -> None:
    local = model.local(ids)
    edits = resolve([Scale(where, 2.0), Add(where, 1.0)], local, model.local)  # type: ignore[arg-type]
    assert edits.features == {(1, 5, 3): (2.0, 1.0)}


def test_swapping_in_everywhere_leaves_generated_tokens_alone(model: ReplacementModel, ids: list[int]) -> None:
    local = model.local(ids)
    for where, first in (("L1/3", 1), ("L1/3@5:", 5)):
        edits = resolve([SwapIn(where, ids)], local, model.local, n_generated=4)
        assert {position for _, position, _ in edits.features} == set(range(first, 12))


def test_too_large_in_the_end_is_refused(model: ReplacementModel, ids: list[int]) -> None:
    with pytest.raises(
        ValueError, match=r"L1/3@5.*: factor of all interventions must be a number between -1e\+15 and 1e\+15"
    ):
        resolve([Scale("L1/3@5", 1e9), Scale("L1/3@5", 1e9)], model.local(ids), model.local)


def test_no_list_and_no_features_are_said(model: ReplacementModel, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"interventions must be a list: \[Ablate"):
        model.intervene(ids, Ablate("L1/3"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="valid from 1 on, and the prompt has 1"):
        model.intervene(ids[:1], [Ablate("L1/3")])
