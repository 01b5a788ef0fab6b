"""What tables, cards, scores, comparisons and paths show of themselves in a notebook."""

from html.parser import HTMLParser

import pytest
from card_samples import write_sample
from graph_samples import HOSTILE, random_graph

from crosstrace.graphs import FeatureCards, compare, graph_scores, prune, strongest_paths
from crosstrace.graphs.notebook import as_html, table, text
from crosstrace.graphs.numbers import points, probability
from crosstrace.graphs.text import visible

ATTACK = "<img src=x onerror=alert(1)>"
ALLOWED = {"p", "strong", "table", "thead", "tbody", "tr", "th", "td", "span"}


def shown(value):
    """What a notebook shows as text, with only harmless elements around it."""
    words = []
    parser = HTMLParser()
    parser.handle_data = words.append

    def start(tag, attributes):
        assert tag in ALLOWED
        assert {name for name, _ in attributes} <= {"style", "title"}

    parser.handle_starttag = start
    parser.feed(value._repr_html_())
    return "".join(words)


@pytest.mark.parametrize("string", [*HOSTILE, ATTACK])
def test_a_cell_is_its_text(string):
    assert text(string) in table("", [string], [[string]])
    assert "<img" not in table(string, [string], [[string]])


def test_numbers_are_aligned_to_the_right():
    assert 'text-align:right;vertical-align:top">0.123</td>' in table("", ["x"], [[0.123456]])


def test_what_has_no_view_of_its_own_is_its_repr():
    assert as_html(["<b>"]) == "<pre>[&#x27;&lt;b&gt;&#x27;]</pre>"


def test_scores():
    scores = graph_scores(random_graph())
    assert f"replacement{probability(scores.replacement)}" in shown(scores)
    assert f"completeness{probability(scores.completeness)}" in shown(scores)


def test_paths_name_their_nodes():
    graph = random_graph(token_strings=[ATTACK] * 5)
    paths = strongest_paths(graph, n=3)
    found = shown(paths)
    for path in paths:
        assert f"{path.strength:.2%}" in found
        assert " → ".join(map(graph.describe, path.nodes)) in found


def test_a_comparison_shows_what_changed_most():
    a, b = (prune(random_graph(seed, prompt=ATTACK)) for seed in (1, 2))
    comparison = compare(a, b)
    found = shown(comparison)
    assert ATTACK in found
    top = comparison.only_b[0]
    assert f"L{top.layer}/{top.feature}" in found
    assert points(top.change) in found
    assert f"Only in B (10 of {len(comparison.only_b)})" in found


def test_cards(tmp_path):
    strings = ["<bos>", ATTACK, " is", '" onclick="', " Texas", "\ud800"]
    cards = FeatureCards(write_sample(tmp_path / "cards.safetensors", strings))
    found = shown(cards)
    assert "3 feature cards of some/transcoders" in found
    for key in cards:
        assert f"L{key[0]}/{key[1]}{visible(cards.label(key))}" in found
        card = shown(cards[key])
        assert visible(cards[key]["label"]) in card
        for context in cards[key]["contexts"]:
            assert visible("".join(context["tokens"])) in card
