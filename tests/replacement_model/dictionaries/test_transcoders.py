"""Transcoders in use: reconstruction against the dense definition, dtypes, laziness."""

from __future__ import annotations

import pytest
import torch
from cases import Case

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model import Transcoders, open_transcoders

CPU = torch.device("cpu")


@pytest.fixture
def inputs_lpd(case: Case) -> torch.Tensor:
    reader = open_transcoders(case.transcoders)
    return torch.randn(reader.n_layers, 9, reader.d_model, generator=torch.Generator().manual_seed(3))


def dense_reconstruction(transcoders: Transcoders, inputs_lpd: torch.Tensor, first: int) -> torch.Tensor:
    reader = transcoders.reader
    out = torch.zeros(inputs_lpd.shape, dtype=torch.float64)
    for layer, x in enumerate(inputs_lpd.double()):
        encoder = reader.encoder(layer)
        h = x @ encoder.w_enc_df.double() + encoder.b_enc_f
        a = h * (h > encoder.threshold_f)
        a[:first] = 0
        for j, w_dec in enumerate(reader.decoder_rows(layer, torch.arange(h.shape[1])).double().unbind(1)):
            out[layer + j] += a @ w_dec
        if (skip := reader.skip(layer)) is not None:
            out[layer] += x @ skip.double()
        out[layer] += reader.bias(layer)
    return out


def encode_all(transcoders: Transcoders, inputs_lpd: torch.Tensor, first: int) -> SparseActivations:
    layers = [transcoders.encode(layer, x, first) for layer, x in enumerate(inputs_lpd)]
    return SparseActivations.from_layers(layers, inputs_lpd.shape[1])


def test_reconstruction_is_the_dense_one(case, inputs_lpd):
    transcoders = Transcoders(open_transcoders(case.transcoders), CPU)
    activations = encode_all(transcoders, inputs_lpd, 1)
    found = transcoders.reconstruct(activations, transcoders.decoder_rows_of(activations), inputs_lpd)
    expected = dense_reconstruction(transcoders, inputs_lpd, 1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_writing_layer_by_layer_is_writing_at_once(case, inputs_lpd):
    transcoders = Transcoders(open_transcoders(case.transcoders), CPU)
    activations = encode_all(transcoders, inputs_lpd, 1)
    at_once = transcoders.reconstruct(activations, transcoders.decoder_rows_of(activations), inputs_lpd)
    written = torch.zeros_like(at_once)
    for layer, x in enumerate(inputs_lpd):
        transcoders.write(layer, transcoders.encode(layer, x, 1), written)
        written[layer] += transcoders.affine(layer, x)
    torch.testing.assert_close(written, at_once, rtol=1e-5, atol=1e-5)


def test_excluded_positions_carry_no_features(case, inputs_lpd):
    transcoders = Transcoders(open_transcoders(case.transcoders), CPU)
    for first in (0, 1, 4, 9):
        positions, _, _ = transcoders.encode(1, inputs_lpd[1], first)
        assert (positions >= first).all()
    assert len(transcoders.encode(1, inputs_lpd[1], 9)[0]) == 0


def test_dtype_is_of_matrices_only(case):
    transcoders = Transcoders(open_transcoders(case.transcoders), CPU, torch.bfloat16)
    encoder = transcoders.encoder(0)
    assert encoder.w_enc_df.dtype == torch.bfloat16
    assert encoder.b_enc_f.dtype == encoder.threshold_f.dtype == transcoders.bias(0).dtype == torch.float32
    assert transcoders.decoder_rows(0, torch.tensor([1])).dtype == torch.bfloat16


def test_each_decoder_row_is_read_once_however_often_it_fires(case, monkeypatch):
    transcoders = Transcoders(open_transcoders(case.transcoders), CPU)
    asked = []
    read = transcoders.reader.decoder_rows
    monkeypatch.setattr(
        transcoders.reader, "decoder_rows", lambda layer, f: (asked.append(f.tolist()), read(layer, f))[1]
    )
    rows = transcoders.decoder_rows(0, torch.tensor([4, 2, 4, 4]))
    assert asked == [[2, 4]]
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], read(0, torch.tensor([2]))[0])
