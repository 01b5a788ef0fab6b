"""Strings that can be shown anywhere."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstrace.graphs.text import short, visible


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
