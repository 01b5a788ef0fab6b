"""GraphML, as networkx reads it back: typed attributes, any string, supernodes."""

from xml.etree import ElementTree

import networkx
import pytest
from graph_samples import HOSTILE, case, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstrace.graphs import Figure, prune, suggest_supernodes, to_networkx, write_graphml
from crosstrace.graphs.viewer_ids import node_ids


def test_networkx_reads_the_same_graph_back(tmp_path):
    graph = prune(case("clt_affine")[0])
    supernodes = suggest_supernodes(graph)
    write_graphml(graph, tmp_path / "g.graphml", Figure(supernodes))
    found, expected = networkx.read_graphml(tmp_path / "g.graphml"), to_networkx(graph)
    ids = node_ids(graph)
    group = {ids[node]: name for name, nodes in supernodes for node in nodes}
    assert dict(found.nodes(data=True)) == {
        ids[node]: {**values, "supernode": group.get(ids[node], "")} for node, values in expected.nodes(data=True)
    }
    assert {(s, t): w for s, t, w in found.edges(data="weight")} == {
        (ids[s], ids[t]): w for s, t, w in expected.edges(data="weight")
    }
    assert found.graph.items() >= expected.graph.items()
    types = {key.get("attr.name"): key.get("attr.type") for key in ElementTree.parse(tmp_path / "g.graphml").iter()}
    wanted = {"weight": "double", "layer": "long", "label": "string", "supernode": "string", "activation": "double"}
    assert types.items() >= wanted.items()


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=()))))
def test_any_string_survives(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("graphml") / "g.graphml"
    graph = random_graph(P=2, k=1, logit_strings=[text], token_strings=[text, "x"], prompt=text)
    write_graphml(graph, path)
    found = networkx.read_graphml(path)
    ids = node_ids(graph)
    read = found.nodes[ids[graph.layout.token_index(0)]].get("token", "")
    assert found.graph.get("prompt", "") == read == found.nodes[ids[graph.layout.logit_index(0)]].get("token", "")
    for before, after in zip(text, read, strict=False):
        if before != after:  # only what is no character of XML
            assert ord(before) < 0x20 or 0xD800 <= ord(before) < 0xE000 or ord(before) in (0xFFFE, 0xFFFF)
            break
    else:
        assert read == text


def test_only_what_the_figure_shows(tmp_path):
    graph = prune(random_graph(1))
    write_graphml(graph, tmp_path / "g.graphml", Figure(top_paths=1))
    found = networkx.read_graphml(tmp_path / "g.graphml")
    assert networkx.is_directed_acyclic_graph(found)
    assert sorted(degree for _, degree in found.degree()) == [1, 1, *[2] * (len(found) - 2)]


def test_nothing_is_left_behind(tmp_path):
    with pytest.raises(OSError, match="missing"):
        write_graphml(random_graph(), tmp_path / "missing" / "g.graphml")
    assert not list(tmp_path.iterdir())
