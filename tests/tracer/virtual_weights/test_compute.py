"""Virtual weights: as whole paths in float64 give them, as graphs have them, and ranked, in bounded memory and not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASE_NAMES, load_case
from dense_weights import dense_statistics, dense_weights

from crosstrace.replacement_model import ReplacementModel, Texts
from crosstrace.replacement_model.demo import load_facts
from crosstrace.replacement_model.demo.corpus import sentences
from crosstrace.replacement_model.readouts.norm_scales import NormScales
from crosstrace.tracer import trace
from crosstrace.tracer.samples.build import build_sample
from crosstrace.tracer.virtual_weights import compute
from crosstrace.tracer.virtual_weights.compute import global_weights
from crosstrace.tracer.virtual_weights.paths import LinearPaths


@pytest.fixture(scope="module", params=CASE_NAMES)
def model(request) -> ReplacementModel:
    case = load_case(request.param)
    return ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")


@pytest.fixture(scope="module")
def demo() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [sentence.text for sentence in sentences(load_facts())][::151]


@pytest.fixture(scope="module")
def sample(demo, texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "sample.safetensors"
    return build_sample(demo, Texts(texts), path, progress=False)


def some_scales(model: ReplacementModel) -> NormScales:
    generator = torch.Generator().manual_seed(5)
    return NormScales(torch.rand(model.description.n_layers, 3, generator=generator) + 0.3)


def as_matrix(weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides as dense matrices [target, source], of all features; 0 where there is no link."""
    size = sum(weights.n_features)
    sides = []
    for links in (weights.inputs, weights.outputs):
        there = links.others_nk >= 0
        found = torch.zeros(size, size, dtype=torch.float64)
        rows = torch.arange(size)[:, None].expand_as(there)[there]
        found[rows, links.others_nk[there]] = links.weights_nk[there].double()
        sides.append(found)
    return sides[0], sides[1].T


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("memory", "tile"),
    [(None, compute._TILE_BYTES), (None, 1 << 14), ("1GB", compute._TILE_BYTES)],
    ids=["mapped", "many-tiles", "decoders-kept"],
)
@pytest.mark.parametrize("head", [None, (1, 0), (2, 1)], ids=["residual", "head-1.0", "head-2.1"])
def test_all_weights_are_those_of_whole_paths_in_float64(request, model, head, memory, tile, monkeypatch):
    if memory:
        case = load_case(request.node.callspec.params["model"])
        model = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu", memory_budget=memory)
        assert model.transcoders.keeps_decoders
    monkeypatch.setattr(compute, "_TILE_BYTES", tile)
    scales = some_scales(model)
    expected = dense_weights(model, scales.inverse_rms_l3, head)
    everything = sum(model.transcoders.n_features.values())
    found = global_weights(model, None, scales, top=everything, heads=[] if head is None else [head])
    assert expected.norm() > 0
    for side in as_matrix(found):
        assert relative(side, expected) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("head", [None, (1, 0)], ids=["residual", "head-1.0"])
def test_a_gpu_gives_the_same(request, model, head):
    case = load_case(request.node.callspec.params["model"])
    on_gpu = ReplacementModel.from_pretrained(case.model, case.transcoders, "cuda")
    scales = some_scales(model)
    everything = sum(model.transcoders.n_features.values())
    found = global_weights(on_gpu, None, scales, top=everything, heads=[] if head is None else [head])
    for side in as_matrix(found):
        assert relative(side, dense_weights(model, scales.inverse_rms_l3, head)) < 1e-5


def test_chosen_features_get_what_all_features_get_and_in_the_order_they_are_named(model):
    scales = some_scales(model)
    last = model.description.n_layers - 1
    chosen = [(last, 2), (0, 3), (1, 0), (0, 1)]
    every = global_weights(model, None, scales, top=4)
    found = global_weights(model, chosen, scales, top=4)
    assert found.features == chosen
    for key in chosen:
        for side in ("strongest_inputs", "strongest_outputs"):
            mine, theirs = getattr(found, side)(key), getattr(every, side)(key)
            assert [link.feature for link in mine] == [link.feature for link in theirs]
            assert [link.weight for link in mine] == pytest.approx([link.weight for link in theirs], rel=1e-5)
            sizes = [abs(link.weight) for link in mine]
            assert sizes == sorted(sizes, reverse=True)
    assert found.strongest_inputs((0, 3)) == []
    assert found.strongest_outputs((last, 2)) == []


def test_few_features_at_a_time_give_the_same(model, monkeypatch):
    scales = some_scales(model)
    whole = global_weights(model, None, scales, top=3)
    monkeypatch.setattr(compute, "_CHOSEN_SHARE", 1e-9)
    assert torch.allclose(
        global_weights(model, None, scales, top=3).inputs.weights_nk, whole.inputs.weights_nk, rtol=1e-5
    )


