"""Automatic labels follow the rule that is written down."""

from __future__ import annotations

import math

import pytest

from crosstrace.graphs.cards.labels import automatic_label

STRONG, WEAK = [(" Austin", 9.0)], [(" Austin", 3.0)]
ON_ITS_OWN = 1.2 * math.sqrt(2 * math.log(1000))


@pytest.mark.parametrize(
    ("peaks", "promoted", "label"),
    [
        ([" is", " is", " is"], STRONG, "~ is → Austin"),
        ([" is", " is", " is"], WEAK, "~ is"),
        ([" Dallas", "Houston", " is", " is"], WEAK, "~ is"),  # half of them
        ([" Dallas", "Houston"], WEAK, "~ Dallas"),  # half of them, the stronger first
        ([" Dallas", "Houston", " Waco"], WEAK, "~ Dallas, Houston …"),
        ([" a", " b", " c", " c", " d"], WEAK, "~ c, a …"),
        ([" The", "the", "THE", " of"], STRONG, "~ The → Austin"),
        (["\n"], [], "~ ↵"),
        ([",", " a", " ."], [], "~ ',', a …"),  # a comma in the list is no token
        ([" is"], [("→", 9.0)], "~ is → '→'"),
        ([" a-very-long-token-of-a-tokenizer"], [], "~ a-very-long-tok…"),
    ],
)
def test_labels(peaks, promoted, label):
    assert automatic_label(peaks, promoted, 1.0, 1000) == label


def test_how_far_a_token_must_stand_out():
    assert automatic_label(["x"], [("y", ON_ITS_OWN * 1.001)], 1.0, 1000) == "~ x → y"
    assert automatic_label(["x"], [("y", ON_ITS_OWN * 0.999)], 1.0, 1000) == "~ x"
    assert automatic_label(["x"], [("y", ON_ITS_OWN * 1.001)], 2.0, 1000) == "~ x"
    assert automatic_label(["x"], [("y", 0.0)], 0.0, 1000) == "~ x"  # a decoder that writes nothing


@pytest.mark.parametrize(
    ("peaks", "coherent", "label"),
    [
        ([" is", " is", " was"], True, "~ is → Austin, Dallas"),
        ([" of", " is", " was"], True, "~ → Austin, Dallas"),
        ([" of", " is", " was"], False, "~ of, is …"),
        ([" of", " is", " was"], None, "~ of, is …"),
    ],
)
def test_coherent_tokens_are_named_whether_or_not_one_stands_out(peaks, coherent, label):
    promoted = [(" Austin", 3.0), ("austin", 2.9), (" Dallas", 2.8), (" Waco", 2.7)]
    assert automatic_label(peaks, promoted, 1.0, 1000, coherent) == label


def test_tokens_of_punctuation_are_quoted():
    promoted = [("),", 3.0), (").", 2.9)]
    assert automatic_label([",", " a", "b"], promoted, 1.0, 1000, True) == "~ → '),', )."


def test_without_coherence_a_token_that_stands_out_is_named_as_ever():
    assert automatic_label([" is"], STRONG, 1.0, 1000, False) == "~ is → Austin"
