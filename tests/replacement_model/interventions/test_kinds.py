"""Numbers of any make are converted where an edit is made, and refused there if they are not numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crosstrace.replacement_model import (
    Ablate,
    Add,
    AllFeatures,
    ErrorAt,
    FeatureAt,
    Freeze,
    Scale,
    Set,
    Supernode,
    SwapIn,
    TokenAt,
)

FIVES = [5, np.int64(5), np.int32(5), np.array(5), torch.tensor(5)]


@pytest.mark.parametrize("five", FIVES, ids=repr)
def test_whole_numbers_of_any_make(five: int) -> None:
    made = [
        FeatureAt(five, five, five),
        ErrorAt(five, five),
        TokenAt(five),
        SwapIn("L0/1", [2], five),
        Freeze.constrained(five),
    ]
    plain = [FeatureAt(5, 5, 5), ErrorAt(5, 5), TokenAt(5), SwapIn("L0/1", [2], 5), Freeze.constrained(5)]
    assert made == plain
    assert [str(one) for one in made] == [str(one) for one in plain]
    assert all(type(number) is int for number in (made[0].layer, made[0].feature, made[0].positions))  # type: ignore[union-attr]
    assert hash(made[0]) == hash(plain[0])


@pytest.mark.parametrize(
    ("given", "positions"),
    [
        ([5], (5,)),
        (np.array([5, 6]), (5, 6)),
        (torch.tensor([5, 6]), (5, 6)),
        ((np.int32(5), -1), (5, -1)),
        (range(2, 4), (2, 3)),
        (slice(np.int64(3), torch.tensor(6)), slice(3, 6)),
        (slice(None, np.int8(6)), slice(None, 6)),
        ((), ()),
        (None, None),
    ],
    ids=repr,
)
def test_several_positions_of_any_make(given: object, positions: object) -> None:
    assert FeatureAt(1, 3, given).positions == positions  # type: ignore[arg-type]


def test_positions_are_shown_as_they_are_written() -> None:
    shown = {7: "@7", (2, 5): "@2,5", None: ""}
    for positions, said in shown.items():
        assert str(FeatureAt(1, 3, positions)) == f"L1/3{said}"
    assert str(FeatureAt(1, 3, slice(3, None))) == "L1/3@3:"


@pytest.mark.parametrize("position", ["5", 5.0, True, (1.5,), ..., torch.tensor(5.0), np.array([0.5, 1.0])], ids=repr)
def test_other_positions_are_refused(position: object) -> None:
    with pytest.raises(ValueError, match=r"^L1/3: .*is not a position; give a whole number, several, a slice, or None"):
        FeatureAt(1, 3, position)  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", [(2.5, None), (1, "4"), (1, 4, 0.5), (True, None)])
def test_other_ends_of_slices_are_refused(ends: tuple) -> None:
    with pytest.raises(
        ValueError, match=r"^L1/3: slice\(.*is not a range of positions; its ends must be whole numbers"
    ):
        FeatureAt(1, 3, slice(*ends))


@pytest.mark.parametrize("number", [1.5, "1", None, True, (1,)])
def test_other_layers_and_places_are_refused(number: object) -> None:
    for make, name in (
        (lambda: FeatureAt(number, 0), "the layer of a feature"),
        (lambda: FeatureAt(0, number), "the index of a feature"),
        (lambda: ErrorAt(number, 0), "the layer of an error"),
        (lambda: ErrorAt(0, number), "the position of an error"),
        (lambda: TokenAt(number), "the position of a token"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be a whole number, not "):
            make()


@pytest.mark.parametrize("two", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)], ids=repr)
def test_values_of_any_make(two: float) -> None:
    made = [Set("L0/1", two), Scale("L0/1", two), Add("L0/1", two), SwapIn("L0/1", [2], factor=two)]
    assert made == [Set("L0/1", 2.0), Scale("L0/1", 2.0), Add("L0/1", 2.0), SwapIn("L0/1", [2], factor=2.0)]


@pytest.mark.parametrize("values", [[2, 3.5], (2.0, 3.5), np.array([2, 3.5]), torch.tensor([2, 3.5])], ids=repr)
def test_values_of_members_of_any_make(values: object) -> None:
    assert Set("Texas", values).value == (2.0, 3.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["2", None, True, ..., torch.zeros(2)], ids=repr)
def test_other_values_are_refused(value: object) -> None:
    for make, name in (
        (lambda: Scale(FeatureAt(0, 1), value), "L0/1: factor"),
        (lambda: Add("Texas", value), "'Texas': amount"),
        (lambda: SwapIn("Texas", [2], factor=value), "'Texas': factor"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be a number, not "):
            make()


def test_members_may_come_in_a_list() -> None:
    members = [FeatureAt(0, 1), FeatureAt(2, 3)]
    assert Supernode("pair", members) == Supernode("pair", tuple(members))  # type: ignore[arg-type]
    assert Ablate(AllFeatures(but=members)) == Ablate(AllFeatures(but=tuple(members)))  # type: ignore[arg-type]
    assert str(Supernode("pair", members)) == '"pair" (2 features)'  # type: ignore[arg-type]
