"""Suggested groups: sensible on a graph where they are known, the same every time, never overlapping."""

import pytest
import scipy.sparse
import torch
from graph_samples import CASE_NAMES, HOSTILE, case, random_graph

from crosstrace.graphs import NodeLayout, prune, suggest_supernodes


def two_circuits(labels):
    """Features 0-2 read token 0 and feed target 0, features 3-5 token 1 and target 1; all in different layers."""
    features = torch.tensor([[i, 0 if i < 3 else 1, 10 + i] for i in range(6)])
    layout = NodeLayout(6, 6, 2, 2)
    edges = torch.zeros(layout.n, layout.n)
    for i in range(6):
        circuit = int(i >= 3)
        edges[i, layout.token_index(circuit)] = 1.0
        edges[layout.logit_index(circuit), i] = 2.0
    return prune(
        random_graph(
            L=6,
            P=2,
            k=2,
            active_features=features,
            activations=torch.ones(6),
            selected_features=torch.arange(6),
            edges=scipy.sparse.csr_array(edges.numpy()),
            target_values=torch.zeros(layout.n),
            feature_labels=labels,
            **dict.fromkeys(("unattributed", "omitted", "omitted_magnitude"), torch.zeros(layout.n)),
        ),
        1.0,
        1.0,
    )


def test_shared_words_make_groups_and_their_names():
    graph = two_circuits(["Texas", "Texas", "in Texas", "say a capital", "say a capital", "capital"])
    assert sorted(suggest_supernodes(graph)) == [("Texas", [0, 1, 2]), ("say a capital", [3, 4, 5])]


def test_without_labels_shared_neighbours_make_groups():
    assert [nodes for _, nodes in sorted(suggest_supernodes(two_circuits([""] * 6)))] == [[0, 1, 2], [3, 4, 5]]
    assert sorted(name for name, _ in suggest_supernodes(two_circuits([""] * 6))) == ["L0/10 +2", "L3/13 +2"]


def test_different_words_keep_the_same_neighbours_apart():
    assert suggest_supernodes(two_circuits(["one", "two", "three", "four", "five", "six"])) == []


def test_promoted_tokens_count_as_words():
    graph = two_circuits([""] * 6)
    promoted = {(0, 10): [" Austin"], (1, 11): [[" Austin", 1.5]], (2, 12): [" Paris"]}
    cards = {key: {"promoted": tokens} for key, tokens in promoted.items()}
    # What they connect to is the same for all three: that is enough, whatever else they promote.
    assert any({0, 1} <= set(nodes) for _, nodes in suggest_supernodes(graph, cards))
    apart = two_circuits(["one", "two", "three", "", "", ""])
    assert all(0 not in nodes for _, nodes in suggest_supernodes(apart))
    assert any({0, 1} <= set(nodes) for _, nodes in suggest_supernodes(apart, cards))


def test_a_feature_with_words_is_not_grouped_with_one_without():
    groups = suggest_supernodes(two_circuits(["Texas", "", "", "", "", ""]))
    assert all(0 not in nodes for _, nodes in groups)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_groups_are_the_same_each_time_do_not_overlap_and_hold_kept_features(name):
    pruned = prune(case(name)[0])
    groups = suggest_supernodes(pruned)
    assert groups == suggest_supernodes(pruned) == suggest_supernodes(case(name)[0])
    members = [node for _, nodes in groups for node in nodes]
    assert len(members) == len(set(members))
    assert set(members) <= set(pruned.kept_nodes())
    assert all(pruned.layout.kind(node) == "feature" for node in members)
    assert len({label for label, _ in groups}) == len(groups)
    assert all(len(nodes) > 1 for _, nodes in groups)


def test_higher_similarity_makes_groups_no_larger():
    pruned = prune(random_graph(per_layer=20))
    sizes = [sum(len(nodes) for _, nodes in suggest_supernodes(pruned, min_similarity=s)) for s in (0.2, 0.5, 0.9)]
    assert sizes == sorted(sizes, reverse=True)


def test_hostile_labels_and_graphs_without_features():
    graph = random_graph(per_layer=10, L=4)
    labels = (HOSTILE * 3)[: len(graph.selected_features)]
    suggest_supernodes(prune(random_graph(per_layer=10, L=4, feature_labels=labels)))
    assert suggest_supernodes(prune(random_graph(per_layer=0))) == []


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_similarity_outside_its_range_is_refused(wrong):
    with pytest.raises(ValueError, match="min_similarity must be between 0 and 1"):
        suggest_supernodes(prune(random_graph()), min_similarity=wrong)
