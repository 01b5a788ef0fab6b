"""The page of two graphs as a file: who is whose counterpart, and that strings stay data."""

import dataclasses
import json
import re

import pytest
import torch
from graph_samples import HOSTILE, random_graph

from crosstrace.graphs import PageLimits, prune, write_comparison_html
from crosstrace.graphs.analysis.comparison import counterparts
from crosstrace.graphs.page.comparison import ABSENT, ELSEWHERE, UNTRACED, comparison_page_data
from crosstrace.graphs.viewer_ids import node_ids

A = random_graph(1, P=5)
# Another token in the middle, so that neither its column nor the features of other seeds are shared.
B = random_graph(2, P=5, tokens=torch.tensor([10, 11, 99, 13, 14]))


def test_each_node_knows_its_counterpart_on_the_other_page():
    data = comparison_page_data(A, B)
    ids = [graph["nodes"]["id"] for graph in data["graphs"]]
    to_b = {node_ids(A)[a]: node_ids(B)[b] for a, b in counterparts(A, B).items()}
    assert 0 < len(to_b) < A.n
    first, second = data["counterparts"]
    assert {ids[0][i]: ids[1][partner] for i, partner in enumerate(first) if partner >= 0} == to_b
    assert {ids[1][i]: ids[0][partner] for i, partner in enumerate(second) if partner >= 0} == {
        b: a for a, b in to_b.items()
    }
    assert {partner for partner in first + second if partner < 0} == {ABSENT}


def test_a_feature_that_was_active_but_not_traced():
    kept = torch.arange(1, len(A.selected_features))
    n = A.n - 1
    rows = torch.arange(1, A.n)
    cut = dataclasses.replace(
        A,
        selected_features=kept,
        feature_labels=A.feature_labels[1:],
        edges=A.edges[rows.numpy()][:, rows.numpy()],
        **{name: getattr(A, name)[1:] for name in ("unattributed", "omitted", "omitted_magnitude", "target_values")},
    )
    assert cut.n == n
    data = comparison_page_data(A, cut)
    assert data["counterparts"][0] == [UNTRACED, *range(n)]
    assert data["counterparts"][1] == list(range(1, A.n))


def test_a_node_that_the_other_page_does_not_hold():
    other = dataclasses.replace(A, logit_probabilities=A.logit_probabilities.flip(0))
    data = comparison_page_data(A, other, limits=PageLimits(live_nodes=30))
    ids = [graph["nodes"]["id"] for graph in data["graphs"]]
    assert set(ids[0]) != set(ids[1])
    for own, others, partners in ((ids[0], ids[1], data["counterparts"][0]), (ids[1], ids[0], data["counterparts"][1])):
        expected = [others.index(name) if name in others else ELSEWHERE for name in own]
        assert partners == expected
        assert ELSEWHERE in partners


def test_strings_stay_data(tmp_path):
    text = "</script><script>alert(1)</script>" + "".join(HOSTILE)
    graph = prune(random_graph(prompt=text, model_name=text, token_strings=[text] * 5))
    write_comparison_html(graph, graph, tmp_path / "c.html", names=("</b><img src=x>", "\ud800"))
    page = (tmp_path / "c.html").read_text("utf-8")
    assert page.count("<script") == page.count("</script>") == 3
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(content)
    assert data["names"] == ["</b><img src=x>", "\ud800"]
    assert data["graphs"][0]["prompt"] == text
    assert "default-src &#x27;none&#x27;" in page


def test_what_cannot_be_compared(tmp_path):
    with pytest.raises(ValueError, match="the graphs cannot be compared: model is"):
        write_comparison_html(A, random_graph(model_name="other"), tmp_path / "c.html")
    with pytest.raises(ValueError, match="names must be two, one for each graph, not 1"):
        write_comparison_html(A, B, tmp_path / "c.html", names=("one",))
    assert not list(tmp_path.iterdir())
