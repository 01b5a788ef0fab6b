"""The path of an operation: the one place that chooses between Triton, torch and the reference.

The environment variable `CROSSTRACE_KERNELS` overrides the choice:

- `auto` (default): Triton on a GPU, elsewhere torch, and compiled loops in training if numba is installed;
- `torch`: the fast torch path, on any device;
- `compiled`: loops compiled by numba, on the CPU, for the operations that have them; torch for the others;
- `triton`: the Triton kernels, on a GPU, or for tests on the CPU in Triton's interpreter (`TRITON_INTERPRET=1`);
- `reference`: the plain definitions, which are slow.
"""

from __future__ import annotations

import importlib.util
import os

import torch

VARIABLE = "CROSSTRACE_KERNELS"
PATHS = ("auto", "torch", "compiled", "triton", "reference")

# Those of training and of large batches, which are worth the import of numba and the compilation.
COMPILED = (
    "decode",
    "decode_layer",
    "decode_backward",
    "decode_layer_backward",
    "decode_backward_adam",
    "encode_backward",
    "encode_backward_adam",
)

# Multiplications from which on an operation outside training uses compiled loops: torch makes as many in a fifth of a second.
# A prompt's (18 million for 8 tokens of Gemma 3 270M) would not win back numba's import, which takes half a second.
LEAST_COMPILED_WORK = 1 << 28

# Above this share of active (position, row) pairs, decoding all pairs in one matrix product is faster; for (float32,
# narrower) weights. Measured, on an H100 too (docs/kernels.md).
DENSE_DECODE_DENSITY = {"cpu": (0.15, 0.08), "cuda": (0.03, 0.06)}
# On a GPU a dense product of few positions is bound by the rows' bytes: this over the positions is added to the share.
DENSE_DECODE_FEW = {"cpu": (0.0, 0.0), "cuda": (5.0, 17.0)}
# Below this many positions a dense product is bound by the weights' bytes too, and it reads all of them.
DENSE_DECODE_POSITIONS = 16


def choose_path(operation: str, device: torch.device, work: int = LEAST_COMPILED_WORK) -> str:
    """Choose the path of an operation.

    Args:
        operation: Its name.
        device: The device of its tensors.
        work: Multiplications, where an operation is used for small tasks too.

    Returns:
        `"torch"`, `"compiled"`, `"triton"` or `"reference"`.

    Raises:
        ValueError: `CROSSTRACE_KERNELS` is not a known path, or asks for Triton where it cannot run.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in PATHS:
        raise ValueError(f"{VARIABLE} is {wanted!r}; expected one of {', '.join(PATHS)}")
    if wanted == "auto":
        if device.type == "cuda" and triton_installed():
            return "triton"
        worth_it = operation in COMPILED and work >= LEAST_COMPILED_WORK
        return "compiled" if device.type == "cpu" and worth_it and numba_installed() else "torch"
    if wanted == "compiled":
        if not numba_installed():
            raise ValueError(
                f"{VARIABLE}=compiled, but numba is not installed; expected auto or torch for {operation}, "
                "or: pip install 'crosstrace[train]'"
            )
        return "compiled" if device.type == "cpu" and operation in COMPILED else "torch"
    if wanted == "triton":
        if not triton_installed():
            raise ValueError(f"{VARIABLE}=triton, but triton is not installed; expected auto or torch for {operation}")
        if device.type != "cuda" and not triton_interpreted():
            raise ValueError(
                f"{VARIABLE}=triton, but {operation} was given tensors on {device}; expected cuda "
                "(or TRITON_INTERPRET=1 before the start, for tests), or auto"
            )
    return wanted


def decode_densely(device: torch.device, dtype: torch.dtype, n_entries: int, n_positions: int, n_rows: int) -> bool:
    """Say whether one dense product decodes faster than the sparse path.

    Args:
        device: The device of the tensors.
        dtype: The dtype of the decoder rows.
        n_entries: The number of active entries.
        n_positions: The number of positions.
        n_rows: The number of distinct decoder rows.

    Returns:
        The choice; always False where `CROSSTRACE_KERNELS` is `triton`.
    """
    if os.environ.get(VARIABLE) == "triton":
        return False
    kind = device.type if device.type in DENSE_DECODE_DENSITY else "cpu"
    share, few = (table[kind][dtype != torch.float32] for table in (DENSE_DECODE_DENSITY, DENSE_DECODE_FEW))
    # share + few / positions, of all pairs
    return n_positions >= DENSE_DECODE_POSITIONS and n_entries > (share * n_positions + few) * n_rows


def triton_interpreted() -> bool:
    """Say whether Triton runs kernels in its interpreter, on the CPU; this is decided when Triton is first imported."""
    if not triton_installed():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret) if hasattr(triton, "knobs") else _set("TRITON_INTERPRET")


def _set(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() in ("1", "true", "yes", "on")


def numba_installed() -> bool:
    """Say whether numba can be imported."""
    return importlib.util.find_spec("numba") is not None


def triton_installed() -> bool:
    """Say whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None
