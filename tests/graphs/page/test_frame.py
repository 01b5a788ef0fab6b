"""A graph in a notebook: its page in a sandboxed frame, from which no string breaks out."""

import re
from html.parser import HTMLParser

from graph_samples import HOSTILE, random_graph

from crosstrace.graphs import PageLimits, prune, write_html
from crosstrace.graphs.page.frame import frame_html

ATTACKS = ['"></iframe><script>window.pwned = 1</script>', "' onload='window.pwned = 1", "</script><!--", "&quot;>"]


def elements_of(text):
    """(tag, attributes) of every element of an HTML text."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(text)
    return found


def test_a_graph_shows_its_page_in_a_sandboxed_frame(tmp_path):
    graph = prune(random_graph(), 0.6, 0.9)
    ((tag, attributes),) = elements_of(graph._repr_html_())
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts"
    write_html(graph, tmp_path / "g.html")
    assert attributes["srcdoc"] == (tmp_path / "g.html").read_text("utf-8")


def test_a_raw_graph_is_shown_pruned_with_the_defaults():
    graph = random_graph()
    assert graph._repr_html_() == prune(graph)._repr_html_()


def test_no_string_breaks_out_of_the_frame():
    strings = ATTACKS + HOSTILE
    n = len(random_graph().selected_features)
    graph = random_graph(
        prompt="".join(strings),
        token_strings=strings[:5],
        logit_strings=strings[2:5],
        feature_labels=[strings[i % len(strings)] for i in range(n)],
        model_name=ATTACKS[0],
    )
    shown = graph._repr_html_()
    ((tag, attributes),) = elements_of(shown)
    assert (tag, set(attributes)) == ("iframe", {"title", "sandbox", "style", "srcdoc"})
    assert shown.count("<") == shown.count(">") == 2
    assert not re.search("[\u2028\u2029\ud800-\udfff]", shown)
    inside = elements_of(attributes["srcdoc"])
    assert [tag for tag, _ in inside].count("script") == 3
    assert not [tag for tag, _ in inside if tag in ("iframe", "img")]


def test_in_place_of_a_graph_too_large_for_a_notebook_stands_what_writes_its_page():
    graph = random_graph(4, per_layer=40, prompt="<b>large</b>")
    for limits in (PageLimits(live_nodes=20, most_nodes=30), PageLimits(page_bytes=1000)):
        shown = frame_html(graph, limits)
        assert [tag for tag, _ in elements_of(shown)] == ["p"]
        assert "crosstrace view GRAPH.safetensors -o graph.html" in shown
        assert "write_html(graph, &quot;graph.html&quot;)" in shown
        assert "&lt;b&gt;large&lt;/b&gt;" in shown
