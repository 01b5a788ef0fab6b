"""Backward passes: every path against the definition, and the definition against autograd."""

from __future__ import annotations

import pytest
import torch
from kernel_samples import DEVICE, PATHS, Sizes, assert_close, path, sample, strict  # noqa: F401

from crosstrace.kernels import (
    AdamStep,
    RowGradients,
    RowMoments,
    SparseActivations,
    adam_rows,
    decode,
    decode_backward,
    decode_backward_adam,
    decode_backward_reference,
    decode_layer_backward,
    encode_backward,
    encode_backward_adam,
    encode_backward_reference,
)
from crosstrace.kernels.dispatch import VARIABLE

# Few features: a program of the interpreter updates one row of one layer.
SIZES = [
    Sizes(positions=9, features=7),
    Sizes(1, 1, 1, 1, 1.0),
    Sizes(4, 3, 33, 6),
    Sizes(2, 17, 300, 3, 0.6),
    Sizes(3, 4, 8, 6, 1.0),
    Sizes(3, 4, 8, 6, 0.0),
    Sizes(4, 6, 16, 5, cross_layer=False),
]
ADAM = AdamStep(1e-2, 0.9, 0.99, 1e-8)


def upstream(sizes: Sizes) -> torch.Tensor:
    return torch.randn(sizes.layers, sizes.positions, sizes.d_model, device=DEVICE)


def assert_same(actual: RowGradients, expected: RowGradients) -> None:
    assert torch.equal(actual.rows, expected.rows)
    assert_close(actual.gradients, expected.gradients)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_decoder_definition_is_the_gradient(sizes):
    drawn, gradient = sample(sizes), upstream(sizes)
    acts = drawn.activations
    dense_lpf = acts.to_dense(sizes.features).requires_grad_()
    decoders = [decoder.clone().requires_grad_() for decoder in drawn.decoders_fjd]
    out = [torch.zeros(sizes.positions, sizes.d_model, device=DEVICE) for _ in range(sizes.layers)]
    for layer, decoder in enumerate(decoders):
        for j in range(decoder.shape[1]):
            out[layer + j] = out[layer + j] + dense_lpf[layer] @ decoder[:, j]
    (torch.stack(out) * gradient).sum().backward()
    values, touched = decode_backward_reference(acts, drawn.decoders_fjd, gradient)
    assert_close(values, dense_lpf.grad[acts.layers, acts.positions, acts.features])
    for decoder, rows in zip(decoders, touched, strict=True):
        assert_close(rows.to_dense(sizes.features), decoder.grad)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_encoder_definition_is_the_gradient(sizes):
    acts, inputs = sample(sizes).activations, upstream(sizes)
    gradient = torch.randn(len(acts), device=DEVICE)
    weights = torch.randn(sizes.layers, sizes.features, sizes.d_model, device=DEVICE).requires_grad_()
    biases = torch.randn(sizes.layers, sizes.features, device=DEVICE).requires_grad_()
    h_lpf = inputs @ weights.transpose(1, 2) + biases[:, None]
    (h_lpf[acts.layers, acts.positions, acts.features] * gradient).sum().backward()
    for layer, (rows, bias) in enumerate(encode_backward_reference(inputs, acts, gradient)):
        assert_close(rows.to_dense(sizes.features), weights.grad[layer])
        assert_close(bias.to_dense(sizes.features), biases.grad[layer])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_decoder_equals_the_reference(path, sizes):  # noqa: F811
    drawn, gradient = sample(sizes), upstream(sizes)
    acts = drawn.activations
    expected_values, expected = decode_backward_reference(acts, drawn.decoders_fjd, gradient)
    values, touched = decode_backward(acts, drawn.decoders_fjd, gradient)
    assert_close(values, expected_values)
    for layer, (actual, wanted) in enumerate(zip(touched, expected, strict=True)):
        assert_same(actual, wanted)
        own, rows = acts.layer(layer), drawn.decoders_fjd[layer]
        of_values, of_rows = decode_layer_backward(
            gradient[layer : layer + rows.shape[1]],
            acts.positions[own],
            acts.features[own],
            acts.values[own],
            rows,
        )
        assert_close(of_values, expected_values[own])
        assert_same(of_rows, wanted)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_encoder_equals_the_reference(path, sizes):  # noqa: F811
    acts, inputs = sample(sizes).activations, upstream(sizes)
    gradient = torch.randn(len(acts), device=DEVICE)
    for actual, wanted in zip(
        encode_backward(inputs, acts, gradient), encode_backward_reference(inputs, acts, gradient), strict=True
    ):
        for got, expected in zip(actual, wanted, strict=True):
            assert_same(got, expected)


