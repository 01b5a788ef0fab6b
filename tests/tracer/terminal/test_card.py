"""Cards in the terminal: how strongly a feature fires is how strongly its token is coloured."""

from __future__ import annotations

import re

import pytest
from card_samples import write_sample
from rich.console import Console

from crosstrace.graphs import FeatureCards
from crosstrace.tracer.terminal.features.card import feature_table, marked, overview, show_card


@pytest.fixture
def cards(tmp_path) -> FeatureCards:
    return FeatureCards(write_sample(tmp_path / "cards.safetensors"))


def printed(what, width: int = 100) -> str:
    console = Console(width=width, no_color=True, color_system=None, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    if callable(what):
        what(console)
    else:
        console.print(what)
    return console.export_text()


def test_stronger_activations_have_stronger_backgrounds():
    line = marked([" a", " b", " c", " d"], [0.0, 0.2, 1.0, 0.6], 2, 1.0, True)
    styles = {line.plain[span.start : span.end]: str(span.style) for span in line.spans}
    assert " a" not in styles
    red = {token: int(re.search(r"rgb\((\d+)", style)[1]) for token, style in styles.items()}
    assert red[" b"] < red[" d"] < red[" c"]
    assert "underline" in styles[" c"]
    assert not any("underline" in styles[token] for token in (" b", " d"))


def test_without_colours_brackets_say_it():
    assert marked([" a", " b", " c"], [0.0, 0.2, 1.0], 2, 1.0, False).plain == " a[ b][[ c]]"
    assert marked(["a", "b", "c"], [0.5, 0.0, 1.0], 2, 1.0, False).plain == "[a] b [[c]]"  # a tokenizer of whole words


def test_a_card(cards):
    text = printed(lambda console: show_card(cards, (0, 3), console))
    for part in ("L0/3 ~ Austin → Austin", "fires on 40.0% of 5 tokens, at most 1.00", "Austin +2.00", "Paris -0.12"):
        assert part in text
    assert "1.00 [ is][[ Austin]]" in text
    named = printed(lambda console: show_card(cards, (0, 3), console, "say Austin"))
    assert "L0/3 say Austin" in named
    assert "~ Austin → Austin" in named  # the automatic one stays to be seen


def test_as_many_contexts_as_asked_for(cards):
    assert printed(lambda console: show_card(cards, (0, 1), console)).count("[[ Dallas]]") == 2
    assert printed(lambda console: show_card(cards, (0, 1), console, contexts=1)).count("[[ Dallas]]") == 1


def test_lines_of_a_table(cards):
    text = printed(feature_table(cards, [(0, 1), (1, 0)], {(1, 0): "named"}, "some"), 140)
    assert re.search(r"L0/1 +~ token: Dallas +40\.0% +Texas, Austin", text)
    assert re.search(r"L1/0 +named +20\.0% +Austin, Texas", text)


def test_what_a_file_holds(cards):
    text = printed(overview(cards))
    assert "texts.txt: 2 texts, 2 contexts of up to 4 tokens, 7 tokens" in text
    assert "3 of 7 features fired" in text
    assert re.search(r"0 +4 +2 +50\.0% +40\.0% +0\.80", text)
