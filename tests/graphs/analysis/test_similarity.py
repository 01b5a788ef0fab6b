"""Each kind of evidence for two features being alike counts where it is known, and only there."""

import dataclasses

import numpy as np
import pytest
from graph_samples import case, random_graph

from crosstrace.graphs.analysis.similarity import MEANING, NEIGHBOURS, PLACE, similarity_of

GRAPH = random_graph(1, per_layer=6, L=3, P=2, feature_labels=[])
FEATURES = list(range(6))
KEYS = [GRAPH.feature_key(node) for node in FEATURES]
PLAIN = NEIGHBOURS + PLACE


def expected(meaning, first=0, second=1):
    """Similarity of two features of this graph when all that is known of their meaning says `meaning`."""
    return (PLAIN * similarity_of(GRAPH, FEATURES)[first, second] + MEANING * meaning) / (PLAIN + MEANING)


def test_contexts_count_where_both_have_some():
    texas, paris = (
        {"contexts": [{"tokens": ["in", name], "activations": [0.0, 2.0]}]} for name in (" Texas", " Paris")
    )
    cards = {KEYS[0]: texas, KEYS[1]: texas, KEYS[2]: paris, KEYS[3]: {}}
    alone, found = similarity_of(GRAPH, FEATURES), similarity_of(GRAPH, FEATURES, cards)
    assert found[0, 1] == pytest.approx(expected(1))
    assert found[0, 2] == pytest.approx(expected(0, 0, 2))  # "in" stands in all of them
    assert np.array_equal(found[3:, :], alone[3:, :])


def test_promoted_tokens_count_where_both_have_some():
    cards = {KEYS[0]: {"promoted": [[" Austin", 2.0], " Texas"]}, KEYS[1]: {"promoted": ["Texas"]}, KEYS[2]: {}}
    alone, found = similarity_of(GRAPH, FEATURES), similarity_of(GRAPH, FEATURES, cards)
    assert found[0, 1] == pytest.approx(expected(0.5))
    assert np.array_equal(found[2:, :], alone[2:, :])


def test_directions_count_by_their_cosine():
    directions = {KEYS[0]: [3.0, 0.0], KEYS[1]: np.array([1.0, 0.0]), KEYS[2]: [-1.0, 0.0]}
    alone, found = similarity_of(GRAPH, FEATURES), similarity_of(GRAPH, FEATURES, directions=directions)
    assert found[0, 1] == pytest.approx(expected(1))
    assert found[0, 2] == pytest.approx(expected(0, 0, 2))
    assert np.array_equal(found[3:, :], alone[3:, :])


def test_the_kind_that_says_most_counts():
    cards = {KEYS[0]: {"promoted": ["Texas"]}, KEYS[1]: {"promoted": ["Paris"]}}
    found = similarity_of(GRAPH, FEATURES, cards, {KEYS[0]: [1.0, 1.0], KEYS[1]: [1.0, 0.0]})
    assert found[0, 1] == pytest.approx(expected(np.sqrt(0.5)))


def test_a_label_and_none_share_nothing():
    graph = dataclasses.replace(GRAPH, feature_labels=["Texas", *[""] * (len(GRAPH.feature_labels) - 1)])
    alone, found = similarity_of(GRAPH, FEATURES), similarity_of(graph, FEATURES)
    assert found[0, 1] == pytest.approx(expected(0))
    assert np.array_equal(found[1:, 1:], alone[1:, 1:])


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_between_0_and_1_and_the_order_does_not_matter(seed):
    graph = random_graph(seed) if seed else case("clt_affine")[0]
    features = list(range(min(20, len(graph.selected_features))))
    found = similarity_of(graph, features)
    assert np.array_equal(found, found.T)
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (np.diag(found) == 1).all()
    order = np.random.default_rng(seed).permutation(len(features))
    assert np.array_equal(similarity_of(graph, [features[i] for i in order]), found[order][:, order])


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({KEYS[0]: [1.0], KEYS[1]: [1.0, 2.0]}, "different lengths: 1 and 2"),
        ({KEYS[0]: [float("nan")]}, "a direction holds NaN or infinity"),
    ],
)
def test_wrong_directions(directions, message):
    with pytest.raises(ValueError, match=message):
        similarity_of(GRAPH, FEATURES, directions=directions)
