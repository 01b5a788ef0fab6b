"""What a figure shows: merged supernodes sum their members' edges, top paths leave nothing but paths."""

import numpy as np
import pytest
import torch
from graph_samples import case, random_graph

from crosstrace.graphs import Figure, prune, story_of, strongest_paths, suggest_supernodes
from crosstrace.graphs.analysis.pruning import cumulative_influence
from crosstrace.graphs.numbers import share, signed
from crosstrace.graphs.pictures.figure import drawing_of
from crosstrace.graphs.viewer_ids import node_ids


def edges_of(drawing):
    return {(edge.source, edge.target): edge.weight for edge in drawing.edges}


def test_without_supernodes_nodes_and_edges_are_those_kept():
    graph = prune(case("clt_affine")[0])
    ids, drawing = node_ids(graph), drawing_of(graph, Figure(everything=True))
    assert [node.name for node in drawing.nodes] == [ids[node] for node in graph.kept_nodes()]
    kept = graph.kept_edges().tocoo()
    expected = {(ids[s], ids[t]): w for t, s, w in zip(kept.row, kept.col, kept.data.tolist(), strict=True)}
    assert edges_of(drawing) == expected


@pytest.mark.parametrize("seed", range(3))
def test_edges_of_merged_supernodes_are_sums(seed):
    graph = prune(random_graph(seed, L=5, P=4, per_layer=10))
    supernodes = suggest_supernodes(graph, min_similarity=0.3)
    assert supernodes
    found = edges_of(drawing_of(graph, Figure(supernodes, merged=True)))
    ids, kept = node_ids(graph), graph.kept_edges().toarray().astype(np.float64)
    group = {node: f"supernode-{i}" for i, (_, nodes) in enumerate(supernodes) for node in nodes}
    names = [group.get(node, name) for node, name in enumerate(ids)]
    places = {name: [node for node, own in enumerate(names) if own == name] for name in set(names)}
    for (source, target), weight in found.items():
        assert weight == pytest.approx(kept[np.ix_(places[target], places[source])].sum(), rel=1e-6)
    inside = sum(kept[np.ix_(nodes, nodes)].sum() for nodes in places.values())
    assert sum(found.values()) + inside == pytest.approx(kept.sum(), rel=1e-6)


def test_only_tokens_have_a_probability():
    graph = random_graph(logit_tokens=torch.tensor([100, -1, 102]))
    lines = {node.name: node.lines for node in drawing_of(graph, Figure(everything=True)).nodes if node.kind == "logit"}
    assert [len(own) for own in lines.values()] == [2, 1, 2]


def test_top_paths_are_drawn_alone():
    graph = prune(random_graph(1))
    ids = node_ids(graph)
    paths = strongest_paths(graph, n=3)
    drawing = drawing_of(graph, Figure(top_paths=3))
    assert {node.name for node in drawing.nodes} == {ids[node] for path in paths for node in path.nodes}
    steps = {(ids[a], ids[b]) for path in paths for a, b in zip(path.nodes, path.nodes[1:], strict=False)}
    assert set(edges_of(drawing)) == steps


def test_paths_that_do_not_lie_within_what_is_pinned_are_no_empty_picture():
    graph = prune(random_graph(1))
    path = strongest_paths(graph, n=1)[0].nodes
    drawing = drawing_of(graph, Figure(only=path, top_paths=3))
    assert {node.name for node in drawing.nodes} == {node_ids(graph)[node] for node in path}
    with pytest.raises(ValueError, match="nothing to draw: no path from a token to the first target lies within"):
        drawing_of(graph, Figure(only=path[:-1], top_paths=3))


def test_only_some_nodes_and_what_pruning_dropped_stays_dropped():
    graph = prune(random_graph(2), 0.5, 0.8)
    dropped = next(node for node in range(graph.n) if not graph.node_mask[node])
    wanted = [*graph.kept_nodes()[:3], dropped]
    drawing = drawing_of(graph, Figure(only=wanted))
    ids = node_ids(graph)
    assert [node.name for node in drawing.nodes] == [ids[node] for node in wanted[:3]]


