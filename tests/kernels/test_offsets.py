"""Offsets past 32 bits: rows, gradients and encoders that lie further apart than 2^31 elements.

Address space is reserved, not memory: only the pages that hold the few rows are ever touched.
"""

from __future__ import annotations

import mmap
import sys

import pytest
import torch
from kernel_samples import DEVICE, assert_close, path, strict  # noqa: F401

from crosstrace.kernels import (
    AdamStep,
    RowMoments,
    SparseActivations,
    adam_rows,
    decode,
    decode_backward_adam,
    decode_backward_reference,
    encode,
    encode_reference,
    scores,
)
from crosstrace.kernels.decoding import decode_reference
from crosstrace.kernels.scoring import scores_reference

FAR = 2**31 + 64  # elements from one row to the next

pytestmark = pytest.mark.skipif(
    DEVICE.type != "cpu" or sys.platform != "linux", reason="reserves pages of Linux's memory"
)
MAP_NORESERVE = 0x4000  # Linux's; in Python's mmap from 3.13 on


def reserved(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    storage = torch.frombuffer(mmap.mmap(-1, extent * dtype.itemsize, flags=flags), dtype=dtype)
    return storage.as_strided(shape, stride).copy_(torch.randn(shape))


def few() -> SparseActivations:
    indices = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 0]])
    return SparseActivations.from_indices(indices, torch.rand(4) + 0.5, 2, 2)


@pytest.mark.parametrize("indexed", [True, False], ids=["shared rows", "own rows"])
def test_decoder_rows(path, indexed):  # noqa: F811
    acts = few()
    counts = (2, 1) if indexed else (3, 1)
    rows = [reserved((count, 2 - layer, 16), (FAR, 16, 1), torch.bfloat16) for layer, count in enumerate(counts)]
    index = [acts.features[acts.layer(layer)] for layer in range(2)] if indexed else None
    near = [row.contiguous() for row in rows]
    gradient = torch.randn(2, 2, 2, 16)
    assert_close(decode(acts, rows, index), decode_reference(acts, near, index))
    assert_close(scores(acts, rows, gradient, index), scores_reference(acts, near, gradient, index))


@pytest.mark.parametrize("stride", [(FAR, 32, 16, 1), (32, FAR, 16, 1)], ids=["targets", "positions"])
def test_gradients(path, stride):  # noqa: F811
    acts = few()
    rows = [torch.randn(3, 2, 16), torch.randn(1, 1, 16)]
    gradient = reserved((2, 2, 2, 16), stride, torch.float32)
    assert_close(scores(acts, rows, gradient), scores_reference(acts, rows, gradient.contiguous()))


@pytest.mark.parametrize("stride", [(FAR, 1), (1, FAR)], ids=["d_model", "features"])
def test_encoder(path, stride):  # noqa: F811
    x, w = torch.randn(2, 3), reserved((3, 3), stride, torch.float16)
    bias, threshold = torch.zeros(3), torch.full((3,), -1e3)
    actual, expected = encode(x, w, bias, threshold), encode_reference(x, w.contiguous(), bias, threshold)
    assert torch.equal(torch.stack(actual[:2]), torch.stack(expected[:2]))
    assert_close(actual[2], expected[2])


@pytest.mark.parametrize("stride", [(FAR, 16, 1), (16, FAR, 1)], ids=["features", "targets"])
def test_updates(path, stride):  # noqa: F811
    acts, adam = few(), AdamStep(0.1)
    rows = [reserved((2, 2 - layer, 16), stride, torch.float32) for layer in range(2)]
    near = [row.clone(memory_format=torch.contiguous_format) for row in rows]  # contiguous() may be the row itself
    steps = torch.zeros(2, dtype=torch.int32)
    states = [[reserved(tuple(row.shape), stride, torch.float32).zero_() for _ in range(2)] for row in rows]
    moments = [RowMoments(first, second, steps.clone()) for first, second in states]
    gradient = reserved((2, 2, 16), (16, FAR, 1), torch.float32)
    expected, touched = decode_backward_reference(acts, near, gradient.contiguous())
    for row, gradients in zip(near, touched, strict=True):
        adam_rows(row, gradients, RowMoments.zeros_like(row), adam)
    assert_close(decode_backward_adam(acts, rows, gradient, moments, adam), expected)
    for row, wanted in zip(rows, near, strict=True):
        assert_close(row.contiguous(), wanted)
