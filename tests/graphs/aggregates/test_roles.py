"""Which positions of different prompts are the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from graph_samples import random_graph

from crosstrace.graphs.aggregates.roles import Pattern, place, token_places


def graph_of(prompt, tokens, **settings):
    """A graph of a prompt with the texts of its tokens."""
    graph = random_graph(0, P=len(tokens))
    # No two of these tokens are the same unless their texts are.
    ids = [sorted(set(tokens)).index(token) for token in tokens]
    return dataclasses.replace(
        graph, prompt=prompt, token_strings=list(tokens), tokens=torch.tensor(ids), settings=settings
    )


WORDS = graph_of("<bos> The state of New York is big", ["<bos>", "The", "state", "of", "New", "York", "is", "big"])
PIECES = graph_of(
    "<bos>The state of New York is big", ["<bos>", "The", " state", " of", " New", " Yo", "rk", " is", " big"]
)


def test_without_a_pattern_the_last_position_is_the_last():
    assert place(WORDS, "end").roles[-2:] == ["−2", "−1"]
    assert place(WORDS, "end").roles[0] == "−8"


def test_the_second_of_a_token_is_not_the_first():
    graph = graph_of("a b a", ["a", "b", "a"])
    assert place(graph, "token").roles == ["a", "b", "a·2"]


@pytest.mark.parametrize("graph", [WORDS, PIECES])
def test_a_slot_is_counted_from_its_end(graph):
    placed = place(graph, "end", [Pattern("The state of {state} is {size}")])
    assert placed.slots == {"state": "New York", "size": "big"}
    slot = [role for role in placed.roles if role.startswith("{state}")]
    assert slot[-2:] == ["{state} −1", "{state}"]
    assert [role for role in placed.roles if not role.startswith("{")] == ["<bos>", "The", "state", "of", "is"]
    assert placed.roles[-1] == "{size}"


def test_the_most_specific_pattern_that_fits_counts():
    patterns = [Pattern("The city of {x} is big"), Pattern("{all}"), Pattern("The {kind} of {x} is big")]
    assert place(WORDS, "end", patterns).slots == {"kind": "state", "x": "New York"}
    assert place(WORDS, "end", patterns[:1]) is None


def test_a_slot_that_comes_twice_holds_the_same():
    pattern = Pattern("{a} is {a}")
    assert place(graph_of("x is x", ["x", " is", " x"]), "end", [pattern]).roles == ["{a}", "is", "{a}"]
    assert place(graph_of("x is y", ["x", " is", " y"]), "end", [pattern]) is None


@pytest.mark.parametrize(
    ("text", "why"), [("no slot", "has no slot"), ("{} is", "is not a name"), ("{a b}", "is not a name")]
)
def test_patterns_that_cannot_be_read(text, why):
    with pytest.raises(ValueError, match=why):
        Pattern(text)


def test_tokens_that_are_not_in_the_text_take_no_place():
    graph = graph_of("Zoë is", ["Zo", "<0xC3>", "<0xAB>", " is"])
    assert token_places(graph) == [(0, 2), (2, 2), (2, 2), (4, 6)]


def test_spans_of_a_conversation():
    spans = {
        "turns": [["user", 2, 4], ["assistant", 6, 7]],
        "answer": [6, 7],
        "template": [0, 1, 4, 5],
        "log_probabilities": [],
    }
    graph = graph_of("x", ["<bos>", "<turn>", "Hi", "there", "<turn>", "model", "Yes"], conversation=spans)
    roles = place(graph, "span").roles
    assert roles == ["‹<bos>›", "‹<turn>›", "user −2", "user −1", "‹<turn>›·2", "‹model›", "assistant −1"]