def test_with_a_prompts_own_norms_and_attention_they_add_up_to_the_edges_of_its_graph(model):
    """Between neighbouring layers an edge is the residual stream's weight plus each head's times its attention."""
    case = load_case(next(name for name in CASE_NAMES if load_case(name).model.parent.name in str(model.name)))
    local, graph = model.local(case.input_ids), trace(model, case.input_ids)
    adjacency, checked = graph.adjacency, 0
    nodes = {tuple(row): node for node, row in enumerate(graph.active_features[graph.selected_features].tolist())}
    values = graph.activations[graph.selected_features]
    for (layer, q, feature), target in nodes.items():
        for (below, p, other), source in nodes.items():
            if below != layer - 1 or p > q or checked > 25 or not adjacency[target, source]:
                continue
            frozen = local.layers
            scales = torch.ones(len(frozen), 3)
            scales[layer, 0] = frozen[layer].input_norm.inverse_rms_p1[p, 0]
            scales[layer, 1] = frozen[layer].attention_norm.inverse_rms_p1[q, 0]
            scales[layer, 2] = frozen[layer].mlp_norm.inverse_rms_p1[q, 0]
            paths = LinearPaths(model, NormScales(scales))
            encoder_d = model.transcoders.encoder(layer).w_enc_df[:, feature].float() * paths.reading_gain(layer)
            rows = model.transcoders.decoder_rows(below, torch.tensor([other])).float()
            total = 0.0
            for head in [None, *((layer, number) for number in range(model.description.n_heads))]:
                seen = float(p == q) if head is None else float(frozen[layer].attention_hqk[head[1], q, p])
                arrived = dict(paths.push(below, rows, head))[layer]
                total += seen * float(arrived[0] @ encoder_d)
            assert float(values[source]) * total == pytest.approx(float(adjacency[target, source]), rel=2e-4, abs=1e-6)
            checked += 1
    assert checked > 5


def test_expectation_and_co_activation_are_those_of_tracing_every_context(demo, texts, sample):
    _, sums, both = dense_statistics(demo, [demo.tokenize(text).tolist() for text in texts])
    weights = dense_weights(demo, sample.norm_scales().inverse_rms_l3)
    acts = sums.diagonal() > 0
    totals = torch.from_numpy(
        np.concatenate([np.asarray(sample.activations(layer).sum(0)).ravel() for layer in range(6)])
    )
    expected = torch.where(totals[:, None] > 0, sums / totals[:, None].clamp(min=1e-30), 0.0) * weights
    chosen = [(layer, int(feature)) for layer in range(6) for feature in np.argsort(-sample.fired(layer))[:3]]
    firsts = np.cumsum([0, *[512] * 6])
    for by, ranked in (("virtual", weights), ("expected", expected)):
        found = global_weights(demo, chosen, sample=sample, top=10, by=by)
        for key in chosen:
            own = int(firsts[key[0]]) + key[1]
            assert acts[own]
            for links, row in (
                (found.strongest_inputs(key), ranked[own]),
                (found.strongest_outputs(key), ranked[:, own]),
            ):
                others = [int(firsts[link.feature[0]]) + link.feature[1] for link in links]
                best = row.abs().topk(10).values
                assert row[others].abs().tolist() == pytest.approx(best[best > 0].tolist(), rel=1e-4)
                side = both[own] if links and others[0] < own else both[:, own]
                for link, other in zip(links, others, strict=True):
                    target, source = max(own, other), min(own, other)
                    assert link.together == int(side[other])
                    assert link.expected == pytest.approx(float(expected[target, source]), rel=1e-4, abs=1e-9)


def test_interference_is_a_weight_between_features_that_are_often_active_and_never_together(demo, sample):
    often = [(0, int(feature)) for feature in np.argsort(-sample.fired(0))[:5]]
    found = global_weights(demo, often, sample=sample, top=400)
    marks = set()
    for key in often:
        for link in found.strongest_outputs(key):
            fired = min(sample.fired(key[0])[key[1]], sample.fired(link.feature[0])[link.feature[1]])
            wanted = None if fired < compute.FEWEST_FIRED else link.together == 0
            assert link.interference == wanted
            marks.add(link.interference)
    assert marks == {None, True, False}


def test_the_norms_of_a_sample_are_those_of_its_prompts(demo, texts, sample):
    inverse = []
    for text in texts:
        local = demo.local(demo.tokenize(text))
        norms = [
            [layer.input_norm.inverse_rms_p1, layer.attention_norm.inverse_rms_p1, layer.mlp_norm.inverse_rms_p1]
            for layer in local.layers
        ]
        inverse.append(torch.stack([torch.cat(own, dim=1) for own in norms], 1)[demo.description.excluded_first :])
    expected = torch.cat(inverse).double().mean(0)
    assert torch.allclose(sample.norm_scales().inverse_rms_l3.double(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": [(9, 0)]}, "there is no feature L9/0: layers are 0 to 5"),
        ({"features": [(0, 512)]}, "there is no feature L0/512: layer 0 has 0 to 511"),
        ({"heads": [(0, 4)]}, "there is no head 0.4 in crosstrace-demo: it has layers 0 to 5 with heads 0 to 3"),
        ({"by": "size"}, "ranking 'size' is not known; it is one of virtual, expected"),
        ({"by": "expected"}, "ranking by expectation needs a sample"),
        ({"top": 0}, "links kept: 0 is too few"),
        ({"scales": None}, "give a sample of a corpus"),
        ({"scales": NormScales(torch.ones(4, 3))}, r"denominators of shape \(4, 3\); expected \(6, 3\)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(demo, settings, message):
    given = {"features": [(0, 0)], "scales": NormScales(torch.ones(6, 3)), **settings}
    with pytest.raises(ValueError, match=message):
        global_weights(demo, given.pop("features"), given.pop("scales"), **given)


def test_a_sample_of_another_model_is_refused(model, sample):
    with pytest.raises(ValueError, match="was read with other transcoders"):
        global_weights(model, [(0, 0)], sample=sample)


def test_denominators_must_be_positive():
    with pytest.raises(ValueError, match="must be above 0"):
        NormScales(torch.zeros(2, 3))
