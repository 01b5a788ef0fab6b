"""What the Triton kernels share: tables of decoder rows, and products of float32 with narrow weights.

Imported only where Triton runs. Letters: L layers, D d_model, J layers a feature writes to, U stored decoder rows.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosstrace.kernels.dispatch import triton_interpreted

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def dot_narrow(x, w, acc, N_PARTS: tl.constexpr, PRECISION: tl.constexpr, IN_FLOAT: tl.constexpr):
    """Compute acc + x @ w with x of any float type.

    With N_PARTS = 0 both are float32 and multiplied in PRECISION. Otherwise w is bfloat16 and x is cut into N_PARTS
    bfloat16 parts, each the rounding of what remains: three hold all 24 bits of a float32, so that the products are exact
    at tensor-core rate. IN_FLOAT multiplies the same parts as float32, for the interpreter, whose bfloat16 products are
    wrong.
    """
    if N_PARTS == 0:
        acc = tl.dot(x.to(tl.float32), w.to(tl.float32), acc, input_precision=PRECISION)
    else:
        rest = x.to(tl.float32)
        for _ in tl.static_range(N_PARTS):
            part = rest.to(tl.bfloat16)
            rest -= part.to(tl.float32)
            if IN_FLOAT:
                acc = tl.dot(part.to(tl.float32), w.to(tl.float32), acc, input_precision="ieee")
            else:
                acc = tl.dot(part, w, acc)
    return acc


def dot_settings(x_dtype: torch.dtype, w_dtype: torch.dtype, exact: bool) -> dict[str, Any]:
    """Choose the constants of `dot_narrow`.

    Args:
        x_dtype: The dtype of x.
        w_dtype: The dtype of w.
        exact: Whether to keep float32 accuracy. If not, `torch.set_float32_matmul_precision` decides, as for torch's own
            products: `high` keeps two bfloat16 parts of a float32 factor, `medium` one.
    """
    level = "highest" if exact else torch.get_float32_matmul_precision()
    if w_dtype == torch.bfloat16:
        n_parts = 1 if x_dtype == torch.bfloat16 else {"highest": 3, "high": 2, "medium": 1}[level]
        return {"N_PARTS": n_parts, "PRECISION": "ieee", "IN_FLOAT": triton_interpreted()}
    narrow = torch.float32 not in (x_dtype, w_dtype)  # 16-bit factors fit tf32 as they are
    precision = "tf32" if narrow or level != "highest" else "tf32x3"
    return {"N_PARTS": 0, "PRECISION": precision, "IN_FLOAT": True}


def dot_warps(w_dtype: torch.dtype, capability: tuple[int, int]) -> int:
    """Choose the warps of a program whose products `dot_narrow` makes of tiles 64 rows high.

    From Hopper on four warps are one group of the tensor cores, and take a third to two thirds of the time of eight
    (docs/kernels.md). Before it, products of float32 factors need more registers than four warps have.

    Args:
        w_dtype: The dtype of the weights.
        capability: The GPU's compute capability.
    """
    return 4 if w_dtype == torch.bfloat16 or capability >= (9, 0) else 8


def capability_of(device: torch.device) -> tuple[int, int]:
    """Return a GPU's compute capability; that of the CPU, in the interpreter, is (0, 0)."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@dataclass(frozen=True)
class RowTable:
    """The addresses of the decoder rows of every layer, so that one launch reads all of them.

    Attributes:
        layers: (L, 4) int64 on the device: address, elements from one row to the next, layers written J, elements from one
            layer of a row to the next.
        aligned: Whether every layer of every row starts on a multiple of 16 bytes.
        flat: Whether every row is one contiguous run.
        row_indices: (N,) int64 row of each entry in its layer, or None.
        rows: The rows, contiguous within each; kept alive until the launch is queued.
        dtype: Their dtype.
    """

    layers: Tensor
    aligned: bool
    flat: bool
    row_indices: Tensor | None
    rows: list[Tensor]
    dtype: torch.dtype


def row_table(rows_ujd: Sequence[Tensor], row_indices: Sequence[Tensor] | None, strided: bool = False) -> RowTable:
    """Make the table.

    Args:
        rows_ujd: The rows of each layer. Views such as w_dec[:, l:] are used in place, others copied.
        row_indices: As for `decode`.
        strided: Whether the kernel takes rows whose layers lie apart. If not, a row is read as one run of J * D.
    """
    rows = [layer if flat(layer, strided) else layer.contiguous() for layer in rows_ujd]
    size, d_model = rows[0].element_size(), rows[0].shape[2]
    entries = [(layer.data_ptr(), layer.stride(0), layer.shape[1], layer.stride(1)) for layer in rows]
    steps = [step for address, row, _, step in entries for step in (address, row * size, step * size)]
    device = rows[0].device
    return RowTable(
        torch.tensor(entries, dtype=torch.int64).to(device),
        all(step % 16 == 0 for step in (*steps, d_model * size)),
        all(flat(layer) for layer in rows),
        None if row_indices is None else torch.cat(list(row_indices)),
        rows,
        rows[0].dtype,
    )


def flat(rows_ujd: Tensor, strided: bool = False) -> bool:
    """Say whether the last two dimensions of a tensor are one contiguous run, or with `strided` the last one."""
    n_written, d_model = rows_ujd.shape[-2:]
    apart = not strided and n_written > 1 and rows_ujd.stride(-2) != d_model
    return (d_model == 1 or rows_ujd.stride(-1) == 1) and not apart


def launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Make the tensors' GPU the current one, on which Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def power_of_two(n: int, lowest: int, highest: int) -> int:
    """Return the smallest power of two that is at least n, within bounds."""
    return max(lowest, min(highest, triton.next_power_of_2(max(n, 1))))
