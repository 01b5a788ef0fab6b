"""Attention scores by pairs of nodes: the cases' answers, two ways to the same projections, and what ablating does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import CASE_NAMES, load_case
from places import CASES
from reference import relative_error
from safetensors.torch import load_file

from crosstrace.replacement_model import ReplacementModel, demo
from crosstrace.tracer import HeadScores, TracedPrompt, ablation_check, qk_terms, trace
from crosstrace.tracer.attention import projections

EXACT = 1e-5


@pytest.fixture(scope="module", params=CASE_NAMES)
def traced(request):
    case = load_case(request.param)
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    return model, trace(model, case.input_ids), load_file(CASES / case.name / "attention.safetensors")


@pytest.fixture(scope="module")
def dallas():
    model = ReplacementModel.demo()
    return TracedPrompt(model, trace(model, demo.DALLAS_PROMPT))


def test_case_agrees_with_its_answers(traced):
    model, graph, expected = traced
    for where, terms, score in zip(expected["where"].tolist(), expected["terms"], expected["scores"], strict=True):
        found = qk_terms(model, graph, *where)
        assert relative_error(found.terms, terms) < EXACT
        assert found.score == pytest.approx(float(score), abs=EXACT)
        assert float(found.terms.double().sum()) == pytest.approx(found.score, abs=EXACT)


def test_scores_give_the_pattern_of_the_forward_pass(traced):
    model, graph, _ = traced
    prompt = TracedPrompt(model, graph)
    for layer in range(graph.n_layers):
        for head in range(model.description.n_heads):
            scores = HeadScores(prompt, layer, head, len(graph.tokens) - 1)
            torch.testing.assert_close(scores.scores.softmax(0).float(), scores.probabilities, rtol=1e-4, atol=1e-6)


def test_rows_and_sweeps_up_give_the_same_projections(traced):
    model, graph, expected = traced
    layer, head, query, _ = expected["where"][-1].tolist()
    scores = HeadScores(TracedPrompt(model, graph), layer, head, query)
    functionals = [torch.randn(5, model.description.d_model, generator=torch.manual_seed(key)) for key in scores.keys]
    arguments = (scores.traced, layer, list(scores.keys), functionals)
    by_rows, by_sweeps = projections._by_rows(*arguments), projections._by_sweeps_up(*arguments)
    assert relative_error(by_rows, by_sweeps) < EXACT


def test_marginals_pairs_and_groups_are_sums_of_terms(traced):
    model, graph, expected = traced
    found = qk_terms(model, graph, *expected["where"][0].tolist())
    terms = found.terms.double()
    assert relative_error(found.query_marginals, terms.sum(1)) < 1e-4
    assert relative_error(found.key_marginals, terms.sum(0)) < 1e-4
    pairs = found.strongest_pairs(20)
    assert [abs(term) for *_, term in pairs] == sorted((abs(term) for *_, term in pairs), reverse=True)
    assert abs(pairs[-1][2]) == pytest.approx(float(terms.abs().flatten().sort(descending=True).values[19]), rel=1e-4)
    for query, key, term in pairs:
        assert term == pytest.approx(float(terms[query, key]), rel=1e-4, abs=1e-7)
    grouped = found.grouped([[0, 1, 2], [5]])
    assert float(grouped.sum()) == pytest.approx(found.score, abs=EXACT)
    assert float(grouped[0, 1]) == pytest.approx(float(terms[:3, 5].sum()), abs=EXACT)
    with pytest.raises(ValueError, match="node 1 is in two groups"):
        found.grouped([[0, 1], [1]])


def test_a_difference_is_the_difference_of_two_keys_terms(traced):
    model, graph, expected = traced
    layer, head, query, key = expected["where"][0].tolist()
    other = expected["where"][1].tolist()[3]
    scores = HeadScores(TracedPrompt(model, graph), layer, head, query)
    difference = scores.terms(key, rather_than=other)
    assert difference.score == pytest.approx(scores.terms(key).score - scores.terms(other).score, abs=1e-6)
    assert relative_error(difference.terms, scores.terms(key).terms - scores.terms(other).terms) < 1e-4


def test_log_attention_has_every_competing_key_in_it(traced):
    model, graph, expected = traced
    layer, head, query, key = expected["where"][0].tolist()
    scores = HeadScores(TracedPrompt(model, graph), layer, head, query)
    found = scores.log_attention(key)
    of_keys = [scores.terms(one) for one in scores.keys]
    for side in ("query", "key"):
        marginals = torch.stack([getattr(one, f"{side}_marginals") for one in of_keys])
        shares = scores.probabilities.double()
        expected_n = marginals[key - scores.keys.start] - shares @ marginals
        torch.testing.assert_close(getattr(found, f"{side}_side"), expected_n, rtol=1e-4, atol=1e-5)
    assert found.log_probability == pytest.approx(float(scores.probabilities[key - scores.keys.start].log()), abs=1e-5)


def test_ablating_nodes_does_what_the_terms_say_with_norms_frozen(dallas):
    for layer, head, query, key in ((2, 3, 8, 7), (2, 1, 8, 2), (5, 1, 7, 7)):
        scores = HeadScores(dallas, layer, head, query)
        terms = scores.terms(key)
        both = (terms.query_marginals + terms.key_marginals)[:-1]
        for nodes in ([node] for node in both.abs().topk(4).indices.tolist()):
            check = ablation_check(scores, key, nodes)
            # A node's pair with itself is in both marginals, and goes once.
            predicted = -float(both[nodes[0]] - terms.terms[nodes[0], nodes[0]])
            assert check.predicted.score == pytest.approx(predicted, abs=1e-4)
            assert check.measured.score == pytest.approx(check.predicted.score, abs=2e-4)
            assert check.measured.log_probability == pytest.approx(check.predicted.log_probability, abs=2e-4)


def test_the_norms_response_is_the_first_order_of_norms_free(dallas):
    """A change so small that the first order is all of it: in the layer's own norms, those before being frozen."""
    layer, head, query, key = 2, 3, 8, 7
    scores = HeadScores(dallas, layer, head, query)
    terms = scores.terms(key)
    local, size = dallas.local, dallas.local.description
    gemma = dallas.model.model.model.layers[layer]
    attention = gemma.self_attn
    node = int(terms.query_marginals[:-1].abs().argmax())
    stream = local.residuals_lpd[layer].double()
    grown = torch.zeros_like(stream)
    source = next(iter(dallas.sources(torch.tensor([node]).numpy())))
    from crosstrace.replacement_model.local.sources import ascend

    def meet(at, after, stream_psd):
        if at == layer and not after:
            grown.add_(stream_psd[:, 0].double())

    ascend(local.adjoint.record, local.adjoint.folded, [source], slice(0, len(stream)), layer - 1, meet_stream=meet)

    def score(x: torch.Tensor) -> float:
        def norm(x, weight):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + size.rms_norm_eps) * (1 + weight.double())

        u = norm(x, gemma.input_layernorm.weight)
        rows = slice(head * size.head_dim, (head + 1) * size.head_dim)
        kv = head // (size.n_heads // size.n_kv_heads)
        kv_rows = slice(kv * size.head_dim, (kv + 1) * size.head_dim)
        q = norm(u[query] @ attention.q_proj.weight[rows].double().T, attention.q_norm.weight)
        k = norm(u[key] @ attention.k_proj.weight[kv_rows].double().T, attention.k_norm.weight)
        cosines, sines = (part.double() for part in local.layers[layer].rotation)

        def turned(v, at):
            first, second = v.chunk(2)
            return v * cosines[at] + torch.cat([-second, first]) * sines[at]

        return float(turned(q, query) @ turned(k, key)) * size.score_scale

    step = 1e-5
    slope = (score(stream + step * grown) - score(stream - step * grown)) / (2 * step)
    total = terms.query_marginals + terms.key_marginals + terms.query_response + terms.key_response
    assert float(total[node]) == pytest.approx(slope, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((6, 0, 8, 7), "layer 6 does not exist: the model has layers 0 to 5"),
        ((2, 9, 8, 7), "head 9 does not exist: layer 2 has heads 0 to 3"),
        ((2, 3, 9, 7), "query position 9 does not exist: the prompt has positions 0 to 8"),
        ((2, 3, 8, 12), "key position 12 does not exist"),
        ((2, 3, 4, 6), "key 6 comes after query 4"),
        ((0, 1, 8, 1), "key 1 is outside the window of layer 0: query 8 sees the last 4 positions, 5 to 8"),
    ],
)
def test_places_that_are_not_there_are_named(dallas, place, said):
    with pytest.raises(ValueError, match=said) as caught:
        qk_terms(dallas.model, dallas.graph, *place)
    assert "\n" not in str(caught.value)


def test_a_description_without_queries_and_keys_is_refused_in_one_line():
    model = ReplacementModel.demo()
    graph = trace(model, demo.DALLAS_PROMPT)
    paths = dataclasses.replace(model.description.modules, query_norm=None)
    model.sites.description = dataclasses.replace(model.description, modules=paths)
    with pytest.raises(ValueError, match="does not say how its attention scores are made"):
        qk_terms(model, graph, 2, 3, 8, 7)
