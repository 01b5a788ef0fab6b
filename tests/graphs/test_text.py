"""Strings that can be shown anywhere."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstrace.graphs.text import distinct, short, visible


@given(st.text(st.characters(exclude_categories=[])))
def test_any_string_becomes_one_line_of_utf8(text):
    shown = visible(text)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert len(shown.splitlines()) <= 1
    assert visible(shown) == shown
    ElementTree.fromstring(f"<a>{shown.replace('&', '&amp;').replace('<', '&lt;')}</a>")


@pytest.mark.parametrize("text", ["plain", "עברית", "العربية", "中文", "👩‍👩‍👧 🇫🇷 e\u0301", 'a "b" \\ <c> & d'])
def test_ordinary_text_stays(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" Dallas", "Dallas"), ("  ", "␣␣"), ("", "∅"), ("\n", "↵"), ("x" * 30, "x" * 23 + "…"), ("a\u202eb", "a⟨202E⟩b")],
)
def test_short(text, shown):
    assert short(text) == shown


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ([" Dallas", "is"], ["Dallas", "is"]),
        ([" Dallas", " Dallas"], ["Dallas", "Dallas"]),  # the same token twice
        ([" Austin", "Austin", "is"], ["␣Austin", "Austin", "is"]),
        (["\n", "↵"], ["⟨000A⟩", "⟨21B5⟩"]),
        (["\n", "\n\n"], ["↵", "↵↵"]),
        (["a", "a\u200b"], ["a", "a⟨200B⟩"]),
        (["\u200b", "\u00a0"], ["⟨200B⟩", "⟨00A0⟩"]),
        (["\u00e9", "e\u0301"], ["⟨00E9⟩", "e⟨0301⟩"]),
        (["a  b", "a b"], ["a␣␣b", "a␣b"]),
        (["", "∅"], ["∅", "⟨2205⟩"]),
        (["<0x0A>", "\n"], ["<0x0A>", "↵"]),
        ([" " * 25, " " * 26], ["␣" * 25, "␣" * 26]),
        (["x" * 30, "x" * 31], ["x" * 30, "x" * 31]),
    ],
    ids=ascii,
)
def test_tokens_that_would_be_shown_alike_are_told_apart(texts, shown):
    assert distinct(texts) == shown


def test_tokens_of_one_text_are_told_apart_by_id():
    assert distinct(["A", "A", "B"], [65, 300, 66]) == ["A #65", "A #300", "B"]
    assert distinct(["\ufffd", "\ufffd"], [1, 2]) == [
        "⟨FFFD⟩ #1",
        "⟨FFFD⟩ #2",
    ]  # as files of earlier versions hold bytes


def test_raw_texts_stay_where_they_differ():
    assert distinct([" Austin", "Austin", "\n", "  "], raw=True) == [" Austin", "Austin", "\n", "  "]
    assert distinct(["\u00e9", "e\u0301", "a"], raw=True) == ["⟨00E9⟩", "e⟨0301⟩", "a"]


@given(st.lists(st.text(st.sampled_from(" \n\t\u200b\u00a0ae\u0301\u00e9↵␣⟨#1⟩"), max_size=4), max_size=12))
def test_no_two_tokens_of_a_list_are_shown_alike(texts):
    for raw in (False, True):
        for ids in (None, [hash(text) % 1000 for text in texts]):
            shown = distinct(texts, ids, raw=raw)
            assert len(set(shown)) == len(set(texts))
            assert raw or all(name.strip() for name in shown)
