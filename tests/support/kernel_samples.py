"""Random inputs and paths for the kernel tests.

Triton's interpreter has to be asked for before Triton is first imported, which other tests do: the `triton` path joins
the others where there is a GPU or `TRITON_INTERPRET=1` is set, and `test_interpreter.py` starts such a run.

Letters: L layers, P positions, D d_model, F features of a layer, B target rows, J layers a feature writes to.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations
from crosstrace.kernels.dispatch import VARIABLE, numba_installed, triton_interpreted

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PATHS = [
    "torch",
    *(["compiled"] if DEVICE.type == "cpu" and numba_installed() else []),
    *(["triton"] if DEVICE.type == "cuda" or triton_interpreted() else []),
]
# In the interpreter, where a kernel takes a second, one narrow type stands for both.
DTYPES = [torch.float32, torch.bfloat16, *([] if triton_interpreted() else [torch.float16])]
# Weights are widened exactly and everything is summed in float32: one bound serves all dtypes.
TOLERANCE = 2e-5


@dataclass
class Sizes:
    """The sizes of a random model, in which a share of the features is active; cross-layer ones write to all later layers."""

    layers: int = 3
    positions: int = 5
    d_model: int = 24
    features: int = 19
    share: float = 0.2
    cross_layer: bool = True

    def __str__(self) -> str:
        kind = "clt" if self.cross_layer else "plt"
        return f"L{self.layers}P{self.positions}D{self.d_model}F{self.features}-{self.share}{kind}"


SIZES = [
    Sizes(),
    Sizes(1, 1, 1, 1, 1.0),
    Sizes(4, 3, 33, 40),
    Sizes(2, 17, 64, 5, 0.6),
    Sizes(3, 4, 8, 70, 1.0),
    Sizes(3, 4, 8, 6, 0.0),
    Sizes(4, 6, 16, 30, cross_layer=False),
]


@dataclass
class Sample:
    """The decoders of a model, L of (F, J, D), and its active features."""

    activations: SparseActivations
    decoders_fjd: list[Tensor]

    @property
    def row_indices(self) -> list[Tensor]:
        acts = self.activations
        return [acts.features[acts.layer(layer)] for layer in range(acts.n_layers)]

    @property
    def rows_njd(self) -> list[Tensor]:
        """One row per entry, as streamed from files."""
        return [decoder[index] for decoder, index in zip(self.decoders_fjd, self.row_indices, strict=True)]


def sample(sizes: Sizes, dtype: torch.dtype = torch.float32) -> Sample:
    """Draw a sample in which an active feature tends to be active at every position, as real ones do."""
    shape = (sizes.layers, sizes.positions, sizes.features)
    likely = torch.rand(sizes.layers, 1, sizes.features, device=DEVICE)
    active = torch.rand(shape, device=DEVICE) < (2 * likely * sizes.share if sizes.share < 1 else 1.0)
    indices = active.nonzero()
    values = torch.rand(len(indices), device=DEVICE) + 0.1
    activations = SparseActivations.from_indices(indices, values, sizes.layers, sizes.positions)
    decoders = [
        torch.randn(sizes.features, sizes.layers - layer if sizes.cross_layer else 1, sizes.d_model, device=DEVICE).to(
            dtype
        )
        for layer in range(sizes.layers)
    ]
    return Sample(activations, decoders)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare up to rounding, relative to the largest value; NaN and unwritten entries never pass."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = float(expected.abs().max().clamp(min=1.0)) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * scale)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each fast path in turn."""
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Draw new random inputs each time, with a seed that is printed if the test fails.

    `torch.empty` gives NaN (the largest integer for indices), so that an entry that nothing wrote is noticed. The tensors
    are tiny, so one thread is enough.
    """
    seed = random.SystemRandom().randrange(2**31)
    torch.manual_seed(seed)
    print(f"torch.manual_seed({seed})")
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_num_threads(threads)
