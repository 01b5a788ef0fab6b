"""Features as they are written: by number and by label, and one clear line for what cannot be read."""

from __future__ import annotations

import pytest

from crosstrace.replacement_model import FeatureAt, Supernode
from crosstrace.replacement_model.interventions.references import (
    find_features,
    is_feature,
    name_and_positions,
    parse_feature,
    parse_positions,
)

LABELS = {(0, 3): "Texas", (2, 7): "Texas", (1, 1): "Texas, Utah", (3, 9): "say Austin"}


@pytest.mark.parametrize("written", ["L3/41", "3/41", " L3/41 "])
@pytest.mark.parametrize(
    ("at", "positions"), [("", None), ("@7", 7), (" @-1", -1), ("@2,5", (2, 5)), ("@3:", slice(3, None))]
)
def test_a_feature_by_number(written: str, at: str, positions: object) -> None:
    expected = FeatureAt(3, 41, positions)  # type: ignore[arg-type]
    assert parse_feature(written + at) == expected
    assert find_features(written + at, LABELS) == expected
    assert is_feature(written + at)


@pytest.mark.parametrize(
    "text", ["Texas", '"L3/41"', '"3/41"@2', "L3", "1/2 cup", "1/x", "", "Texas@3", "a/b", "say 3/41"]
)
def test_anything_else_is_not_a_feature(text: str) -> None:
    assert parse_feature(text) is None
    assert not is_feature(text)


@pytest.mark.parametrize("text", ["L-1/5", "L3/x", "l3/417", "3/-4", "L3/", "L3/4/5", "L-1/5@2", "3/-4@x"])
def test_mistyped_numbers_get_one_line(text: str) -> None:
    for read in (parse_feature, lambda text: find_features(text, LABELS)):
        with pytest.raises(ValueError, match=r"^feature .* cannot be read; write L3/417 or L3/417@7 ") as caught:
            read(text)
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["L3/41@1:3:2", "3/41@x", "L3/41@", "L3/41@1.5"])
def test_mistyped_positions_get_one_line(text: str) -> None:
    for read in (parse_feature, lambda text: find_features(text, LABELS)):
        with pytest.raises(ValueError, match=r"^positions .* cannot be read; write 7, -1, 2,5, 3:6 or 3: "):
            read(text)


def test_a_label_that_looks_mistyped_is_a_label() -> None:
    labels = {(0, 1): "L2/norm", (0, 2): "L0/5"}
    assert parse_feature("L2/norm", labels.values()) is None
    assert find_features("L2/norm@3", labels) == Supernode("L2/norm", (FeatureAt(0, 1, 3),))
    assert find_features("L0/5", labels) == FeatureAt(0, 5)  # a number that can be read comes first
    assert find_features('"L0/5"', labels) == Supernode("L0/5", (FeatureAt(0, 2),))


def test_names_apart_from_positions() -> None:
    assert name_and_positions('"Texas"@5:') == ("Texas", "5:")
    assert name_and_positions("me@home") == ("me@home", None)


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("7", 7),
        ("-1", -1),
        ("2,5,-3", (2, 5, -3)),
        ("3:6", slice(3, 6)),
        ("3:", slice(3, None)),
        (":", slice(None, None)),
    ],
)
def test_positions_as_written(text: str, positions: object) -> None:
    assert parse_positions(text) == positions
    assert find_features(f"L3/41@{text}", {}) == FeatureAt(3, 41, positions)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["Texas@4:", '"Texas"@4:', ' "Texas" @4:'])
def test_a_label_names_all_its_features(text: str) -> None:
    places = (FeatureAt(0, 3, slice(4, None)), FeatureAt(2, 7, slice(4, None)))
    assert find_features(text, LABELS) == Supernode("Texas", places)


def test_labels_with_an_at_sign_or_a_comma() -> None:
    assert find_features('"Texas, Utah"', LABELS) == Supernode("Texas, Utah", (FeatureAt(1, 1),))
    assert find_features("me@home@2", {(1, 2): "me@home"}) == Supernode("me@home", (FeatureAt(1, 2, 2),))


@pytest.mark.parametrize(
    ("text", "said"),
    [("texas", "'Texas'"), ("Texs", "'Texas'"), ("Austin", "'say Austin'"), ("zzzz", "no label is close")],
)
def test_an_unknown_label_suggests_close_ones(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"unknown feature label .*{said}"):
        find_features(text, LABELS)


def test_without_labels_the_other_way_to_write_is_named() -> None:
    with pytest.raises(ValueError, match="have no labels; write features as L3/417@7"):
        find_features("Texas", {})
