"""The adjoint of the local replacement model: linear, causal, and equal to a forward pass through frozen layers."""

from __future__ import annotations

import pytest
import torch
from cases import Case

from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel


@pytest.fixture
def local(case: Case) -> LocalReplacementModel:
    return ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu").local(case.input_ids)


def flat(rows) -> torch.Tensor:
    parts = (rows.features_bn, rows.errors_blp.flatten(1), rows.tokens_bp, rows.unattributed_b[:, None])
    return torch.cat(parts, dim=1)


def test_rows_are_linear_in_the_target(local):
    n_layers, position = local.description.n_layers, local.n_positions - 1
    generator = torch.Generator().manual_seed(1)
    one, two = torch.randn(2, local.description.d_model, generator=generator)
    rows = flat(local.rows([local.residual_target(v, n_layers, position) for v in (one, two, 3 * one - two)]))
    torch.testing.assert_close(rows[2], 3 * rows[0] - rows[1], rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_are_those_of_each_alone(local):
    n_active = len(local.activations)
    targets = [
        local.logit_target({7: 1.0}, local.n_positions - 1),
        *local.feature_targets(torch.tensor([0, n_active // 2, n_active - 1])),
        local.logit_target({9: 1.0, 4: -2.0}, 3),
    ]
    together = flat(local.rows(targets))
    for row, target in zip(together, targets, strict=True):
        torch.testing.assert_close(flat(local.rows([target]))[0], row, rtol=1e-5, atol=1e-6)


def test_nothing_flows_from_later_positions_or_from_the_target_layer_up(local):
    layers, positions = local.activations.layers, local.activations.positions
    for entry in (0, len(local.activations) // 2, len(local.activations) - 1):
        rows = local.rows(local.feature_targets(torch.tensor([entry])))
        later = (positions > positions[entry]) | (layers >= layers[entry])
        assert not rows.features_bn[0, later].any()
        assert not rows.errors_blp[0, layers[entry] :].any()
        assert not rows.tokens_bp[0, positions[entry] + 1 :].any()


def test_residual_at_layer_zero_is_the_token(local):
    vector = torch.randn(local.description.d_model, generator=torch.Generator().manual_seed(2))
    rows = local.rows([local.residual_target(vector, 0, 4)])
    assert not rows.features_bn.any()
    assert rows.tokens_bp[0].nonzero().flatten().tolist() == [4]
    torch.testing.assert_close(rows.tokens_bp[0, 4], local.residuals_lpd[0, 4] @ vector, rtol=1e-5, atol=1e-5)


def test_targets_know_their_value_from_the_forward_pass(local):
    values = local.activations.values
    entries = torch.arange(0, len(values), 17)
    for entry, target in zip(entries.tolist(), local.feature_targets(entries), strict=True):
        layer, feature = int(local.activations.layers[entry]), int(local.activations.features[entry])
        bias = local.transcoders.encoder(layer).b_enc_f[feature].item()
        assert target.value == pytest.approx(values[entry].item() - bias, rel=1e-5, abs=1e-5)
        direct = local.feature_target(layer, int(local.activations.positions[entry]), feature)
        assert direct.value == pytest.approx(target.value, rel=1e-4, abs=1e-4)
    logits = local.logits()
    assert local.logit_target({5: 1.0}, -1 % local.n_positions).value == pytest.approx(
        (logits[5] - logits.mean()).item(), rel=1e-4, abs=1e-4
    )


def test_excluded_positions_have_no_errors_but_their_output_is_accounted_for(local):
    first = local.description.excluded_first
    assert not local.errors_lpd[:, :first].any()
    assert local.constants_lpd[:, :first].any()
    assert (local.activations.positions >= first).all()
