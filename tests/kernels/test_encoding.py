"""encode: every path against the definition."""

from __future__ import annotations

import importlib

import pytest
import torch
from kernel_samples import DEVICE, DTYPES, assert_close, path, strict  # noqa: F401
from torch import Tensor

from crosstrace.kernels import encode, encode_reference


def inputs(n_positions: int, d_model: int, n_features: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Integers: every product and sum is exact, so active sets can be compared without a margin."""
    x = torch.randint(-4, 5, (n_positions, d_model), device=DEVICE).float()
    w = torch.randint(-4, 5, (d_model, n_features), device=DEVICE).to(dtype)
    bias = torch.randint(-3, 4, (n_features,), device=DEVICE).float()
    threshold = torch.randint(0, 5, (n_features,), device=DEVICE).float()  # hit exactly all the time
    return x, w, bias, threshold


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, got, wanted in zip(("positions", "features", "values"), actual, expected, strict=True):
        assert got.dtype == wanted.dtype, name
        assert torch.equal(got, wanted), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 33), (17, 40, 130), (66, 16, 65)], ids=str)
def test_equals_the_reference(path, shape, dtype):  # noqa: F811
    arguments = inputs(*shape, dtype)
    assert_same(encode(*arguments), encode_reference(*arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_floats(path, dtype):  # noqa: F811
    x, w = torch.randn(9, 50, device=DEVICE), torch.randn(50, 70, device=DEVICE).to(dtype)
    bias, zero = torch.randn(70, device=DEVICE), torch.zeros(70, device=DEVICE)
    h_pf = x @ w.float() + bias
    # halfway between two features' pre-activations: rounding cannot move one across
    neighbours = h_pf.flatten().sort().values[200:400].unfold(0, 2, 1)
    middle = neighbours[neighbours.diff(dim=1).argmax()].mean()
    expected = encode_reference(x, w, bias, zero + middle)
    actual = encode(x, w, bias, zero + middle)
    assert torch.equal(torch.stack(actual[:2]), torch.stack(expected[:2]))
    assert_close(actual[2], expected[2])


def test_equality_with_the_threshold_is_inactive(path):  # noqa: F811
    x, w, bias, _ = inputs(5, 8, 20)
    h_pf = x @ w + bias
    threshold = h_pf[2].clone()
    positions, features, values = encode(x, w, bias, threshold)
    assert not (positions == 2).any()
    assert (values > threshold[features]).all()


@pytest.mark.parametrize(("level", "share"), [(1e6, 0.0), (-1e6, 1.0)])
def test_none_and_all_active(path, level, share):  # noqa: F811
    x, w, bias, threshold = inputs(5, 8, 70)
    threshold = threshold * 0 + level
    positions, features, values = encode(x, w, bias, threshold)
    assert len(positions) == len(features) == len(values) == share * 5 * 70
    assert_same((positions, features, values), encode_reference(x, w, bias, threshold))


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4, 0)], ids=str)
def test_nothing_to_encode(path, shape):  # noqa: F811
    assert [len(part) for part in encode(*inputs(*shape))] == [0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_contiguous(path, dtype):  # noqa: F811
    x, w, bias, threshold = inputs(6, 12, 40, dtype)
    expected = encode_reference(x, w, bias, threshold)
    wide = torch.randn(12, 83, device=DEVICE).to(dtype)
    wide[:, 1:81:2] = w
    every_second = torch.full((80,), torch.nan, device=DEVICE)
    every_second[::2] = bias
    assert_same(encode(x, w.T.contiguous().T, bias, threshold), expected)
    assert_same(encode(x.T.contiguous().T, wide[:, 1:81:2], every_second[::2], threshold), expected)


def test_permuting_features_permutes_the_result(path):  # noqa: F811
    x, w, bias, threshold = inputs(6, 12, 40)
    order = torch.randperm(40, device=DEVICE)

    def dense(entries: tuple[Tensor, ...]) -> Tensor:
        out = torch.zeros(6, 40, device=DEVICE)
        out[entries[0], entries[1]] = entries[2]
        return out

    permuted = dense(encode(x, w[:, order], bias[order], threshold[order]))
    assert torch.equal(permuted, dense(encode(x, w, bias, threshold))[:, order])


def test_two_runs_and_two_batches_agree(path):  # noqa: F811
    x, w = torch.randn(20, 50, device=DEVICE), torch.randn(50, 70, device=DEVICE)
    bias, threshold = torch.randn(70, device=DEVICE), torch.rand(70, device=DEVICE)
    first = encode(x, w, bias, threshold)
    assert_same(encode(x, w, bias, threshold), first)
    halves = [encode(half, w, bias, threshold) for half in x.split(10)]
    in_first = first[0] < 10
    assert_close(halves[0][2], first[2][in_first])
    assert_close(halves[1][2], first[2][~in_first])


@pytest.mark.parametrize("k", [None, 1, 5, 20])
def test_tiles_do_not_show(monkeypatch, k):
    x, w, bias, threshold = inputs(6, 12, 300)
    expected = encode_reference(x, w, bias, threshold, k)
    module = importlib.import_module("crosstrace.kernels.encoding")
    monkeypatch.setattr(module, "TILE_ELEMENTS", 1)
    monkeypatch.setattr(module, "TILE_FEATURES", 7)
    assert_same(encode(x, w, bias, threshold, k), expected)


@pytest.mark.parametrize("level", [-torch.inf, 0.0, 6.0], ids=["top k", "top k of a ReLU", "top k of a JumpReLU"])
@pytest.mark.parametrize("k", [1, 4, 130, 500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_top_k_equals_the_reference(path, level, k, dtype):  # noqa: F811
    x, w, bias, threshold = inputs(17, 40, 130, dtype)
    threshold = torch.full_like(threshold, level)
    assert_same(encode(x, w, bias, threshold, k), encode_reference(x, w, bias, threshold, k))


def test_top_k_keeps_the_largest_also_where_they_are_negative(path):  # noqa: F811
    x, w = torch.randn(9, 50, device=DEVICE), torch.randn(50, 70, device=DEVICE)
    bias = torch.randn(70, device=DEVICE) - 25
    largest = (x @ w + bias).topk(6, dim=1)
    assert (largest.values < 0).any()
    positions, features, values = encode(x, w, bias, torch.full((70,), -torch.inf, device=DEVICE), 6)
    assert torch.equal(positions, torch.arange(9, device=DEVICE).repeat_interleave(6))
    features_pk, order_pk = largest.indices.sort(dim=1)
    assert torch.equal(features.view(9, 6), features_pk)
    assert_close(values.view(9, 6), largest.values.gather(1, order_pk))


def test_of_equal_values_the_first_features_are_the_largest_and_zeros_are_not_active(path):  # noqa: F811
    none = torch.full((7,), -torch.inf, device=DEVICE)
    x, w = torch.ones(1, 1, device=DEVICE), torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0, 0.0, -1.0]], device=DEVICE)
    bias = torch.zeros(7, device=DEVICE)
    assert encode(x, w, bias, none, 3)[1].tolist() == [0, 1, 2]
    assert encode(x, w, bias, none, 6)[1].tolist() == [0, 1, 2, 3]  # the zeros take two of the six places
    assert encode(x, w, bias, none, 7)[1].tolist() == [0, 1, 2, 3, 6]


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4, 0)], ids=str)
def test_top_k_of_nothing(path, shape):  # noqa: F811
    assert [len(part) for part in encode(*inputs(*shape), 2)] == [0, 0, 0]


def test_top_k_of_no_features_is_refused():
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        encode(*inputs(3, 4, 5), 0)


@pytest.mark.parametrize("capacity", [1, 3, 64])
def test_a_slab_that_overflows_is_filled_again(path, capacity):  # noqa: F811
    if path != "triton":
        pytest.skip("slabs belong to the Triton kernel")
    from crosstrace.kernels.encoding_triton import encode_triton

    arguments = inputs(5, 8, 70)
    assert_same(encode_triton(*arguments, capacity=capacity), encode_reference(*arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_pd": torch.zeros(3)}, r"x_pd has shape \(3,\); expected \(P, D\)"),
        ({"w_enc_df": torch.zeros(5, 6)}, r"w_enc_df has shape \(5, 6\); expected \(4, F\)"),
        ({"b_enc_f": torch.zeros(7)}, r"b_enc_f has shape \(7,\); expected \(6,\)"),
        ({"threshold_f": torch.zeros(6, 1)}, r"threshold_f has shape \(6, 1\); expected \(6,\)"),
        (
            {"w_enc_df": torch.zeros(4, 6, dtype=torch.int8)},
            r"w_enc_df of shape \(4, 6\) has dtype torch.int8; expected",
        ),
        ({"x_pd": torch.zeros(3, 4, dtype=torch.float64)}, r"x_pd of shape \(3, 4\) has dtype torch.float64; expected"),
        ({"b_enc_f": torch.zeros(6, device="meta")}, r"b_enc_f of shape \(6,\) is on meta; expected cpu"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_bad_input(change, message):
    arguments = {
        "x_pd": torch.zeros(3, 4),
        "w_enc_df": torch.zeros(4, 6),
        "b_enc_f": torch.zeros(6),
        "threshold_f": torch.zeros(6),
    }
    with pytest.raises(ValueError, match=message) as raised:
        encode(**(arguments | change))
    assert "\n" not in str(raised.value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_at_moderate_size(dtype):
    x, w = torch.randn(200, 640, device="cuda"), torch.randn(640, 10_080, device="cuda").to(dtype)
    bias, threshold = torch.zeros(10_080, device="cuda"), torch.full((10_080,), 60.0, device="cuda")
    h_pf = x.double() @ w.double()
    positions, features, values = encode(x, w, bias, threshold)
    found = torch.zeros_like(h_pf, dtype=torch.bool)
    found[positions, features] = True
    clear = (h_pf - 60).abs() > 1e-2  # compared with a margin: rounding may move what lies on the threshold
    assert torch.equal(found[clear], (h_pf > 60)[clear])
    torch.testing.assert_close(values.double(), h_pf[positions, features], rtol=1e-4, atol=1e-3)
