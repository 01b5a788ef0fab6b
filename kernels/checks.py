"""Checks of arguments. Each raises a one-line `ValueError`: the argument, what it is, what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.kernels.activations import SparseActivations

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """Check a shape.

    Args:
        name: The argument, for the message.
        tensor: Its value.
        expected: Sizes, with letters where any size is allowed.

    Raises:
        ValueError: The shape differs.
    """
    fits = tensor.ndim == len(expected) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(tensor.shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in expected) + ("," if len(expected) == 1 else "")
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected ({wanted})")


def check_float(name: str, tensor: Tensor, device: torch.device, dtypes: Sequence[torch.dtype] = FLOAT_DTYPES) -> None:
    """Check for one of some floating-point dtypes on a device.

    Raises:
        ValueError: Dtype or device differs.
    """
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} has dtype {tensor.dtype}; expected {names}")
    if tensor.device != device:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is on {tensor.device}; expected {device}")


def check_index(name: str, tensor: Tensor, shape: Sequence[int | str], device: torch.device) -> None:
    """Check for an int64 tensor of a shape, as in `check_shape`, on a device.

    Raises:
        ValueError: Shape, dtype or device differs.
    """
    check_shape(name, tensor, shape)
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} has dtype {tensor.dtype}; expected int64")
    if tensor.device != device:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is on {tensor.device}; expected {device}")


def check_rows(
    activations: SparseActivations, rows_ujd: Sequence[Tensor], row_indices: Sequence[Tensor] | None
) -> tuple[int, torch.dtype]:
    """Check that decoder rows fit the activations.

    Args:
        activations: N active entries.
        rows_ujd: The rows of each source layer, as for `crosstrace.kernels.decode`.
        row_indices: The row of each entry, likewise.

    Returns:
        The d_model and dtype of the rows; 0 and float32 for a model without layers.

    Raises:
        ValueError: A number of layers, a shape, dtype or device differs, or an index is out of range.
    """
    n_layers, device = activations.n_layers, activations.device
    if len(rows_ujd) != n_layers:
        raise ValueError(f"rows_ujd has {len(rows_ujd)} layers; expected {n_layers}, as in activations")
    if row_indices is not None and len(row_indices) != n_layers:
        raise ValueError(f"row_indices has {len(row_indices)} layers; expected {n_layers}, as in activations")
    if not n_layers:
        return 0, torch.float32
    d_model, dtype = rows_ujd[0].shape[-1] if rows_ujd[0].ndim else 0, rows_ujd[0].dtype
    n_entries = activations.layer_offsets.diff().tolist()
    for layer, rows in enumerate(rows_ujd):
        name = f"rows_ujd[{layer}]"
        check_shape(name, rows, ("n" if row_indices is not None else n_entries[layer], "J", d_model))
        check_float(name, rows, device)
        if rows.dtype != dtype:
            raise ValueError(f"{name} has dtype {rows.dtype}; expected {dtype}, as rows_ujd[0]")
        if not 1 <= rows.shape[1] <= n_layers - layer:
            raise ValueError(
                f"{name} of shape {tuple(rows.shape)} writes to {rows.shape[1]} layers from layer {layer} on; "
                f"expected 1 to {n_layers - layer}, as the model has {n_layers}"
            )
        if row_indices is not None:
            check_row_index(f"row_indices[{layer}]", row_indices[layer], n_entries[layer], rows)
    return d_model, dtype


def check_row_index(name: str, index_n: Tensor, n_entries: int, rows_ujd: Tensor) -> None:
    """Check indices of rows. Their range is checked only on the CPU, because on a GPU that would wait for the device.

    Raises:
        ValueError: Shape, dtype or device differs, or an index is out of range.
    """
    check_index(name, index_n, (n_entries,), rows_ujd.device)
    if n_entries and rows_ujd.device.type == "cpu":
        lowest, highest = (int(bound) for bound in index_n.aminmax())
        if lowest < 0 or highest >= rows_ujd.shape[0]:
            raise ValueError(f"{name} holds {lowest} to {highest}; expected 0 to {rows_ujd.shape[0] - 1}")
