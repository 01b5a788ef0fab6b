"""Which path is taken, and what is said where one cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from kernel_samples import Sizes, assert_close, sample, strict  # noqa: F401

from crosstrace.kernels import decode, encode, scores
from crosstrace.kernels.dispatch import PATHS, VARIABLE, choose_path, decode_densely, triton_interpreted

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_by_device(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("crosstrace.kernels.dispatch.triton_installed", lambda: True)
    assert choose_path("encode", CPU) == "torch"
    assert choose_path("encode", CUDA) == "triton"
    assert choose_path("encode", torch.device("mps")) == "torch"
    monkeypatch.setattr("crosstrace.kernels.dispatch.triton_installed", lambda: False)
    assert choose_path("encode", CUDA) == "torch"


@pytest.mark.parametrize("wanted", ["torch", "reference"])
def test_by_name(monkeypatch, wanted):
    monkeypatch.setenv(VARIABLE, wanted)
    assert choose_path("encode", CPU) == wanted
    assert choose_path("encode", CUDA) == wanted


def test_a_name_that_is_none(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(
        ValueError, match=r"^CROSSTRACE_KERNELS is 'fast'; expected one of auto, torch, compiled, triton, reference$"
    ):
        choose_path("encode", CPU)


def test_compiled_loops_in_training_and_for_much_work(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("crosstrace.kernels.dispatch.numba_installed", lambda: True)
    assert choose_path("decode_backward", CPU) == "compiled"
    assert choose_path("decode", CPU, 1 << 30) == "compiled"
    assert choose_path("decode", CPU, 1 << 20) == "torch"
    assert choose_path("scores", CPU) == "torch"
    assert choose_path("decode_backward", torch.device("mps")) == "torch"
    monkeypatch.setenv(VARIABLE, "compiled")
    assert choose_path("decode", CPU, 1) == "compiled"
    assert choose_path("scores", CPU) == "torch"
    monkeypatch.setattr("crosstrace.kernels.dispatch.numba_installed", lambda: False)
    with pytest.raises(ValueError, match=r"numba is not installed; .* or: pip install 'crosstrace\[train\]'"):
        choose_path("decode", CPU, 1)
    monkeypatch.delenv(VARIABLE)
    assert choose_path("decode_backward", CPU) == "torch"


def test_triton_where_it_cannot_run(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.setattr("crosstrace.kernels.dispatch.triton_interpreted", lambda: False)
    monkeypatch.setattr("crosstrace.kernels.dispatch.triton_installed", lambda: True)
    assert choose_path("scores", CUDA) == "triton"
    drawn, gradient = sample(Sizes()), torch.zeros(1, 5, 3, 24)
    zeros = torch.zeros(4)
    if not torch.cuda.is_available():
        for operation, call in (
            ("encode", lambda: encode(torch.zeros(3, 4), torch.zeros(4, 4), zeros, zeros)),
            ("decode", lambda: decode(drawn.activations, drawn.rows_njd)),
            ("scores", lambda: scores(drawn.activations, drawn.rows_njd, gradient)),
        ):
            with pytest.raises(ValueError, match=f"=triton, but {operation} was given tensors on cpu; expected cuda"):
                call()
    monkeypatch.setattr("crosstrace.kernels.dispatch.triton_installed", lambda: False)
    with pytest.raises(ValueError, match=r"triton is not installed; expected auto or torch"):
        choose_path("scores", CUDA)


@pytest.mark.parametrize("wanted", [path for path in PATHS if path != "triton" or triton_interpreted()])
def test_every_path_gives_the_same(monkeypatch, wanted):
    drawn, gradient = sample(Sizes()), torch.randn(2, 5, 3, 24)
    drawn.decoders_fjd = [decoder.cpu() for decoder in drawn.decoders_fjd]
    monkeypatch.setenv(VARIABLE, "reference")
    if drawn.activations.device != CPU:
        pytest.skip("compares paths on the CPU; the others' tests run on the GPU")
    expected = decode(drawn.activations, drawn.rows_njd), scores(drawn.activations, drawn.rows_njd, gradient)
    monkeypatch.setenv(VARIABLE, wanted)
    for got, want in zip(
        (decode(drawn.activations, drawn.rows_njd), scores(drawn.activations, drawn.rows_njd, gradient)),
        expected,
        strict=True,
    ):
        assert_close(got, want)


def test_density(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert decode_densely(CPU, torch.float32, n_entries=500, n_positions=100, n_rows=10)
    assert not decode_densely(CPU, torch.float32, n_entries=5, n_positions=100, n_rows=1000)
    assert not decode_densely(
        CPU, torch.float32, n_entries=10, n_positions=1, n_rows=10
    )  # one product of a vector is both
    monkeypatch.setenv(VARIABLE, "triton")
    assert not decode_densely(CPU, torch.float32, n_entries=500, n_positions=100, n_rows=10)


def test_import_needs_no_triton():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, crosstrace.kernels as k\n"
        "a = k.SparseActivations.from_indices(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1), 1, 1)\n"
        "print(k.decode(a, [torch.ones(1, 1, 2)]).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (out.returncode, out.stdout.strip()) == (0, "[[[1.0, 1.0]]]"), out.stderr
    script = "import crosstrace.kernels, sys; print('triton' in sys.modules)"
    lazy = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    plain = subprocess.run(
        [sys.executable, "-c", script.replace("crosstrace.kernels", "torch")], capture_output=True, text=True
    )
    assert lazy.stdout == plain.stdout
