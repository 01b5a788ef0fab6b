"""Validation on the cases: edges against measured changes, predictions against a linear model, curves at their ends."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from cases import Case, load_case
from scipy.stats import spearmanr

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.replacement_model import (
    Ablate,
    AllFeatures,
    FeatureAt,
    Freeze,
    ReplacementModel,
    Scale,
    intervene_batch,
)
from crosstrace.tracer import Validation, validate_graph
from crosstrace.tracer.attribution.tracing import trace
from crosstrace.tracer.validation.faithfulness import faithfulness_curves
from crosstrace.tracer.validation.report import check_outputs, write_validation
from crosstrace.tracer.validation.total_effects import rank_correlation, signed_effects, total_effects


@pytest.fixture(scope="module", params=["clt_affine", "skip_transcoder"])
def traced(request: pytest.FixtureRequest) -> tuple[Case, ReplacementModel, AttributionGraph]:
    case = load_case(request.param)
    model = ReplacementModel.from_pretrained(case.model, case.transcoders)
    model.transcoders.labels = {(layer, feature): f"group {feature % 9}" for layer in range(4) for feature in range(96)}
    return case, model, trace(model, case.input_ids)


@pytest.fixture(scope="module")
def validation(traced: tuple[Case, ReplacementModel, AttributionGraph]) -> Validation:
    _, model, graph = traced
    return validate_graph(model, graph, n_sources=40, n_features=30)


def test_heads_taken_out_change_targets_as_the_loadings_say(validation: Validation) -> None:
    heads = validation.heads
    assert len(heads.heads) == 6
    assert heads.relative_error < 1e-4
    assert not heads.problem
    assert len(heads.loadings) == len(heads.measured) == len(heads.measured_free) == 6 * heads.n_targets
    wrong = dataclasses.replace(heads, relative_error=0.5)
    assert wrong.problem.startswith("head loadings are off by 0.5")


def test_measured_direct_effects_are_the_edges(validation: Validation) -> None:
    direct = validation.direct
    assert direct.n_sources == 40
    assert direct.n_edges > 1000
    assert direct.relative_error < 1e-5
    assert direct.max_relative_error < 1e-2  # of edges down to 1e-4 of the largest, where rounding is most of it
    np.testing.assert_allclose(direct.measured, direct.edges, rtol=1e-3, atol=1e-5)


def test_wrong_edges_are_found(traced: tuple[Case, ReplacementModel, AttributionGraph]) -> None:
    """The known mistake elsewhere: token edges too small by a factor."""
    _, model, graph = traced
    wrong = AttributionGraph(**{name: getattr(graph, name) for name in graph.__dataclass_fields__})
    scale = np.ones(graph.n)
    scale[graph.layout.tokens] = 1 / 8
    wrong.edges = scipy.sparse.csr_array((graph.edges @ scipy.sparse.diags_array(scale)).astype(np.float32))
    assert validate_graph(model, wrong, n_sources=graph.n, n_features=3).direct.relative_error > 0.1


def test_total_effects_have_a_line_for_each_feature_and_supernode(validation: Validation) -> None:
    total = validation.total
    assert total.is_supernode.count(False) == 30
    assert total.is_supernode.count(True) >= 3
    assert all(name.startswith("group") for name, group in zip(total.sources, total.is_supernode, strict=True) if group)
    singles = total.influence[:30]
    assert singles == sorted(singles, reverse=True)
    for correlation in (total.influence_correlation, total.signed_correlation, total.frozen_correlation):
        assert -1 <= correlation.low <= correlation.value <= correlation.high <= 1
    assert total.influence_correlation.value > 0.3  # random weights, but strong features still matter more


def test_groups_given_are_ablated_as_one(traced: tuple[Case, ReplacementModel, AttributionGraph]) -> None:
    _, model, graph = traced
    token = graph.layout.tokens.start
    places = []
    for layer, position, feature in map(graph.feature_of, (0, 1)):
        places.append(Ablate(FeatureAt(layer, feature, position)))
    groups = [("two", [0, 1, token]), ("a token", [token])]
    total = validate_graph(model, graph, n_sources=5, n_features=4, supernodes=groups).total
    assert total.sources[4] == "two"
    assert "a token" not in total.sources
    assert total.is_supernode[:5] == [False] * 4 + [True]
    target = int(graph.logit_tokens[graph.logit_probabilities.argmax()])
    change_v = model.intervene(graph.tokens, places).logit_changes_qv[-1]
    assert total.measured[4] == pytest.approx(float(change_v.mean() - change_v[target]), rel=1e-4, abs=1e-5)
    change_v = model.intervene(graph.tokens, places, Freeze.iterative(norms="frozen")).logit_changes_qv[-1]
    assert total.measured_frozen[4] == pytest.approx(float(change_v.mean() - change_v[target]), rel=1e-4, abs=1e-5)


def test_features_of_one_automatic_label_are_no_supernode(
    traced: tuple[Case, ReplacementModel, AttributionGraph],
) -> None:
    _, model, graph = traced
    labels = ["~ is"] * len(graph.feature_labels)
    total = validate_graph(model, dataclasses.replace(graph, feature_labels=labels), n_sources=5, n_features=9).total
    assert not any(total.is_supernode)
    assert all("~ is" in source for source in total.sources)


def test_a_prompt_of_one_word_has_no_curves_filled_with_means(
    traced: tuple[Case, ReplacementModel, AttributionGraph],
) -> None:
    """One position past the excluded one: its means are what is there, and nothing is lost that could be recovered."""
    case, model, _ = traced
    validation = validate_graph(model, trace(model, case.input_ids[:2]), n_sources=5, n_features=4)
    assert {curve.fill for curve in validation.curves} == {"zero"}


def test_a_prompt_without_features_validates(traced: tuple[Case, ReplacementModel, AttributionGraph], tmp_path) -> None:
    case, model, _ = traced
    validation = validate_graph(model, trace(model, case.input_ids[:1]), n_sources=5, n_features=4)
    assert validation.total.sources == []
    assert validation.total.influence_correlation.value is None
    for name in ("report.json", "plots.png"):
        write_validation(validation, tmp_path / name)


def test_the_model_is_left_as_it_was(traced: tuple[Case, ReplacementModel, AttributionGraph]) -> None:
    case, model, _ = traced
    graph = trace(model, case.input_ids)
    other = ReplacementModel.from_pretrained(case.model, case.transcoders, excluded_first=3)
    validate_graph(other, graph, n_sources=3, n_features=3)
    assert other.description.excluded_first == 3


def test_graphs_of_other_weights_are_refused(traced: tuple[Case, ReplacementModel, AttributionGraph]) -> None:
    case, _, graph = traced
    rounded = ReplacementModel.from_pretrained(case.model, case.transcoders, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"traced with float32 weights, but these are bfloat16: give --dtype float32"):
        validate_graph(rounded, graph)


def test_one_feature_at_its_threshold_is_no_other_model(
    traced: tuple[Case, ReplacementModel, AttributionGraph],
) -> None:
    case, model, _ = traced
    graph = trace(model, case.input_ids[:2])
    assert 2 < len(graph.active_features) < 100
    # Features without a row come last: one of them may flip and no edge depends on it.
    flipped = torch.cat([graph.active_features, torch.tensor([[3, 1, 95]])])
    assert [3, 1, 95] not in graph.active_features.tolist()
    seen = dataclasses.replace(
        graph, active_features=flipped, activations=torch.cat([graph.activations, torch.tensor([0.1])])
    )
    assert validate_graph(model, seen, n_sources=3, n_features=3).direct.relative_error < 1e-4


def test_signed_effects_are_the_sum_over_all_paths() -> None:
    rng = np.random.default_rng(0)
    dense = np.tril(rng.normal(size=(9, 9)), -1)
    dense[:2] = 0  # sources without rows
    weights = np.zeros(9)
    weights[8] = 1.0
    values = rng.uniform(0.1, 9, size=9)
    values[8] = 1.0
    # Per unit of what a node writes, the graph is dense / values; a whole node is `values` such units.
    expected = (weights @ np.linalg.inv(np.eye(9) - dense / values)) * values
    np.testing.assert_allclose(signed_effects(scipy.sparse.csr_array(dense), weights, values), expected, rtol=1e-10)


def test_predicted_total_effects_are_what_the_linear_model_measures(
    traced: tuple[Case, ReplacementModel, AttributionGraph],
) -> None:
    """A change so small that hardly any feature reaches its threshold, under frozen norms and attention."""
    _, model, graph = traced
    assert len(graph.selected_features) == len(graph.active_features)
    target = int(graph.logit_probabilities.argmax())
    token, row = int(graph.logit_tokens[target]), graph.edges[[graph.layout.logits.start + target]].toarray()[0]
    local, share = model.local(graph.tokens), 1e-3
    total = total_effects(model, local, graph, target, n_features=30, seed=0)
    nodes = {graph.describe(node): node for node in range(graph.layout.n_features)}
    chosen = [nodes[name] for name, group in zip(total.sources, total.is_supernode, strict=True) if not group]
    assert len(chosen) == 30
    places = [FeatureAt(layer, feature, position) for layer, position, feature in map(graph.feature_of, chosen)]
    weakened = [(local, [Scale(place, 1 - share)]) for place in places]
    largest, compared, beyond_direct = max(map(abs, total.predicted)), 0, 0
    outcomes = intervene_batch(model, weakened, Freeze.iterative(norms="frozen"))
    for node, predicted, outcome in zip(chosen, total.predicted, outcomes, strict=False):
        if outcome.became_active or outcome.became_inactive:
            continue
        compared += 1
        change_v = outcome.logit_changes_qv[-1].double()
        measured = float(change_v.mean() - change_v[token]) / share
        assert measured == pytest.approx(predicted, rel=2e-3, abs=1e-3 * largest)
        beyond_direct += abs(predicted - float(row[node])) > 0.1 * largest
    assert compared > 20
    assert beyond_direct  # paths through other features count


def test_rank_correlation_is_of_ranks_and_undefined_without_them() -> None:
    x = np.arange(20.0)
    assert rank_correlation(x, np.exp(x), seed=0) == rank_correlation(x, x, seed=0)
    assert rank_correlation(x, -x, seed=0).value == pytest.approx(-1)
    assert rank_correlation(x, np.ones(20), seed=0).value is None
    assert rank_correlation([1.0, 2.0], [1.0, 2.0], seed=0).value is None


@pytest.mark.parametrize("n", [3, 4, 9, 60])
def test_rank_correlation_and_its_interval_are_those_of_scipy_draw_by_draw(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.integers(0, 6, n) + np.arange(n) / 3  # with ties
    y = x + rng.normal(size=n).round(1)
    found = rank_correlation(x, y, seed=5)
    drawn = np.random.default_rng(5).integers(0, n, (1000, n))
    each = [spearmanr(x[pick], y[pick]).statistic for pick in drawn if np.ptp(x[pick]) and np.ptp(y[pick])]
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert (found.low, found.high) == pytest.approx(np.percentile(each, [2.5, 97.5]))


def test_curves_begin_and_end_where_they_must(
    traced: tuple[Case, ReplacementModel, AttributionGraph], validation: Validation
) -> None:
    case, model, graph = traced
    local = model.local(case.input_ids)
    token = int(graph.logit_tokens[0])
    by_kind = {(curve.kind, curve.fill): curve for curve in validation.curves}
    assert set(by_kind) == {(kind, fill) for kind in ("keep", "remove") for fill in ("zero", "mean")}
    for curve in validation.curves:
        assert curve.counts[0] == 0
        assert curve.counts[-1] == len(graph.selected_features)
        assert len(curve.recovered) == len(curve.counts)
    assert by_kind["keep", "zero"].recovered[0] == 0
    assert by_kind["keep", "mean"].recovered[0] == 0
    assert by_kind["remove", "zero"].recovered[0] == pytest.approx(1, abs=1e-5)
    # All of the prompt's features kept, errors left out: what arises only then is left out as well.
    nothing = model.intervene(local, [Ablate(AllFeatures())], errors="dropped").logits_v
    places = tuple(FeatureAt(layer, feature, at) for layer, at, feature in graph.active_features.tolist())
    everything = model.intervene(local, [Ablate(AllFeatures(but=places))], errors="dropped").logits_v
    low, whole, high = (float(v[token] - v.mean()) for v in (nothing, local.logits(), everything))
    assert by_kind["keep", "zero"].recovered[-1] == pytest.approx((high - low) / (whole - low), rel=1e-4)


def test_keeping_all_with_the_errors_own_mean_recovers_more_than_nothing(
    traced: tuple[Case, ReplacementModel, AttributionGraph],
) -> None:
    case, model, graph = traced
    curves = faithfulness_curves(model, model.local(case.input_ids), prune(graph, 0.5, 0.9), 0)
    means = faithfulness_curves(model, model.local(case.input_ids), prune(graph, 0.5, 0.9), 0, ("mean",))
    assert means == [curve for curve in curves if curve.fill == "mean"]
    keep = next(curve for curve in curves if (curve.kind, curve.fill) == ("keep", "zero"))
    kept = int(prune(graph, 0.5, 0.9).node_mask[graph.layout.features].sum())
    assert keep.pruned_count == kept
    # The area is that of the polygon through the points.
    shares = np.array(keep.counts) / keep.counts[-1]
    heights = (np.array(keep.recovered[1:]) + np.array(keep.recovered[:-1])) / 2
    assert keep.area == pytest.approx(float((heights * np.diff(shares)).sum()))


def test_quality_is_the_replacement_model_beside_the_model(
    traced: tuple[Case, ReplacementModel, AttributionGraph], validation: Validation
) -> None:
    case, model, _ = traced
    quality = validation.quality
    with torch.no_grad():
        before = model.model(torch.tensor([case.input_ids])).logits[0, -1].double().log_softmax(-1)
    after = model.forward(case.input_ids).logits_v.double().log_softmax(-1)
    assert quality.kl_last == pytest.approx(float((before.exp() * (before - after)).sum()), rel=1e-4)
    assert quality.same_last_token == bool(before.argmax() == after.argmax())
    errors = case.expected["error_vectors"]
    local = model.local(case.input_ids)
    outputs = local.residuals_lpd[1:] - local.mids_lpd
    expected = errors[:, 1:].flatten(1).norm(dim=1) / outputs[:, 1:].flatten(1).norm(dim=1)
    torch.testing.assert_close(torch.tensor(quality.error_norms), expected.float(), rtol=1e-4, atol=0)


def test_a_graph_of_another_model_is_refused(traced: tuple[Case, ReplacementModel, AttributionGraph]) -> None:
    _, _, graph = traced
    other = load_case("clt_plain_gqa")
    model = ReplacementModel.from_pretrained(other.model, other.transcoders)
    with pytest.raises(ValueError, match=r"layers|other features are active"):
        validate_graph(model, graph)


def test_a_graph_without_an_output_token_is_refused(traced: tuple[Case, ReplacementModel, AttributionGraph]) -> None:
    case, model, _ = traced
    graph = trace(model, case.input_ids, targets="L3/5")
    with pytest.raises(ValueError, match="no output token among its targets"):
        validate_graph(model, graph)


def test_reports_are_written_by_suffix(validation: Validation, tmp_path: Path) -> None:
    write_validation(validation, tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["direct"]["relative_error"] == validation.direct.relative_error
    assert report["curves"][0]["counts"] == validation.curves[0].counts
    write_validation(validation, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_plots_without_matplotlib_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"matplotlib is not installed; pip install 'crosstrace\[plot\]'"):
        check_outputs([tmp_path / "plots.png"])
    check_outputs([tmp_path / "report.json"])
    with pytest.raises(ValueError, match=r"unknown suffix '.txt'"):
        check_outputs([tmp_path / "report.txt"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_outputs([tmp_path / "no" / "report.json"])
