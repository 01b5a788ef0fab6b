"""The page of two graphs as a file: who is whose counterpart, and that strings stay data."""

import dataclasses
import json
import re
from collections import Counter

import pytest
import scipy.sparse
import torch
from graph_samples import HOSTILE, capped, random_graph

from crosstrace.graphs import PageLimits, compare, prune, write_comparison_html
from crosstrace.graphs.analysis.alignment import counterparts
from crosstrace.graphs.analysis.comparison import LISTS
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
    cut, n = capped(A, [0]), A.n - 1
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


def test_page_and_lists_agree_on_capped_graphs():
    """The same two graphs, cut by a cap at different features, with a token replaced and features moved to another one."""
    a = prune(capped(A, range(0, 20, 3)), 0.98, 0.99)
    moved = A.active_features.clone()
    moved[moved[:, 1] == 2, 2] += 1000  # other features at the replaced token
    other = dataclasses.replace(
        A, active_features=moved, tokens=torch.tensor([10, 11, 99, 13, 14]), edges=A.edges * 0.5
    )
    b = prune(capped(other, range(1, 20, 4)), 0.98, 0.99)
    found, data = compare(a, b), comparison_page_data(a, b)
    shown = [set(graph.kept_nodes()) for graph in (a, b)]
    counts = Counter()
    for side, (graph, others) in enumerate(((a, shown[1]), (b, shown[0]))):
        for node, partner in enumerate(
            data["counterparts"][side]
        ):  # without limits, the page's numbers are the graph's
            if graph.layout.kind(node) != "feature" or (node not in shown[side] and partner not in others):
                continue
            kind = {ABSENT: "only_" + "ab"[side], UNTRACED: "not_traced_in_" + "ba"[side]}.get(partner, "shared")
            counts[kind] += kind != "shared" or side == 0
    assert counts == {name: len(getattr(found, name)) for name in LISTS}
    assert all(counts[name] for name in LISTS)


def test_a_feature_that_fires_at_a_token_elsewhere():
    a = random_graph(L=1, P=4, per_layer=0, k=1, density=0.0)
    sizes = {"activations": torch.ones(2), "selected_features": torch.arange(2)}

    def graph(active_features, tokens):
        n = 2 + 4 + 4 + 1
        zeros = {name: torch.zeros(n) for name in ("unattributed", "omitted", "omitted_magnitude", "target_values")}
        fields = sizes | {"active_features": torch.tensor(active_features), "tokens": torch.tensor(tokens)}
        return dataclasses.replace(a, **fields, **zeros, edges=scipy.sparse.csr_array((n, n)), feature_labels=["", ""])

    first = graph([[0, 1, 5], [0, 2, 7]], [1, 2, 3, 4])
    # Token 2 is replaced by 9: feature 7 fires there in both. Feature 5 fires at the last token instead of the second.
    second = graph([[0, 2, 7], [0, 3, 5]], [1, 2, 9, 4])
    found = compare(first, second)
    assert [(item.feature, item.a.position, item.b.position) for item in found.shared] == [(7, 2, 2)]
    assert [(item.feature, item.elsewhere) for item in found.only_a] == [(5, (3,))]
    assert [(item.feature, item.elsewhere) for item in found.only_b] == [(5, (1,))]
    data = comparison_page_data(first, second)
    assert data["unaligned"] == [{"0": [3]}, {"1": [1]}]


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
