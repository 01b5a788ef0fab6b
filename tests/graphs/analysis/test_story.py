"""The story of a graph: few nodes, never across positions, edges that are sums, and everything else counted."""

import numpy as np
import pytest
from graph_samples import CASE_NAMES, case, random_graph

from crosstrace.graphs import flow_to, prune, story_of, suggest_supernodes
from crosstrace.graphs.analysis.naming import group_name
from crosstrace.graphs.analysis.story import INPUT_SHOWN, MOST_NODES
from crosstrace.graphs.analysis.supernodes import most_layers

GRAPHS = [*(case(name)[0] for name in CASE_NAMES), random_graph(3), random_graph(1, L=12, P=9, per_layer=30)]


@pytest.fixture(params=range(len(GRAPHS)))
def told(request):
    graph = prune(GRAPHS[request.param])
    return graph, story_of(graph)


def test_a_story_has_few_nodes_that_share_no_members_and_span_neither_positions_nor_many_layers(told):
    graph, story = told
    assert len(story.nodes) <= MOST_NODES
    members = [member for node in story.nodes for member in node.members]
    assert len(members) == len(set(members))
    assert set(members) <= set(range(graph.n))
    for node in story.nodes:
        assert {graph.place_of(member)[1] for member in node.members} == {node.position}
        if node.kind in ("group", "rest"):
            layers = [graph.place_of(member)[0] for member in node.members]
            assert (min(layers), max(layers)) == node.layers
            assert max(layers) - min(layers) < most_layers(graph.n_layers)
            assert set(node.members) <= set(graph.kept_nodes())
        if node.kind == "group":
            assert len(node.members) > 1
        if node.kind == "feature":
            assert len(node.members) == 1
    assert [node.kind for node in story.nodes][-1] == "target"


def test_edges_are_sums_with_their_share_of_the_target_s_input(told):
    graph, story = told
    dense = graph.edges.toarray().astype(np.float64)
    through = story.flow.through
    scale = 1 / (np.abs(dense).sum(axis=1) + np.abs(graph.omitted_magnitude.numpy()) + 1e-300)
    flow = np.abs(dense) * (through * scale)[:, None]
    for edge in story.edges:
        sources, targets = (list(story.nodes[end].members) for end in (edge.source, edge.target))
        assert edge.weight == pytest.approx(dense[np.ix_(targets, sources)].sum(), rel=1e-5, abs=1e-7)
        outside = np.setdiff1d(np.arange(graph.n), targets)
        into = flow[np.ix_(targets, outside)].sum()
        assert edge.share == pytest.approx(flow[np.ix_(targets, sources)].sum() / into, rel=1e-4)


def test_edges_of_a_node_are_the_fewest_that_make_most_of_its_input(told):
    _, story = told
    for i in range(len(story.nodes)):
        shares = sorted((edge.share for edge in story.edges if edge.target == i), reverse=True)
        # Without the last, less than the wished part of what comes from nodes of the story.
        assert sum(shares[:-1]) < INPUT_SHOWN


def test_influence_of_a_node_is_what_passes_through_it_once(told):
    graph, story = told
    flow = flow_to(graph)
    for node in story.nodes:
        if len(node.members) == 1:
            assert node.influence == pytest.approx(float(flow.through[node.members[0]]), abs=1e-12)
        elif node.kind != "error":
            most = max(float(flow.through[member]) for member in node.members)
            assert most - 1e-9 <= node.influence <= float(flow.through[list(node.members)].sum()) + 1e-9


def test_everything_that_is_not_shown_is_counted(told):
    graph, story = told
    shown = [m for node in story.nodes if node.kind in ("feature", "group", "rest") for m in node.members]
    assert len(shown) + story.left_out == int((story.flow.through[graph.layout.features] > 0).sum())
    said = " ".join(story.sentences())
    assert "is unexplained" in said
    assert f"{story.cut_edges:,} weaker edge" in said


def test_the_same_graph_always_tells_the_same_story_and_given_groups_are_used(told):
    graph, story = told
    assert story_of(graph).nodes == story.nodes
    features = [node for node in graph.kept_nodes() if node < graph.layout.features.stop]
    positions = [graph.place_of(node)[1] for node in features]
    own = [node for node, p in zip(features, positions, strict=True) if p == positions[-1]][:3]
    if len(own) > 1:
        names = {node.name: node.members for node in story_of(graph, groups=[("mine", own)]).nodes}
        assert "mine" not in names or set(names["mine"]) <= set(own)


def test_groups_never_span_positions_or_many_layers():
    for graph in GRAPHS:
        for _, nodes in suggest_supernodes(graph, min_similarity=0.0):
            places = [graph.place_of(node) for node in nodes]
            assert len({position for _, position in places}) == 1
            assert max(layer for layer, _ in places) - min(layer for layer, _ in places) < most_layers(graph.n_layers)


def card(promoted=(), peaks=()):
    contexts = [{"tokens": ["a", peak, "b"], "activations": [0.0, 2.0, 0.5]} for peak in peaks]
    return {"promoted": [[token, 1.0] for token in promoted], "contexts": contexts}


def named(graph, nodes, cards):
    by_key = {graph.feature_key(node): card for node, card in zip(nodes, cards, strict=True)}
    return group_name(graph, nodes, dict.fromkeys(nodes, 0.5), by_key)


def unlabelled():
    graph = random_graph(L=6, per_layer=8)
    graph.feature_labels = [""] * graph.layout.n_features
    return graph


def nodes_in(graph, late):
    layer = graph.n_layers - 1 if late else 0
    return [node for node in range(graph.layout.n_features) if graph.place_of(node)[0] == layer][:2]


def test_late_groups_are_named_by_what_they_promote_early_ones_by_what_they_fire_on():
    graph = unlabelled()
    cards = [card([" Rome", " Paris"], [" Eiffel"]), card([" Paris", " Oslo"], [" Tower"])]
    assert named(graph, nodes_in(graph, late=True), cards) == "→ Paris, Rome, Oslo"
    assert named(graph, nodes_in(graph, late=False), cards) == "~ Eiffel, Tower"
    # What promotes nothing is named by what it fires on, in late layers too.
    cards = [card([], [" Eiffel"]), card([], [" Eiffel", " Eiffel", " Tower"])]
    assert named(graph, nodes_in(graph, late=True), cards) == "~ Eiffel"


def test_what_only_means_its_own_token_says_so_and_given_labels_come_first():
    graph = unlabelled()
    nodes = nodes_in(graph, late=False)
    position = graph.place_of(nodes[0])[1]
    graph.token_strings[position] = " of"
    assert named(graph, nodes[:1], [card([], [" of", "of", " Of"])]) == "token: of"
    graph.feature_labels[nodes[0]] = "Texas"
    assert named(graph, nodes[:1], [card([], [" of", "of", " Of"])]) == "Texas"
    assert named(unlabelled(), [0, 1], [{}, {}]) == ""
