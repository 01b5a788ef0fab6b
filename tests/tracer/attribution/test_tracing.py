"""Exactness of traces: cases with known answers, a float64 reference, completeness, and what must not matter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import CASE_NAMES, Case, load_case, rounded_copy, write_circuit_tracer
from reference import LinearModel, relative_error

from crosstrace.graphs import AttributionGraph, graph_scores, prune
from crosstrace.replacement_model import ReplacementModel, open_transcoders
from crosstrace.tracer import Contrast, Direction, Feature, Logit, trace
from crosstrace.tracer.attribution.tracing import ranked_counts

EXACT = 1e-5


def load(case: Case, dtype: torch.dtype | None = None) -> ReplacementModel:
    return ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu", dtype=dtype)


def block_errors(graph: AttributionGraph, expected: torch.Tensor) -> dict[str, float]:
    layout = graph.layout
    blocks = {"features": layout.features, "errors": layout.errors, "tokens": layout.tokens}
    return {name: relative_error(graph.adjacency[:, part], expected[:, part]) for name, part in blocks.items()}


@pytest.fixture(scope="module", params=CASE_NAMES)
def traced(request: pytest.FixtureRequest) -> tuple[Case, ReplacementModel, AttributionGraph]:
    case = load_case(request.param)
    model = load(case)
    return case, model, trace(model, case.input_ids)


def test_case_agrees_with_its_answers(traced):
    case, _, graph = traced
    expected = case.expected
    assert torch.equal(graph.active_features, expected["active_features"])
    torch.testing.assert_close(graph.activations.double(), expected["activation_values"], rtol=1e-5, atol=1e-5)
    assert torch.equal(graph.logit_tokens, expected["logit_tokens"])
    torch.testing.assert_close(
        graph.logit_probabilities.double(), expected["logit_probabilities"], rtol=1e-5, atol=1e-7
    )
    errors = block_errors(graph, expected["adjacency"])
    assert max(errors.values()) < EXACT, errors
    torch.testing.assert_close(torch.tensor(graph_scores(graph)).double(), expected["scores"], rtol=1e-5, atol=0)
    for node, edge in ((0.8, 0.98), (0.5, 0.9), (0.95, 0.99)):
        pruned = prune(graph, node, edge)
        assert torch.equal(pruned.node_mask, expected[f"node_mask_{node}_{edge}"]), (node, edge)
        assert torch.equal(pruned.edge_mask, expected[f"edge_mask_{node}_{edge}"]), (node, edge)


def test_rows_are_complete(traced):
    _, _, graph = traced
    assert graph.completeness_error() < EXACT


def test_rows_of_errors_and_tokens_are_empty_and_nothing_flows_from_excluded_positions(traced):
    _, _, graph = traced
    layout = graph.layout
    assert not graph.adjacency[layout.errors.start : layout.tokens.stop].any()
    for layer in range(graph.n_layers):
        assert not graph.adjacency[:, layout.error_index(layer, 0)].any()
    assert (graph.active_features[:, 1] >= 1).all()


def test_batch_size_does_not_matter(traced):
    case, model, graph = traced
    for batch_size in (7, 40):
        again = trace(model, case.input_ids, batch_size=batch_size)
        assert relative_error(again.adjacency, graph.adjacency) < 1e-6


def test_two_runs_give_the_same_bits(traced):
    case, model, graph = traced
    again = trace(model, torch.tensor(case.input_ids))
    assert torch.equal(again.adjacency, graph.adjacency)
    assert torch.equal(again.unattributed, graph.unattributed)


@pytest.mark.parametrize("name", CASE_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_is_exact_for_the_weights_it_stores(name, dtype):
    # Rounding the weights changes the model; for the rounded model the edges must be as exact as before.
    case = load_case(name)
    model = load(case, dtype)
    graph = trace(model, case.input_ids)
    reference = LinearModel(case.model, open_transcoders(case.transcoders), case.input_ids, dtype)
    assert graph.active_features.tolist() == [list(entry) for entry in reference.active]
    errors = block_errors(graph, reference.adjacency(graph.logit_tokens.tolist()))
    assert max(errors.values()) < EXACT, errors
    assert graph.completeness_error() < EXACT


def test_weights_stored_in_bfloat16_are_used_as_stored(tmp_path):
    case = load_case("clt_affine")
    stored = ReplacementModel.from_pretrained(case.model, rounded_copy(case, tmp_path / "clt", torch.bfloat16), "cpu")
    assert stored.transcoders.encoder(0).w_enc_df.dtype == torch.bfloat16
    assert stored.transcoders.encoder(0).threshold_f.dtype == torch.float32
    assert trace(stored, case.input_ids).completeness_error() < EXACT


@pytest.mark.parametrize("name", ["clt_plain_gqa", "skip_transcoder"])  # its CLT files have no place for a skip
def test_circuit_tracer_files_give_the_same_graph(name, tmp_path):
    case = load_case(name)
    graph = trace(load(case), case.input_ids)
    other = ReplacementModel.from_pretrained(case.model, write_circuit_tracer(case, tmp_path / "ct"), device="cpu")
    again = trace(other, case.input_ids)
    assert torch.equal(again.active_features, graph.active_features)
    assert relative_error(again.adjacency, graph.adjacency) < 1e-6


def test_transcoders_that_read_before_the_norm(tmp_path):
    # hook_resid_mid: the linear model has no norm between the residual stream and the encoder.
    case = load_case("skip_transcoder")
    folder = write_circuit_tracer(case, tmp_path / "ct")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("mlp.hook_in", "hook_resid_mid"))
    graph = trace(ReplacementModel.from_pretrained(case.model, folder, device="cpu"), case.input_ids)
    reference = LinearModel(case.model, open_transcoders(folder), case.input_ids, torch.float32)
    assert graph.active_features.tolist() == [list(entry) for entry in reference.active]
    assert max(block_errors(graph, reference.adjacency(graph.logit_tokens.tolist())).values()) < EXACT


def test_more_excluded_positions(traced):
    case, _, _ = traced
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu", excluded_first=4)
    fewer = trace(model, case.input_ids)
    assert (fewer.active_features[:, 1] >= 4).all()
    assert fewer.completeness_error() < EXACT
    reader = open_transcoders(case.transcoders)
    reference = LinearModel(case.model, reader, case.input_ids, torch.float32, excluded=4)
    assert max(block_errors(fewer, reference.adjacency(fewer.logit_tokens.tolist())).values()) < EXACT


def test_cap_keeps_the_most_influential_features_and_loses_nothing(traced):
    case, model, graph = traced
    capped = trace(model, case.input_ids, max_feature_nodes=60)
    assert len(capped.selected_features) == 60
    # Rows are those of the whole graph, what is left out is summed up.
    chosen, layout = capped.selected_features, graph.layout
    nodes = torch.cat([chosen, torch.arange(layout.errors.start, layout.n)])
    assert relative_error(capped.adjacency, graph.adjacency[nodes][:, nodes]) < 1e-6
    left_out = torch.ones(layout.n_features, dtype=torch.bool)
    left_out[chosen] = False
    omitted = graph.adjacency[nodes][:, : layout.n_features][:, left_out]
    torch.testing.assert_close(capped.omitted, omitted.sum(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(capped.omitted_magnitude, omitted.abs().sum(1), rtol=1e-4, atol=1e-5)
    assert capped.completeness_error() < EXACT
    # What pruning finds most important in the whole graph is among them.
    important = prune(graph, 0.6, 0.98).node_mask[layout.features].nonzero().flatten()
    assert len(important) > 3
    assert torch.isin(important, chosen).all()
    # Counted as error: scores can only fall.
    assert graph_scores(capped).replacement < graph_scores(graph).replacement
    assert graph_scores(capped).completeness < graph_scores(graph).completeness


def test_cap_does_not_depend_on_batch_size_and_cap_zero_leaves_only_targets(traced):
    case, model, _ = traced
    first = trace(model, case.input_ids, max_feature_nodes=37)
    second = trace(model, case.input_ids, max_feature_nodes=37, batch_size=5)
    assert torch.equal(first.selected_features, second.selected_features)
    none = trace(model, case.input_ids, max_feature_nodes=0)
    assert len(none.selected_features) == 0
    assert none.completeness_error() < EXACT


def test_contrast_is_the_difference_of_its_logits(traced):
    case, model, _ = traced
    both = trace(model, case.input_ids, targets=[Logit(30), Logit(13), Contrast(30, 13)])
    rows = both.adjacency[both.layout.logits]
    torch.testing.assert_close(rows[2], rows[0] - rows[1], rtol=1e-4, atol=1e-5)
    assert both.logit_tokens.tolist() == [30, 13, -1]
    assert both.logit_probabilities[2] == 1


def test_feature_target_has_the_row_of_its_node(traced):
    case, model, graph = traced
    node = len(graph.selected_features) - 1
    layer, position, feature = graph.feature_of(node)
    alone = trace(model, case.input_ids, targets=Feature(layer, feature, position))
    torch.testing.assert_close(
        alone.adjacency[alone.layout.logits.start, : alone.layout.n_sources],
        graph.adjacency[node, : graph.layout.n_sources],
        rtol=1e-5,
        atol=1e-6,
    )
    assert alone.completeness_error() < EXACT
    as_text = trace(model, case.input_ids, targets=f"L{layer}/{feature}@{position}", max_feature_nodes=0)
    assert as_text.logit_strings == alone.logit_strings


def test_inactive_feature_as_target_is_complete(traced):
    case, model, graph = traced
    active = {tuple(row) for row in graph.active_features.tolist()}
    position = len(case.input_ids) - 2
    feature = next(f for f in range(80) if (2, position, f) not in active)
    target = trace(model, case.input_ids, targets=Feature(2, feature, position), max_feature_nodes=0)
    assert target.completeness_error() < EXACT


def test_target_at_an_earlier_position_is_that_of_the_shorter_prompt(traced):
    case, model, _ = traced
    position = len(case.input_ids) - 4
    early = trace(model, case.input_ids, position=position)
    short = trace(model, case.input_ids[: position + 1])
    assert early.logit_tokens.tolist() == short.logit_tokens.tolist()
    assert early.logit_positions.tolist() == [position] * len(short.logit_tokens)
    total = early.adjacency[early.layout.logits].abs().sum()
    torch.testing.assert_close(total, short.adjacency[short.layout.logits].abs().sum(), rtol=1e-4, atol=0)


def test_direction_in_the_residual_stream(traced):
    case, model, graph = traced
    n_layers, vector = (
        graph.n_layers,
        torch.randn(model.description.d_model, generator=torch.Generator().manual_seed(0)),
    )
    for layer in (0, 1, n_layers):
        one = trace(model, case.input_ids, targets=Direction(vector, layer, label="probe"), max_feature_nodes=0)
        two = trace(model, case.input_ids, targets=Direction(2 * vector, layer), max_feature_nodes=0)
        torch.testing.assert_close(2 * one.adjacency, two.adjacency, rtol=1e-5, atol=1e-5)
        assert one.completeness_error() < EXACT
        assert one.logit_strings == ["probe"]
        assert one.logit_layers.tolist() == [layer]


def test_prompt_of_one_token():
    case = load_case("clt_affine")
    graph = trace(load(case), [2])
    assert len(graph.active_features) == 0
    assert graph.completeness_error() < EXACT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_logits": 0}, "max_logits"),
        ({"logit_probability": 1.5}, "logit_probability"),
        ({"max_feature_nodes": -1}, "max_feature_nodes"),
        ({"batch_size": 0}, "batch_size"),
        ({"position": 12}, "position 12 is outside the prompt"),
        ({"targets": []}, "targets is empty"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings, message):
    case = load_case("clt_affine")
    with pytest.raises(ValueError, match=message):
        trace(load(case), case.input_ids, **settings)


def test_no_hooks_and_no_gradients_are_left_behind(traced):
    _, model, _ = traced
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_settings_reproduce_the_graph(traced, tmp_path: Path):
    _, _, graph = traced
    graph.save(tmp_path / "graph.safetensors")
    loaded = AttributionGraph.load(tmp_path / "graph.safetensors")
    model = ReplacementModel.from_pretrained(
        loaded.model_name, loaded.transcoders_name, device=loaded.settings["device"]
    )
    names = ("targets", "max_logits", "logit_probability", "max_feature_nodes", "position")
    again = trace(model, loaded.tokens, **{name: loaded.settings[name] for name in names})
    assert torch.equal(again.adjacency, loaded.adjacency)


@pytest.mark.parametrize("cap", [0, 1, 5, 16, 512, 8192])
def test_rankings_choose_as_many_as_asked_and_few_at_first(cap):
    counts = ranked_counts(cap)
    assert sum(counts) == cap
    assert all(count > 0 for count in counts)
    assert all(count <= max(1, round(cap / 16), sum(counts[:i]) / 2) for i, count in enumerate(counts))
    assert len(counts) <= 9
