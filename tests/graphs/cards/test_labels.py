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
        ([" is", " is", " is"], WEAK, "~ token: is"),
        ([" Dallas", "Houston", " is", " is"], WEAK, "~ is"),  # half of them
        ([" Dallas", "Houston"], WEAK, "~ Dallas"),  # half of them, the stronger first
        ([" Dallas", "Houston", " Waco"], WEAK, "~ Dallas, Houston …"),
        ([" a", " b", " c", " c", " d"], WEAK, "~ c, a …"),
        ([" The", "the", "THE", " of"], STRONG, "~ The → Austin"),
        (["\n"], [], "~ token: ↵"),
        ([",", " a", " ."], [], "~ ',', a …"),  # a comma in the list is no token
        ([" is"], [("→", 9.0)], "~ is → '→'"),
        ([" a-very-long-token-of-a-tokenizer"], [], "~ token: a-very-long-tok…"),
    ],
)
def test_labels(peaks, promoted, label):
    assert automatic_label(peaks, promoted, 1.0, 1000) == label


def test_how_far_a_token_must_stand_out():
    assert automatic_label(["x"], [("y", ON_ITS_OWN * 1.001)], 1.0, 1000) == "~ x → y"
    assert automatic_label(["x"], [("y", ON_ITS_OWN * 0.999)], 1.0, 1000) == "~ token: x"
    assert automatic_label(["x"], [("y", ON_ITS_OWN * 1.001)], 2.0, 1000) == "~ token: x"
    assert automatic_label(["x"], [("y", 0.0)], 0.0, 1000) == "~ token: x"  # a decoder that writes nothing


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


def test_late_features_are_named_by_what_they_promote_alone():
    promoted = [(" Stuttgart", 9.0), (" stuttgart", 8.9), (" Mumbai", 8.0), (" Oslo", 4.0)]
    late = automatic_label([" of"] * 5, promoted, 1.0, 1000, coherent=True, late=True)
    assert late == "~ → Stuttgart, Mumbai"
    assert automatic_label([" of"] * 5, promoted, 1.0, 1000, coherent=True) == "~ of → Stuttgart, Mumbai"
    # Where what it promotes says nothing, it is what it fires on, in late layers too.
    assert automatic_label([" of"] * 5, [(" x", 0.1)], 1.0, 1000, coherent=False, late=True) == "~ token: of"


def test_what_fires_on_one_token_mostly_means_it():
    assert automatic_label([" of"] * 4 + [" in"], [], 1.0, 1000) == "~ token: of"
    assert automatic_label([" of"] * 3 + [" in"] * 2, [], 1.0, 1000) == "~ of"
