"""Names of nodes: unique, and read back to the features that they name."""

from __future__ import annotations

import pytest
from graph_samples import random_graph

from crosstrace.graphs.viewer_ids import feature_of_id, node_ids


def test_features_are_read_back_from_their_ids():
    graph = random_graph()
    ids = node_ids(graph)
    assert len(set(ids)) == graph.n
    for node, name in enumerate(ids):
        if graph.layout.kind(node) != "feature":
            assert feature_of_id(name, graph.n_layers) is None
        else:
            layer, position, feature = graph.feature_of(node)
            assert feature_of_id(name, graph.n_layers) == (layer, feature, position)


@pytest.mark.parametrize("name", ["", "1_2", "1_2_3_4", "a_2_3", "1_-1_3", "1_2_x"])
def test_what_is_no_feature_s_id(name):
    assert feature_of_id(name, 6) is None