def moments_like(weights, dtype):
    drawn = [RowMoments.zeros_like(weight, dtype) for weight in weights]
    for state, weight in zip(drawn, weights, strict=True):
        state.first.copy_(torch.randn(weight.shape, device=DEVICE) * 0.1)
        state.second.copy_(torch.rand(weight.shape, device=DEVICE))
        state.steps.random_(0, 5)
    return drawn


def copies(weights):
    return [weight.clone() for weight in weights]


def copied(moments):
    return [RowMoments(state.first.clone(), state.second.clone(), state.steps.clone()) for state in moments]


def assert_moments(actual, expected):
    for got, wanted in zip(actual, expected, strict=True):
        assert torch.equal(got.steps, wanted.steps)
        for a, b in ((got.first, wanted.first), (got.second, wanted.second)):
            if a.dtype == torch.float32:
                assert_close(a, b)
            else:  # a different last bit before rounding may round to the next bfloat16
                torch.testing.assert_close(a.float(), b.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "dtype"), [("feature-major", torch.bfloat16), ("layer-major", torch.float32)], ids=str
)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_fused_decoder_update_is_backward_then_adam(path, sizes, layout, dtype):  # noqa: F811
    drawn, gradient = sample(sizes), upstream(sizes)
    weights = drawn.decoders_fjd
    if layout == "layer-major":
        weights = [weight.transpose(0, 1).contiguous().transpose(0, 1) for weight in weights]
    moments = moments_like(weights, dtype)
    expected, expected_moments = copies(weights), copied(moments)
    expected_values, touched = decode_backward_reference(drawn.activations, expected, gradient)
    for weight, rows, state in zip(expected, touched, expected_moments, strict=True):
        adam_rows(weight, rows, state, ADAM)
    values = decode_backward_adam(drawn.activations, weights, gradient, moments, ADAM)
    assert_close(values, expected_values)
    for weight, wanted in zip(weights, expected, strict=True):
        assert_close(weight, wanted)
    assert_moments(moments, expected_moments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_fused_encoder_update_is_backward_then_adam(path, sizes, dtype):  # noqa: F811
    acts, inputs = sample(sizes).activations, upstream(sizes)
    gradient = torch.randn(len(acts), device=DEVICE)
    weights = [torch.randn(sizes.features, sizes.d_model, device=DEVICE) for _ in range(sizes.layers)]
    biases = [torch.randn(sizes.features, device=DEVICE) for _ in range(sizes.layers)]
    moments, bias_moments = moments_like(weights, dtype), moments_like(biases, dtype)
    wanted = copies(weights), copies(biases), copied(moments), copied(bias_moments)
    for layer, touched in enumerate(encode_backward_reference(inputs, acts, gradient)):
        for part in range(2):
            adam_rows(wanted[part][layer], touched[part], wanted[part + 2][layer], ADAM)
    encode_backward_adam(inputs, acts, gradient, weights, biases, moments, bias_moments, ADAM)
    for got, expected in ((weights, wanted[0]), (biases, wanted[1])):
        for weight, other in zip(got, expected, strict=True):
            assert_close(weight, other)
    assert_moments(moments, wanted[2])
    assert_moments(bias_moments, wanted[3])


def test_a_row_goes_through_adam_on_its_own_gradients():
    weight = torch.randn(6, 3, 4, device=DEVICE)
    moments = RowMoments.zeros_like(weight)
    parameters = [row.clone().requires_grad_() for row in weight]
    optimisers = [torch.optim.Adam([p], lr=1e-2, betas=(0.9, 0.99), eps=1e-8) for p in parameters]
    for _ in range(7):
        rows = (torch.rand(6, device=DEVICE) < 0.5).nonzero()[:, 0]
        gradients = torch.randn(len(rows), 3, 4, device=DEVICE)
        adam_rows(weight, RowGradients(rows, gradients), moments, ADAM)
        for row, gradient in zip(rows.tolist(), gradients, strict=True):
            parameters[row].grad = gradient.clone()
            optimisers[row].step()
    assert_close(weight, torch.stack([p.detach() for p in parameters]))


def test_untouched_rows_and_forgotten_ones(path):  # noqa: F811
    acts = SparseActivations.from_indices(torch.tensor([[0, 1, 3]], device=DEVICE), torch.ones(1, device=DEVICE), 1, 2)
    weights = [torch.randn(5, 1, 8, device=DEVICE)]
    moments = moments_like(weights, torch.float32)
    before, state = copies(weights)[0], copied(moments)[0]
    decode_backward_adam(acts, weights, torch.randn(1, 2, 8, device=DEVICE), moments, ADAM)
    others = [0, 1, 2, 4]
    assert torch.equal(weights[0][others], before[others])
    assert not torch.equal(weights[0][3], before[3])
    for name in ("first", "second", "steps"):
        assert torch.equal(getattr(moments[0], name)[others], getattr(state, name)[others])
    moments[0].forget(torch.tensor([3], device=DEVICE))
    assert not moments[0].first[3].any()
    assert not moments[0].second[3].any()
    assert int(moments[0].steps[3]) == 0
    assert torch.equal(moments[0].first[others], state.first[others])


def test_repeatable_to_the_bit(path):  # noqa: F811
    drawn, gradient = sample(Sizes(2, 20, 33, 8, 0.3)), upstream(Sizes(2, 20, 33))
    first, second = (decode_backward(drawn.activations, drawn.decoders_fjd, gradient) for _ in range(2))
    assert torch.equal(first[0], second[0])
    for a, b in zip(first[1], second[1], strict=True):
        assert torch.equal(a.gradients, b.gradients)


@pytest.mark.skipif("compiled" not in PATHS, reason="numba is not installed, or a GPU is used")
def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setenv(VARIABLE, "compiled")
    sizes = Sizes(3, 300, 160, 50, 0.3)  # enough work for several threads
    drawn, gradient = sample(sizes), upstream(sizes)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weights = copies(drawn.decoders_fjd)
        moments = [RowMoments.zeros_like(weight) for weight in weights]
        values = decode_backward_adam(drawn.activations, weights, gradient, moments, ADAM)
        index = drawn.row_indices
        results.append([values, *weights, decode(drawn.activations, weights, index), *(m.second for m in moments)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_input():
    drawn, gradient = sample(Sizes()), upstream(Sizes())
    acts, rows = drawn.activations, drawn.decoders_fjd
    moments = [RowMoments.zeros_like(row) for row in rows]
    sideways = [row.transpose(1, 2).contiguous().transpose(1, 2) for row in rows]
    for arguments, message in (
        ((acts, rows[:2], gradient), r"rows_ujd has 2 layers; expected 3"),
        (
            (acts, [r.bfloat16() for r in rows], gradient),
            r"rows_ujd\[0\] of shape .* has dtype torch.bfloat16; expected f",
        ),
        ((acts, sideways, gradient), r"rows_ujd\[0\] has strides \(72, 1, 3\); expected 1 in the last dimension"),
        ((acts, rows, gradient[:, :4]), r"gradient_lpd has shape \(3, 4, 24\); expected \(3, 5, 24\)"),
        ((acts, rows, gradient.double()), r"gradient_lpd of shape .* has dtype torch.float64; expected float32"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            decode_backward(*arguments)
        assert "\n" not in str(raised.value)
    for changed, message in (
        (moments[:1], r"moments has 1 layers; expected 3"),
        (
            [*moments[:2], RowMoments.zeros_like(rows[2], torch.bfloat16)],
            r"moments\[2\].first has dtype torch.bfloat16; expected torch.float32, as moments\[0\].first",
        ),
        ([*moments[:2], moments[0]], r"moments\[2\].first has shape \(19, 3, 24\); expected \(19, 1, 24\)"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_backward_adam(acts, rows, gradient, changed, ADAM)
    with pytest.raises(ValueError, match=r"gradient_n has shape \(\d+,\); expected \(\d+,\)"):
        encode_backward(gradient, acts, torch.zeros(len(acts) + 1, device=DEVICE))


@pytest.mark.gpu
def test_on_a_gpu_at_moderate_size():
    sizes = Sizes(6, 256, 640, 2000, 0.02)
    drawn, gradient = sample(sizes), upstream(sizes)
    acts = drawn.activations
    dense_lpf = acts.to_dense(2000).double()
    moments = [RowMoments.zeros_like(rows, torch.bfloat16) for rows in drawn.decoders_fjd]
    before = copies(drawn.decoders_fjd)
    values, touched = decode_backward(acts, drawn.decoders_fjd, gradient)
    fused = decode_backward_adam(acts, drawn.decoders_fjd, gradient, moments, ADAM)
    assert torch.equal(values, fused)
    for layer, rows in enumerate(before):
        own = acts.layer(layer)
        upper = gradient[layer : layer + rows.shape[1]].double()
        expected = torch.einsum("pf,jpd->fjd", dense_lpf[layer], upper)
        torch.testing.assert_close(touched[layer].to_dense(2000).double(), expected, rtol=0, atol=1e-4)
        products_pf = torch.einsum("fjd,jpd->pf", rows.double(), upper)
        products_n = products_pf[acts.positions[own], acts.features[own]]
        torch.testing.assert_close(values[own].double(), products_n, rtol=0, atol=1e-5 * float(products_pf.abs().max()))
        adam_rows(rows, touched[layer], RowMoments.zeros_like(rows, torch.bfloat16), ADAM)
        assert_close(drawn.decoders_fjd[layer], rows)
