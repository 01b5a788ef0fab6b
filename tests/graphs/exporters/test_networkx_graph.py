"""The networkx export: every node and edge that is kept, with plain values."""

import networkx
import pytest
import torch
from graph_samples import case, random_graph

from crosstrace.graphs import prune, to_networkx


@pytest.mark.parametrize("pruned", [False, True])
def test_nodes_and_edges_are_those_kept(pruned):
    graph = case("clt_plain_gqa")[0]
    graph = prune(graph, 0.5, 0.9) if pruned else graph
    digraph = to_networkx(graph)
    assert sorted(digraph) == graph.kept_nodes()
    edges = graph.kept_edges().tocoo()
    expected = {(int(s), int(t)): float(w) for t, s, w in zip(edges.row, edges.col, edges.data, strict=True)}
    assert {(s, t): w for s, t, w in digraph.edges(data="weight")} == expected
    assert networkx.is_directed_acyclic_graph(digraph)


def test_attributes():
    graph = random_graph()
    digraph, layout = to_networkx(graph), graph.layout
    layer, position, feature = graph.feature_of(1)
    expected = {
        "kind": "feature", "layer": layer, "position": position, "feature": feature, "words": "label 1",
        "label": f"label 1 (L{layer}/{feature} @ tok{position})", "token": f" tok{position}",
        "activation": float(graph.activations[1]), "node_id": f"{layer}_{feature}_{position}",
    }  # fmt: skip
    assert expected.items() <= digraph.nodes[1].items()
    assert digraph.nodes[layout.error_index(2, 1)]["kind"] == "error"
    assert digraph.nodes[layout.token_index(3)]["token_id"] == 13
    logit = digraph.nodes[layout.logit_index(0)]
    assert (logit["token"], logit["token_id"], logit["layer"]) == (" out0", 100, 4)
    assert logit["probability"] == float(graph.logit_probabilities[0])
    values = [value for _, data in digraph.nodes(data=True) for value in data.values()]
    assert {type(value) for value in values} == {str, int, float}
    assert digraph.graph["prompt"] == graph.prompt
    assert "".join(networkx.generate_graphml(digraph)).count("<node ") == graph.n


def test_a_raw_graph_has_the_influence_that_pruning_gives():
    graph = random_graph(2)
    raw = torch.tensor([value for _, value in to_networkx(graph).nodes(data="influence")], dtype=torch.float64)
    assert torch.equal(raw, prune(graph).influence)
