"""decode: every path against the definition."""

from __future__ import annotations

import importlib

import pytest
import torch
from kernel_samples import DEVICE, DTYPES, SIZES, Sizes, assert_close, path, sample, strict  # noqa: F401

from crosstrace.kernels import SparseActivations, decode, decode_layer, decode_reference
from crosstrace.kernels.decoding import decode_layer_dense, decode_layer_sparse
from crosstrace.kernels.dispatch import VARIABLE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_the_reference(path, sizes, dtype):  # noqa: F811
    drawn = sample(sizes, dtype)
    expected = decode_reference(drawn.activations, drawn.rows_njd)
    assert_close(decode(drawn.activations, drawn.rows_njd), expected)
    assert_close(decode(drawn.activations, drawn.decoders_fjd, drawn.row_indices), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", [decode_layer_sparse, decode_layer_dense])
def test_sparse_and_dense_agree(method, dtype):
    drawn = sample(Sizes(positions=20, share=0.4), dtype)
    entries = drawn.activations.layer(0)
    positions, values = drawn.activations.positions[entries], drawn.activations.values[entries]
    expected = decode_reference(drawn.activations, drawn.rows_njd)
    for layer in range(1, 3):
        other = drawn.activations.layer(layer)
        for position, value, row in zip(
            drawn.activations.positions[other], drawn.activations.values[other], drawn.rows_njd[layer], strict=True
        ):
            expected[layer:, position] -= value * row.float()
    for rows, index in ((drawn.rows_njd[0], None), (drawn.decoders_fjd[0], drawn.row_indices[0])):
        out = torch.zeros_like(expected)
        method(out, positions, values, rows, index)
        assert_close(out, expected)


def test_density_decides(monkeypatch):
    drawn = sample(Sizes(positions=20, share=1.0))
    called = []
    monkeypatch.delenv(VARIABLE, raising=False)
    module = importlib.import_module("crosstrace.kernels.decoding")
    monkeypatch.setattr(module, "decode_layer_dense", lambda *_: called.append("dense"))
    monkeypatch.setattr(module, "decode_layer_sparse", lambda *_: called.append("sparse"))
    monkeypatch.setattr(module, "choose_path", lambda *_: "torch")
    decode(drawn.activations, drawn.decoders_fjd, drawn.row_indices)
    assert called == ["dense"] * 3
    called.clear()
    decode(drawn.activations, drawn.rows_njd)  # rows of their own: each is used at one position of 20
    assert called == ["sparse"] * 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_by_layer_adds_up(path, dtype):  # noqa: F811
    drawn = sample(Sizes(), dtype)
    acts = drawn.activations
    start = torch.randn(3, 5, 24, device=DEVICE)
    for rows_of, indices in ((drawn.rows_njd, [None] * 3), (drawn.decoders_fjd, drawn.row_indices)):
        out = start.clone()
        for layer in range(3):
            entries = acts.layer(layer)
            decode_layer(out[layer:], acts.positions[entries], acts.values[entries], rows_of[layer], indices[layer])
        assert_close(out, start + decode_reference(acts, drawn.rows_njd))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_contiguous_rows(path, dtype):  # noqa: F811
    drawn = sample(Sizes(), dtype)
    expected = decode_reference(drawn.activations, drawn.rows_njd)
    stored = [torch.randn(19, 3, 24, device=DEVICE).to(dtype) for _ in range(3)]  # all layers stored, as in the files
    other_order = []
    for layer, decoder in enumerate(drawn.decoders_fjd):
        stored[layer][:, layer:] = decoder
        other_order.append(decoder.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    views = [decoder[:, layer:] for layer, decoder in enumerate(stored)]
    assert_close(decode(drawn.activations, views, drawn.row_indices), expected)
    assert_close(decode(drawn.activations, other_order, drawn.row_indices), expected)
    layer_major = [decoder.transpose(0, 1).contiguous().transpose(0, 1) for decoder in drawn.decoders_fjd]
    assert_close(decode(drawn.activations, layer_major, drawn.row_indices), expected)
    strided = [decoder[index] for decoder, index in zip(other_order, drawn.row_indices, strict=True)]
    assert_close(decode(drawn.activations, strided), expected)


def test_non_contiguous_output(path):  # noqa: F811
    drawn = sample(Sizes())
    entries = drawn.activations.layer(0)
    arguments = drawn.activations.positions[entries], drawn.activations.values[entries], drawn.rows_njd[0]
    plain = torch.zeros(3, 5, 24, device=DEVICE)
    decode_layer(plain, *arguments)
    for view in (
        torch.zeros(5, 3, 24, device=DEVICE).transpose(0, 1),
        torch.zeros(3, 24, 5, device=DEVICE).transpose(1, 2),
    ):
        decode_layer(view, *arguments)
        assert_close(view, plain)


def test_permuting_features_changes_nothing(path):  # noqa: F811
    drawn = sample(Sizes())
    acts, order = drawn.activations, torch.randperm(19, device=DEVICE)
    indices = acts.indices.clone()
    indices[:, 2] = torch.argsort(order)[indices[:, 2]]
    permuted = SparseActivations.from_indices(indices, acts.values, 3, 5)
    out = decode(
        permuted,
        [decoder[order] for decoder in drawn.decoders_fjd],
        [permuted.features[permuted.layer(layer)] for layer in range(3)],
    )
    assert_close(out, decode(acts, drawn.rows_njd))


def test_linear_and_repeatable(path):  # noqa: F811
    drawn = sample(Sizes(share=0.5))
    acts = drawn.activations

    def with_values(values):
        return SparseActivations(acts.positions, acts.features, values, acts.offsets, 3, 5)

    other = torch.randn_like(acts.values)
    once = decode(acts, drawn.rows_njd)
    assert torch.equal(decode(acts, drawn.rows_njd), once)
    mixed = decode(with_values(2 * acts.values - 3 * other), drawn.rows_njd)
    assert_close(mixed, 2 * once - 3 * decode(with_values(other), drawn.rows_njd))


def test_tiles_do_not_show(monkeypatch):
    drawn = sample(Sizes(share=0.8), torch.bfloat16)
    expected = decode_reference(drawn.activations, drawn.rows_njd)
    monkeypatch.setattr("crosstrace.kernels.decoder_tiles.TILE_ELEMENTS", 1)
    monkeypatch.setattr("crosstrace.kernels.decoder_tiles.TILE_ROWS", 2)
    assert_close(decode(drawn.activations, drawn.rows_njd), expected)
    assert_close(decode(drawn.activations, drawn.decoders_fjd, drawn.row_indices), expected)


def bad_rows():
    drawn = sample(Sizes())
    rows, index = drawn.decoders_fjd, drawn.row_indices
    far = [*index[:2], index[2] + 19]
    gpu = DEVICE.type == "cuda"
    return drawn.activations, [
        (rows[:2], index[:2], r"rows_ujd has 2 layers; expected 3"),
        (rows, index[:1], r"row_indices has 1 layers; expected 3"),
        (rows, None, r"rows_ujd\[\d\] has shape \(19, \d, 24\); expected \(\d+, J, 24\)"),
        ([*rows[:2], rows[1]], index, r"rows_ujd\[2\] of shape \(19, 2, 24\) writes to 2 layers .*expected 1 to 1"),
        ([*rows[:2], rows[2].half()], index, r"rows_ujd\[2\] has dtype torch.float16; expected torch.float32"),
        ([r.double() for r in rows], index, r"rows_ujd\[0\] of shape .* has dtype torch.float64; expected float32 or"),
        ([r.to("meta") for r in rows], index, r"rows_ujd\[0\] of shape .* is on meta; expected"),
        (rows, [i.int() for i in index], r"row_indices\[0\] of shape .* has dtype torch.int32; expected int64"),
        # On a GPU, indices are not looked at: that would wait for the device.
        *([(rows, far, r"row_indices\[2\] holds \d+ to \d+; expected 0 to 18")] * (len(index[2]) > 0 and not gpu)),
    ]


def test_bad_input():
    activations, wrong = bad_rows()
    for rows, index, message in wrong:
        with pytest.raises(ValueError, match=message) as raised:
            decode(activations, rows, index)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_jpd": torch.zeros(2, 3)}, r"out_jpd has shape \(2, 3\); expected \(J, P, D\)"),
        ({"out_jpd": torch.zeros(2, 3, 4).half()}, r"out_jpd of shape .* has dtype torch.float16; expected float32"),
        ({"positions_n": torch.zeros(5)}, r"positions_n of shape \(5,\) has dtype torch.float32; expected int64"),
        ({"values_n": torch.zeros(4)}, r"values_n has shape \(4,\); expected \(5,\)"),
        ({"rows_ujd": torch.zeros(5, 1, 4)}, r"rows_ujd has shape \(5, 1, 4\); expected \(5, 2, 4\)"),
        ({"row_index_n": torch.full((5,), 7)}, r"row_index_n holds 7 to 7; expected 0 to 4"),
    ],
    ids=["shape", "dtype", "index", "values", "rows", "range"],
)
def test_bad_layer_input(change, message):
    arguments = {
        "out_jpd": torch.zeros(2, 3, 4),
        "positions_n": torch.zeros(5, dtype=torch.int64),
        "values_n": torch.zeros(5),
        "rows_ujd": torch.zeros(5, 2, 4),
    }
    with pytest.raises(ValueError, match=message):
        decode_layer(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_at_moderate_size(dtype):
    drawn = sample(Sizes(6, 64, 640, 2000, 0.02), dtype)
    acts = drawn.activations
    out = decode(acts, drawn.decoders_fjd, drawn.row_indices)
    dense_lpf = acts.to_dense(2000).double()
    expected = torch.zeros(6, 64, 640, dtype=torch.float64, device="cuda")
    for layer, decoder in enumerate(drawn.decoders_fjd):
        expected[layer:] += torch.einsum("pf,fjd->jpd", dense_lpf[layer], decoder.double())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
