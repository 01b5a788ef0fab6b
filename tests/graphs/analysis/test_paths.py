"""The strongest paths, against enumerating all of them."""

import itertools

import networkx
import numpy as np
import pytest
from graph_samples import case, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstrace.graphs import prune, strongest_paths, trivial_share


def all_paths(graph, target, through_features):
    """Every path from a token, by networkx; strengths from the raw graph's rows."""
    A = np.abs(graph.adjacency.numpy().astype(np.float64))
    A /= np.where(A.sum(1, keepdims=True) > 0, A.sum(1, keepdims=True), 1)
    digraph = networkx.DiGraph()
    digraph.add_nodes_from(range(graph.n))
    digraph.add_edges_from((int(s), int(t)) for t, s in zip(*graph.kept_edges().nonzero(), strict=True))
    found = {}
    for token in range(graph.n)[graph.layout.tokens]:
        for path in networkx.all_simple_paths(digraph, token, target):
            found[tuple(path)] = np.prod([A[b, a] for a, b in itertools.pairwise(path)])
    longer = {path: strength for path, strength in found.items() if len(path) > 2}
    return longer if through_features and longer else found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 7), through_features=st.booleans(), pruned=st.booleans(),
    which=st.sampled_from(["first logit", "last logit", "feature"]),
)  # fmt: skip
def test_paths_are_the_strongest_of_all(seed, n, through_features, pruned, which):
    graph = random_graph(seed, L=3, P=2, per_layer=4, k=2, density=0.5)
    graph = prune(graph, 0.9, 0.9) if pruned else graph
    target = {"first logit": None, "last logit": graph.n - 1, "feature": graph.layout.n_features - 1}[which]
    found = strongest_paths(graph, target, n, through_features)
    node = graph.layout.logit_index(0) if target is None else target
    expected = all_paths(graph, node, through_features)
    assert len(found) == min(n, len(expected))
    assert len({tuple(path.nodes) for path in found}) == len(found)
    strongest = sorted(expected.values(), reverse=True)[: len(found)]
    assert [path.strength for path in found] == pytest.approx(strongest)
    for path in found:
        assert path.strength == pytest.approx(expected[tuple(path.nodes)])
        edges = [graph.edges[b, a] for a, b in itertools.pairwise(path.nodes)]
        assert path.sign == np.sign(np.prod(np.sign(edges)))
        assert graph.layout.kind(path.nodes[0]) == "token"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 7), least=st.integers(0, 3), some=st.booleans())
def test_paths_through_enough_features_are_the_strongest_of_those(seed, n, least, some):
    graph = random_graph(seed, L=3, P=2, per_layer=4, k=2, density=0.5)
    counted = set(range(0, graph.layout.n_features, 2)) if some else set(range(graph.layout.n_features))
    found = strongest_paths(graph, n=n, min_features=least, counted=counted if some else None)
    every = all_paths(graph, graph.layout.logit_index(0), through_features=True)
    expected = {path: strength for path, strength in every.items() if len(counted & set(path[:-1])) >= least}
    assert len(found) == min(n, len(expected))
    assert len({tuple(path.nodes) for path in found}) == len(found)
    assert [path.strength for path in found] == pytest.approx(sorted(expected.values(), reverse=True)[: len(found)])
    assert all(path.strength == pytest.approx(expected[tuple(path.nodes)]) for path in found)


def test_a_negative_number_of_features_is_refused():
    with pytest.raises(ValueError, match="min_features must be 0 or more, not -1"):
        strongest_paths(random_graph(0), min_features=-1)


def test_pruning_does_not_change_a_paths_strength():
    graph, _ = case("clt_affine")
    strength = {tuple(path.nodes): path.strength for path in strongest_paths(graph, n=50)}
    kept = strongest_paths(prune(graph, 0.95, 0.99), n=3)
    assert [strength[tuple(path.nodes)] for path in kept] == [path.strength for path in kept]


def test_a_direct_edge_is_taken_if_there_is_no_other_path():
    graph = random_graph(per_layer=0, density=1.0)
    for through_features in (True, False):
        paths = strongest_paths(graph, through_features=through_features)
        assert {len(path.nodes) for path in paths} == {2}
    assert strongest_paths(random_graph(density=0.0)) == []


def test_wrong_targets_are_refused():
    graph = random_graph()
    with pytest.raises(ValueError, match="'token tok0'"):
        strongest_paths(graph, graph.layout.token_index(0))
    with pytest.raises(ValueError, match="n must be at least 1"):
        strongest_paths(graph, n=0)
    with pytest.raises(ValueError, match="no target"):
        strongest_paths(random_graph(k=0))


@pytest.mark.parametrize("seed", range(3))
def test_telling_paths_have_two_features_or_one_elsewhere_and_the_rest_is_summed(seed):
    graph = random_graph(seed, L=4, P=4, per_layer=5, k=1)
    target = graph.layout.logit_index(0)
    last = graph.place_of(target)[1]

    def tells(path):
        features = [node for node in path.nodes if graph.layout.kind(node) == "feature"]
        return len(features) >= 2 or any(graph.place_of(node)[1] != last for node in features)

    every = strongest_paths(graph, n=10_000, through_features=False)
    telling = strongest_paths(graph, n=10_000, telling=True)
    assert [path.nodes for path in telling] == [path.nodes for path in every if tells(path)]
    assert trivial_share(graph) == pytest.approx(sum(path.strength for path in every if not tells(path)), rel=1e-5)


def test_paths_through_chosen_features_go_through_one_of_them():
    graph = random_graph(1, L=4, P=4, per_layer=5, k=1)
    chosen = {3, 7}
    every = strongest_paths(graph, n=10_000, through_features=False)
    found = strongest_paths(graph, n=10_000, through=chosen)
    assert [path.nodes for path in found] == [path.nodes for path in every if chosen & set(path.nodes)]
    assert found
