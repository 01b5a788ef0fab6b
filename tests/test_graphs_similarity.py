"""Each kind of evidence for two features being alike counts where it is known, and only there."""

import numpy as np
import pytest
from graph_samples import case, random_graph

from crosstrace.graphs.similarity import CONTEXTS, DIRECTIONS, NEIGHBOURS, PLACE, WORDS, similarity_of

GRAPH = random_graph(1, per_layer=6, L=3, P=2, feature_labels=[])
FEATURES = list(range(6))
KEYS = [GRAPH.feature_of(node)[::2] for node in FEATURES]
PLAIN = NEIGHBOURS + PLACE


def card(**values):
    return {KEYS[0]: values, KEYS[1]: values, KEYS[2]: {}}


def with_evidence(weight, **arguments):
    """Similarity of the first two features, and what it must be where they agree wholly in one more kind of evidence."""
    alone, found = similarity_of(GRAPH, FEATURES), similarity_of(GRAPH, FEATURES, **arguments)
    return found, alone, (PLAIN * alone[0, 1] + weight) / (PLAIN + weight)


def test_contexts_count_where_both_have_some():
    contexts = [{"tokens": ["in", " Texas"], "activations": [0.0, 2.0]}]
    found, alone, expected = with_evidence(CONTEXTS, cards=card(contexts=contexts))
    assert found[0, 1] == pytest.approx(expected)
    assert np.array_equal(found[2:, :], alone[2:, :])


def test_contexts_that_share_no_token_make_less_alike():
    cards = {key: {"contexts": [{"tokens": [f"t{i}"], "activations": [1.0]}]} for i, key in enumerate(KEYS[:2])}
    alone, found = similarity_of(GRAPH, FEATURES), similarity_of(GRAPH, FEATURES, cards)
    assert found[0, 1] == pytest.approx(PLAIN * alone[0, 1] / (PLAIN + CONTEXTS))


def test_promoted_tokens_are_words_and_one_without_words_shares_none():
    found, alone, expected = with_evidence(WORDS, cards=card(promoted=[[" Austin", 2.0], " Texas"]))
    assert found[0, 1] == pytest.approx(expected)
    assert found[0, 2] == pytest.approx(PLAIN * alone[0, 2] / (PLAIN + WORDS))
    assert found[2, 3] == alone[2, 3]


def test_directions_count_by_their_cosine():
    directions = {KEYS[0]: [3.0, 0.0], KEYS[1]: np.array([1.0, 0.0]), KEYS[2]: [-1.0, 0.0]}
    found, alone, expected = with_evidence(DIRECTIONS, directions=directions)
    assert found[0, 1] == pytest.approx(expected)
    assert found[0, 2] == pytest.approx(PLAIN * alone[0, 2] / (PLAIN + DIRECTIONS))
    assert np.array_equal(found[3:, :], alone[3:, :])


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
