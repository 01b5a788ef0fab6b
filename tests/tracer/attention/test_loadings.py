"""Head loadings: the cases' answers, an independent loop that drops a head, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASE_NAMES, load_case
from places import CASES
from reference import WithoutHead, relative_error
from safetensors.torch import load_file

from crosstrace.graphs import prune
from crosstrace.replacement_model import ReplacementModel, demo
from crosstrace.tracer import TracedPrompt, head_loadings, trace
from crosstrace.tracer.attention import loadings as module
from crosstrace.tracer.attention.loadings import check_edges, loadings_of

EXACT = 1e-5


@pytest.fixture(scope="module", params=CASE_NAMES)
def traced(request):
    case = load_case(request.param)
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    return case, model, trace(model, case.input_ids), load_file(CASES / case.name / "attention.safetensors")


def weights_of(graph, edges: torch.Tensor) -> torch.Tensor:
    return graph.adjacency[edges[:, 0], edges[:, 1]]


def test_case_agrees_with_its_answers(traced):
    _, model, graph, expected = traced
    found = head_loadings(model, graph, expected["edges"])
    assert torch.equal(found.edges, expected["edges"])
    assert relative_error(found.heads, expected["heads"]) < EXACT
    assert relative_error(found.bypass, expected["bypass"]) < EXACT
    whole = found.heads.sum(-1) + found.bypass
    weights = weights_of(graph, found.edges)
    for layer in range(graph.n_layers):
        assert relative_error(whole[:, layer], weights) < EXACT


def test_a_loading_is_what_an_edge_loses_without_the_head(traced):
    case, model, graph, expected = traced
    reference = WithoutHead(case.model, model.transcoders.reader, case.input_ids, torch.float32)
    some = expected["edges"][:: max(1, len(expected["edges"]) // 150)]
    found = head_loadings(model, graph, some)
    sources = sorted({int(source) for source in some[:, 1]})
    column = torch.tensor([sources.index(int(source)) for source in some[:, 1]])
    tokens = graph.logit_tokens.tolist()
    whole = reference.columns(sources, tokens)[some[:, 0], column]
    assert relative_error(weights_of(graph, some), whole) < EXACT
    lost = torch.zeros(found.heads.shape, dtype=torch.float64)
    for layer in range(graph.n_layers):
        for head in range(found.heads.shape[2]):
            reference.dropped = (layer, head)
            lost[:, layer, head] = whole - reference.columns(sources, tokens)[some[:, 0], column]
    assert relative_error(found.heads, lost) < EXACT


def test_no_head_of_a_layer_outside_of_an_edge_carries_it(traced):
    _, model, graph, expected = traced
    found = head_loadings(model, graph, expected["edges"])
    prompt = TracedPrompt(model, graph)
    targets, sources = found.edges.T.numpy()
    for layer in range(graph.n_layers):
        outside = (prompt.node_layers[sources] >= layer) | (prompt.node_layers[targets] < layer)
        assert not found.heads[torch.from_numpy(outside), layer].any()


def test_blocks_and_batches_change_nothing(traced, monkeypatch):
    _, model, graph, expected = traced
    edges = expected["edges"][::3]
    whole = head_loadings(model, graph, edges)
    monkeypatch.setattr(module, "_LARGEST_BYTES", 100_000)
    monkeypatch.setattr(module, "batch_size_for", lambda *_: 7)
    in_parts = head_loadings(model, graph, edges)
    torch.testing.assert_close(in_parts.heads, whole.heads, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_parts.bypass, whole.bypass, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loadings_add_up_in_every_dtype(dtype):
    case = load_case("clt_plain_gqa")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu", dtype=dtype)
    graph = trace(model, case.input_ids, max_logits=2)
    edges = np.argwhere(graph.edges.toarray() != 0)[::41]
    reference = WithoutHead(case.model, model.transcoders.reader, case.input_ids, dtype)
    found = head_loadings(model, graph, edges)
    assert relative_error(found.heads[:, 2].sum(-1) + found.bypass[:, 2], weights_of(graph, found.edges)) < EXACT
    layer, head = 3, 1
    index = {key: i for i, key in enumerate(reference.active)}
    own = torch.tensor([index[tuple(key)] for key in graph.active_features.tolist()])
    nodes = torch.cat([own, torch.arange(len(own), graph.n)])
    sources = sorted({int(source) for source in nodes[found.edges[:, 1]]})
    column = torch.tensor([sources.index(int(source)) for source in nodes[found.edges[:, 1]]])
    rows = nodes[found.edges[:, 0]]
    tokens = graph.logit_tokens.tolist()
    whole = reference.columns(sources, tokens)[rows, column]
    reference.dropped = (layer, head)
    lost = whole - reference.columns(sources, tokens)[rows, column]
    assert relative_error(found.heads[:, layer, head], lost) < EXACT


def test_the_flow_of_edges_is_their_loadings_by_position(traced):
    _, model, graph, expected = traced
    prompt = TracedPrompt(model, graph)
    pairs = check_edges(graph, expected["edges"][::5])
    weights = np.random.default_rng(0).normal(size=len(pairs))
    n_heads = model.description.n_heads
    flow = torch.zeros(graph.n_layers, n_heads, len(graph.tokens), len(graph.tokens))
    found = loadings_of(prompt, pairs, weights, flow)
    expected_lh = torch.einsum("e,elh->lh", torch.from_numpy(weights), found.heads.double())
    assert relative_error(flow.sum((2, 3)), expected_lh) < EXACT
    assert not flow.triu(1).any()  # no query sees a later key
    window = model.description.window(0)
    assert window is None or not flow[0].tril(-window).any()


def test_contrasts_and_features_as_targets_are_found_again():
    model = ReplacementModel.demo()
    prompt = demo.DALLAS_PROMPT
    graph = trace(model, prompt, targets=['" Austin" - " Dallas"', '" Austin"', "L2/16@7"])
    rows = [graph.layout.logit_index(i) for i in range(3)]
    edges = [(row, source) for row in rows for source in graph.edges[[row]].indices[::5]]
    found = head_loadings(model, graph, edges)
    assert relative_error(found.weights, weights_of(graph, found.edges)) < EXACT


def test_a_capped_and_pruned_graph_has_the_same_loadings():
    model = ReplacementModel.demo()
    whole = trace(model, demo.DALLAS_PROMPT)
    capped = prune(trace(model, demo.DALLAS_PROMPT, max_feature_nodes=20))
    edges = np.argwhere(capped.kept_edges().toarray() != 0)
    of_node = {tuple(whole.feature_of(i)): i for i in range(whole.layout.n_features)}
    n, m = capped.layout.n_features, whole.layout.n_features
    same = np.array([[of_node[capped.feature_of(x)] if x < n else x - n + m for x in pair] for pair in edges.tolist()])
    a, b = head_loadings(model, capped, edges), head_loadings(model, whole, same)
    torch.testing.assert_close(a.heads, b.heads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ([(0, 0)], "there is no edge from"),
        ([(0, 10_000)], "name node 10000; the graph has nodes 0 to"),
        ([(-1, 0)], "name node -1"),
        ([(0.5, 1.0)], "pairs .target node, source node. of whole numbers"),
        ([0, 1, 2], "pairs .target node, source node. of whole numbers"),
    ],
)
def test_edges_that_are_not_there_are_named(edges, said):
    model = ReplacementModel.demo()
    graph = trace(model, demo.DALLAS_PROMPT)
    with pytest.raises(ValueError, match=said) as caught:
        head_loadings(model, graph, edges)
    assert "\n" not in str(caught.value)


def test_no_edges_have_no_loadings():
    model = ReplacementModel.demo()
    found = head_loadings(model, trace(model, demo.DALLAS_PROMPT), [])
    assert found.heads.shape == (0, 6, model.description.n_heads)


def test_a_graph_that_is_not_of_the_model_is_refused():
    model = ReplacementModel.demo()
    graph = trace(model, demo.DALLAS_PROMPT)
    graph.edges.data *= 2
    target = graph.layout.logit_index(0)
    with pytest.raises(ValueError, match="the graph is not of this model as it is now"):
        head_loadings(model, graph, [(target, int(graph.edges[[target]].indices[0]))])


def test_an_edge_that_is_tiny_beside_its_row_is_no_reason_to_refuse_a_graph():
    model = ReplacementModel.demo()
    graph = trace(model, demo.DALLAS_PROMPT)
    edges = graph.edges.tocoo()
    smallest = np.argsort(np.abs(edges.data))[:20]
    pairs = [(int(edges.row[i]), int(edges.col[i])) for i in smallest[::5]]
    for pair in pairs:  # alone, so that no larger edge of its row is asked for
        found = head_loadings(model, graph, [pair])
        row = float(np.abs(graph.edges[[pair[0]]].data).max())
        assert float(found.weights[0]) == pytest.approx(float(graph.edges[pair[0], pair[1]]), abs=1e-5 * row)