def test_a_group_of_which_nothing_is_kept_is_not_drawn():
    graph = prune(random_graph(2), 0.5, 0.8)
    dropped = [node for node in range(graph.n) if not graph.node_mask[node]][:2]
    figure = Figure([("gone", dropped), ("there", graph.kept_nodes()[:2])])
    assert drawing_of(graph, figure).groups == ["there"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "circle"}, "unknown layout 'circle': known are positions, layers, force"),
        ({"top_paths": 0}, "top_paths must be at least 1, not 0"),
        ({"supernodes": [("a", [1, 2]), ("b", [2])]}, "node 2 is in two supernodes; it can be in one only"),
    ],
)
def test_wrong_figures(fields, message):
    with pytest.raises(ValueError, match="^" + message):
        Figure(**fields)


def test_a_node_that_is_not_there():
    graph = random_graph()
    with pytest.raises(ValueError, match=f"the graph has no node {graph.n}: its nodes are 0 to {graph.n - 1}"):
        drawing_of(graph, Figure(only=[graph.n]))


def test_tooltips_have_the_numbers_of_tables():
    graph = prune(random_graph(2))
    drawing = drawing_of(graph, Figure(everything=True))
    influence = dict(zip(node_ids(graph), cumulative_influence(graph).tolist(), strict=True))
    for node in drawing.nodes:
        about = node.about.splitlines()[1]
        assert f"enters at {share(influence[node.name])} of influence" in about
        assert (", activation " in about) == (node.kind == "feature")
    for edge in drawing.edges:
        assert edge.about.endswith(f": {signed(edge.weight)}")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("→ Philadelphia, Detroit", ["→ Philadelphia,", "Detroit"]),
        ("→ implicated, admitted, seen", ["→ implicated,", "admitted, seen"]),
        ("Kansas, California and Nebraska", ["Kansas,", "California…"]),
        ("Mississippians, Californians", ["Mississippian", "s, Californi…"]),
        ("Texas", ["Texas"]),
    ],
)
def test_labels_take_two_lines_and_lose_no_first_word(label, expected):
    graph = random_graph(0)
    graph = random_graph(0, feature_labels=[label] * graph.layout.n_features)
    node = next(node for node in drawing_of(graph, Figure(everything=True)).nodes if node.kind == "feature")
    assert [line.text.replace("\xa0", " ") for line in node.lines if not line.small] == expected


def test_without_wishes_a_figure_tells_the_story():
    graph = prune(random_graph(1, L=12, P=9, per_layer=30))
    story = story_of(graph)
    drawing = drawing_of(graph, Figure(notes=["Measured: nothing."]))
    assert len(drawing.nodes) == len(story.nodes) <= 40
    assert [edge.weight for edge in drawing.edges] == [edge.weight for edge in story.edges]
    assert drawing.edges[-1].share == story.edges[-1].share
    assert drawing.caption[: len(story.sentences())] == story.sentences()
    assert "Measured: nothing." in drawing.caption
    assert "--all" in drawing.caption[-1]
    assert not drawing.title.startswith("<bos>")
    # A group of one is drawn as its feature, errors are one quiet node a position.
    ids = node_ids(graph)
    for node, drawn in zip(story.nodes, drawing.nodes, strict=True):
        assert (drawn.kind == "supernode") == (len(node.members) > 1 and node.kind == "group")
        if node.kind in ("feature", "token", "target"):
            assert drawn.name == ids[node.members[0]]
    errors = [node.position for node in drawing.nodes if node.kind == "unexplained"]
    assert len(errors) == len(set(errors))


def test_a_merged_group_of_one_is_its_feature():
    graph = prune(random_graph(1))
    first, second, third = [node for node in graph.kept_nodes() if graph.layout.kind(node) == "feature"][:3]
    drawing = drawing_of(graph, Figure([("one", [first]), ("two", [second, third])], merged=True))
    kinds = {node.name: node.kind for node in drawing.nodes}
    assert kinds[node_ids(graph)[first]] == "feature"
    assert kinds["supernode-1"] == "supernode"
    assert "supernode-0" not in kinds


def test_of_very_many_edges_the_strongest_are_drawn_and_the_rest_is_counted(monkeypatch):
    graph = prune(random_graph(1))
    monkeypatch.setattr("crosstrace.graphs.pictures.figure.MOST_EDGES", 10)
    drawing = drawing_of(graph, Figure(everything=True))
    assert len(drawing.edges) == 10
    assert f"{graph.kept_edges().nnz - 10:,} weaker edges left out" in drawing.caption[0]
