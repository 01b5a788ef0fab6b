"""scores: every path against the definition."""

from __future__ import annotations

import pytest
import torch
from kernel_samples import DEVICE, DTYPES, SIZES, Sizes, assert_close, path, sample, strict  # noqa: F401

from crosstrace.kernels import SparseActivations, decode, scores, scores_reference


def gradients(sizes: Sizes, n_rows: int, positions: int | None = None, top: int | None = None) -> torch.Tensor:
    shape = (n_rows, sizes.positions if positions is None else positions, sizes.layers if top is None else top)
    return torch.randn(*shape, sizes.d_model, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_the_reference(path, sizes, dtype):  # noqa: F811
    drawn, gradient = sample(sizes, dtype), gradients(sizes, 3)
    expected = scores_reference(drawn.activations, drawn.rows_njd, gradient)
    assert_close(scores(drawn.activations, drawn.rows_njd, gradient), expected)
    assert_close(scores(drawn.activations, drawn.decoders_fjd, gradient, drawn.row_indices), expected)


@pytest.mark.parametrize(("positions", "top"), [(5, 2), (1, 3), (3, 1), (0, 3), (5, 0)])
def test_stops_at_the_highest_layer_and_last_position(path, positions, top):  # noqa: F811
    sizes = Sizes()
    drawn, gradient = sample(sizes), gradients(sizes, 2, positions, top)
    whole = torch.zeros(2, 5, 3, 24, device=DEVICE)
    whole[:, :positions, :top] = gradient
    expected = scores_reference(drawn.activations, drawn.rows_njd, whole)
    assert_close(scores_reference(drawn.activations, drawn.rows_njd, gradient), expected)
    assert_close(scores(drawn.activations, drawn.rows_njd, gradient), expected)
    assert_close(scores(drawn.activations, drawn.decoders_fjd, gradient, drawn.row_indices), expected)


@pytest.mark.parametrize("tops", [(3, 3, 2, 1, 1, 0), (3, 0, 0, 0, 0, 0), (2, 2, 2, 2, 2, 2), (0,) * 6])
def test_what_lies_above_a_target_is_not_multiplied(path, tops):  # noqa: F811
    sizes = Sizes()
    drawn, gradient = sample(sizes), gradients(sizes, 6)
    for row, top in enumerate(tops):
        gradient[row, :, top:] = 0
    expected = scores_reference(drawn.activations, drawn.rows_njd, gradient)
    assert_close(scores(drawn.activations, drawn.rows_njd, gradient, tops=tops), expected)
    assert_close(scores(drawn.activations, drawn.decoders_fjd, gradient, drawn.row_indices, tops), expected)


@pytest.mark.parametrize("tops", [(3, 2), (1, 2, 1), (4, 1, 1), (1, 1, -1)], ids=str)
def test_tops_that_cannot_be(tops):
    sizes = Sizes()
    drawn = sample(sizes)
    with pytest.raises(
        ValueError, match=r"tops is .*; expected a layer for each of the 3 targets, descending"
    ) as raised:
        scores(drawn.activations, drawn.rows_njd, gradients(sizes, 3), tops=tops)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("n_rows", [0, 1, 17, 70])
def test_any_number_of_targets_and_rows_alone(path, n_rows):  # noqa: F811
    sizes = Sizes(2, 3, 16, 9)
    drawn, gradient = sample(sizes), gradients(sizes, n_rows)
    together = scores(drawn.activations, drawn.rows_njd, gradient)
    assert_close(together, scores_reference(drawn.activations, drawn.rows_njd, gradient))
    if n_rows:
        assert_close(scores(drawn.activations, drawn.rows_njd, gradient[-1:]), together[-1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_contiguous(path, dtype):  # noqa: F811
    sizes = Sizes()
    drawn, gradient = sample(sizes, dtype), gradients(sizes, 2)
    expected = scores_reference(drawn.activations, drawn.rows_njd, gradient)
    stored = [torch.cat([torch.zeros(19, 3 - d.shape[1], 24).to(d), d], 1) for d in drawn.decoders_fjd]
    views = [decoder[:, layer:] for layer, decoder in enumerate(stored)]
    other_order = [d.permute(2, 1, 0).contiguous().permute(2, 1, 0) for d in drawn.decoders_fjd]
    assert_close(scores(drawn.activations, views, gradient, drawn.row_indices), expected)
    assert_close(scores(drawn.activations, other_order, gradient, drawn.row_indices), expected)
    layers_first = gradient.transpose(1, 2).contiguous().transpose(1, 2)
    wider = torch.randn(2, 9, 3, 24, device=DEVICE)
    wider[:, 2:7] = gradient
    assert_close(scores(drawn.activations, views, layers_first, drawn.row_indices), expected)
    assert_close(scores(drawn.activations, views, wider[:, 2:7], drawn.row_indices), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_gradients(path, dtype):  # noqa: F811
    sizes = Sizes()
    drawn, gradient = sample(sizes, dtype), gradients(sizes, 2).to(dtype)
    expected = scores_reference(drawn.activations, drawn.rows_njd, gradient.float())
    assert_close(scores(drawn.activations, drawn.rows_njd, gradient), expected)


def test_is_the_adjoint_of_decode(path):  # noqa: F811
    sizes = Sizes(share=0.5)
    drawn, gradient = sample(sizes), gradients(sizes, 2)
    out_lpd = decode(drawn.activations, drawn.rows_njd)
    met = torch.einsum("bpld,lpd->b", gradient, out_lpd)
    assert_close(scores(drawn.activations, drawn.rows_njd, gradient).sum(1), met)


def test_linear_and_repeatable(path):  # noqa: F811
    sizes = Sizes(share=0.5)
    drawn, one, other = sample(sizes), gradients(sizes, 2), gradients(sizes, 2)
    first = scores(drawn.activations, drawn.rows_njd, one)
    assert torch.equal(scores(drawn.activations, drawn.rows_njd, one), first)
    mixed = scores(drawn.activations, drawn.rows_njd, 2 * one - 3 * other)
    assert_close(mixed, 2 * first - 3 * scores(drawn.activations, drawn.rows_njd, other))


def test_a_dead_feature_has_no_effect(path):  # noqa: F811
    sizes = Sizes(share=0.5)
    drawn = sample(sizes)
    rows = [row.clone() for row in drawn.rows_njd]
    rows[1][0] = 0
    out = scores(drawn.activations, rows, gradients(sizes, 2))
    assert (out[:, drawn.activations.layer(1).start] == 0).all()


def test_permuting_features_permutes_the_result(path):  # noqa: F811
    sizes = Sizes()
    drawn, gradient = sample(sizes), gradients(sizes, 2)
    acts, order = drawn.activations, torch.randperm(19, device=DEVICE)
    indices = acts.indices.clone()
    indices[:, 2] = torch.argsort(order)[indices[:, 2]]
    permuted = SparseActivations.from_indices(indices, acts.values, 3, 5)
    rows = [decoder[order] for decoder in drawn.decoders_fjd]
    out = scores(permuted, rows, gradient, [permuted.features[permuted.layer(layer)] for layer in range(3)])
    back = {tuple(row): i for i, row in enumerate(permuted.indices.tolist())}
    expected = scores(acts, drawn.rows_njd, gradient)
    assert_close(out[:, [back[tuple(row)] for row in indices.tolist()]], expected)


@pytest.mark.parametrize("level", ["highest", "high", "medium"])
def test_parts_of_a_gradient_add_up(path, level):  # noqa: F811
    """bfloat16 weights: three bfloat16 parts hold a float32, two and one hold less."""
    sizes = Sizes()
    drawn, gradient = sample(sizes, torch.bfloat16), gradients(sizes, 2)
    expected = scores_reference(drawn.activations, drawn.rows_njd, gradient)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        out = scores(drawn.activations, drawn.rows_njd, gradient)
    finally:
        torch.set_float32_matmul_precision(before)
    error = (out - expected).norm() / expected.norm() if len(drawn.activations) else torch.zeros(())
    high = 1e-3 if (path, DEVICE.type) == ("torch", "cuda") else 1e-4  # there "high" lets torch use TF32
    assert error < {"highest": 1e-6, "high": high, "medium": 1e-2}[level]


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.zeros(2, 5, 3), r"gradients_bpld has shape \(2, 5, 3\); expected \(B, P', L', 24\)"),
        (torch.zeros(2, 5, 3, 23), r"gradients_bpld has shape \(2, 5, 3, 23\); expected \(B, P', L', 24\)"),
        (
            torch.zeros(2, 6, 3, 24),
            r"gradients_bpld has shape \(2, 6, 3, 24\); expected at most 5 positions and 3 layers",
        ),
        (torch.zeros(2, 5, 3, 24).double(), r"gradients_bpld of shape .* has dtype torch.float64; expected float32 or"),
        (torch.zeros(2, 5, 3, 24, device="meta"), r"gradients_bpld of shape \(2, 5, 3, 24\) is on meta; expected"),
    ],
    ids=["dimensions", "d_model", "positions", "dtype", "device"],
)
def test_bad_input(gradient, message):
    drawn = sample(Sizes())
    gradient = gradient if gradient.is_meta else gradient.to(DEVICE)
    with pytest.raises(ValueError, match=message) as raised:
        scores(drawn.activations, drawn.rows_njd, gradient)
    assert "\n" not in str(raised.value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_at_moderate_size(dtype):
    sizes = Sizes(6, 32, 640, 2000, 0.02)
    drawn, gradient = sample(sizes, dtype), gradients(sizes, 64)
    acts = drawn.activations
    out = scores(acts, drawn.decoders_fjd, gradient, drawn.row_indices)
    expected = torch.empty(64, len(acts), dtype=torch.float64, device="cuda")
    for layer, decoder in enumerate(drawn.decoders_fjd):
        dense_bpf = torch.einsum("bpjd,fjd->bpf", gradient[:, :, layer:].double(), decoder.double())
        entries = acts.layer(layer)
        expected[:, entries] = dense_bpf[:, acts.positions[entries], acts.features[entries]] * acts.values[entries]
    error = (out - expected).norm() / expected.norm()
    assert error < 1e-5
