"""Names of features in terms of what is known of their prompt."""

from __future__ import annotations

import pytest

from crosstrace.graphs.aggregates.values import in_terms_of, its, varying

VALUES = {"city": "York", "state": "New York", "capital": "Albany"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("New York", "{state}"),
        ("York", "{city}"),
        ("say Albany (New York)", "say {capital} ({state})"),
        ("Yorkshire", None),
        ("the capital", None),
        ("~ → Albany, Troy", "→ {capital}"),
        ("~ Albany, Troy …", "on {capital}"),
        ("~ token: York", "on {city}"),
        ("~ Dallas → albany", "→ {capital}"),
        ("~ → Troy, Albany", None),
        ("→? Albany, x", "→ {capital}"),
        ("", None),
    ],
)
def test_values_become_keys(name, said):
    assert in_terms_of(name, VALUES) == said


def test_people_say_its():
    assert its("say {capital} ({state})") == "say its capital (its state)"


def test_keys_that_say_nothing_of_one_prompt_are_left_out():
    rows = [{"a": "x", "b": "same", "c": 1, "d": None}, {"a": "y", "b": "same", "c": 2, "d": "z"}]
    assert varying(rows) == ["a"]
    assert varying([*rows, {"d": "w"}]) == ["a", "d"]
