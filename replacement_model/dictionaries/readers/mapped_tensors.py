"""A safetensors file, read piece by piece.

There are two ways in. A whole tensor comes as a view of the mapped file: pages are read when they are touched and belong
to the page cache; they count as resident memory until the tensor is dropped, so each call maps the file anew and nothing
keeps it. Scattered rows are read with positioned reads into a new tensor: no page of the file is mapped, so memory holds
only the rows, and neighbouring rows take one read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.weight_files import mapped, not_finite

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Rows with gaps up to this size between them are read in one go: skipping costs more than reading the gap.
_GAP_BYTES = 16 * 2**10
# A run longer than this is read in pieces.
_RUN_BYTES = 16 * 2**20


class TensorFile:
    """A safetensors file, checked when opened.

    Attributes:
        path: The file.
        keys: The names of its tensors.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: It is empty, cut short, a Git LFS pointer or not a safetensors file; the file is named.
        """
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: file is missing")
        with mapped(path) as file:
            self.keys = set(file.keys())
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            self._header: dict[str, Any] = json.loads(raw.read(length))
        self._data_start = 8 + length

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header alone.

        Raises:
            ValueError: The tensor is missing.
        """
        return tuple(self._entry(key)["shape"])

    def dtype(self, key: str) -> torch.dtype:
        """Return the dtype of a tensor, from the header alone.

        Raises:
            ValueError: The tensor is missing, or stored in a dtype that is not supported.
        """
        stored = self._entry(key)["dtype"]
        if stored not in _DTYPES:
            raise ValueError(f"{self.path}: {key} is stored as {stored}; supported: {', '.join(_DTYPES)}")
        return _DTYPES[stored]

    def check(self, key: str, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """Return a tensor's shape, checked against the expected one (None: any size).

        Raises:
            ValueError: The shape does not fit; file, key and both shapes are named.
        """
        found = self.shape(key)
        if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{self.path}: {key} has shape {found}; expected ({wanted})")
        return found

    def get(self, key: str, shape: tuple[int | None, ...], unread: bool = False) -> Tensor:
        """Return a tensor as a view of the mapped file, which stays mapped as long as the tensor lives.

        Args:
            key: The tensor.
            shape: Its expected shape, None for any size.
            unread: Whether to leave the values unread, and so unchecked, until the view is used.

        Raises:
            ValueError: The tensor is missing, has another shape or an unsupported dtype, or holds NaN or infinity.
        """
        self.check(key, shape)
        self.dtype(key)
        with mapped(self.path) as file:
            tensor = file.get_tensor(key)
        if not unread:
            self._check_finite(key, tensor)
        return tensor

    def whole_number(self, key: str) -> int:
        """Return a tensor that holds one whole number.

        Raises:
            ValueError: The tensor is missing or holds anything else.
        """
        self._entry(key)
        with mapped(self.path) as file:
            tensor = file.get_tensor(key)
        if tensor.numel() != 1 or tensor.item() != int(tensor.item()):
            raise ValueError(f"{self.path}: {key} is {tensor.tolist()}; expected one whole number")
        return int(tensor.item())

    def check_keys(self, needed: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Refuse a file that lacks a tensor or has one that nothing would read.

        Raises:
            ValueError: Names the file and the tensor.
        """
        needed, optional = list(needed), list(optional)
        for key in needed:
            self._entry(key)
        if unknown := self.keys.difference(needed, optional):  # left out in silence, every edge might be wrong
            expected = ", ".join(needed) + "".join(f", [{key}]" for key in optional)
            raise ValueError(f"{self.path}: tensor {min(unknown)} is not known in such a file; expected {expected}")

    def _check_finite(self, key: str, tensor: Tensor) -> None:
        if what := not_finite(tensor):
            raise ValueError(f"{self.path}: {key} holds {what}; the file is damaged or its training diverged")

    def rows(self, key: str, shape: tuple[int | None, ...], indices_n: Tensor, first_column: int = 0) -> Tensor:
        """Read some rows of a tensor without mapping it.

        Args:
            key: The tensor.
            shape: Its expected shape, None for any size.
            indices_n: (n,) int64 in any order, repeated or not; each row is read once.
            first_column: Leave out what lies before it in each row's first dimension.

        Returns:
            (n, columns - first_column, ...) in the stored dtype.

        Raises:
            ValueError: The tensor is missing, has another shape, changes while it is read, or holds NaN or infinity in
                these rows.
        """
        found, dtype = self.check(key, shape), self.dtype(key)
        distinct_n, where_n = np.unique(indices_n.cpu().numpy(), return_inverse=True)
        row_bytes = int(np.prod(found[1:], dtype=np.int64)) * dtype.itemsize
        skipped = first_column * (row_bytes // max(found[1], 1)) if len(found) > 1 else 0
        wanted = row_bytes - skipped
        rows = torch.empty(len(distinct_n), found[1] - first_column, *found[2:], dtype=dtype)
        target = rows.view(torch.uint8).numpy().reshape(len(distinct_n), wanted) if rows.numel() else None
        if target is not None:
            base = self._data_start + self._entry(key)["data_offsets"][0] + skipped
            with self.path.open("rb", buffering=0) as file:
                for start, stop in _runs(distinct_n, row_bytes, wanted):
                    self._read_run(file.fileno(), target[start:stop], distinct_n[start:stop], base, row_bytes)
        self._check_finite(key, rows)
        if len(where_n) == len(distinct_n) and bool((where_n[1:] > where_n[:-1]).all()):
            return rows
        return rows[torch.from_numpy(where_n)]

    def _read_run(self, file: int, target: np.ndarray, features: np.ndarray, base: int, row_bytes: int) -> None:
        """Read rows that lie near each other in one positioned read, straight into place if they are neighbours."""
        first, wanted = int(features[0]), target.shape[1]
        span = (int(features[-1]) - first) * row_bytes + wanted
        if span == target.size:
            self._read(file, target.reshape(-1).data, base + first * row_bytes)
            return
        buffer = np.empty(span, dtype=np.uint8)
        self._read(file, buffer.data, base + first * row_bytes)
        for row, feature in zip(target, (features - first) * row_bytes, strict=True):
            row[:] = buffer[feature : feature + wanted]

    def _read(self, file: int, target: memoryview, offset: int) -> None:
        while len(target):
            count = os.preadv(file, [target], offset)
            if not count:
                raise ValueError(f"{self.path}: ended early; was it changed while it was read?")
            target, offset = target[count:], offset + count

    def _entry(self, key: str) -> dict[str, Any]:
        if key not in self.keys:
            raise ValueError(
                f"{self.path}: tensor {key} is missing; the file has {', '.join(sorted(self.keys)) or 'no tensors'}"
            )
        return self._header[key]


def _runs(features: np.ndarray, row_bytes: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Split ascending features into runs worth one read each."""
    gaps = np.diff(features) * row_bytes - wanted
    # A row that is read in part leaves a gap even to its neighbour; a fifth more bytes is worth saving a read.
    near = gaps <= max(_GAP_BYTES, wanted // 5)
    most = max(1, _RUN_BYTES // row_bytes)
    start = 0
    for at in range(1, len(features) + 1):
        if at == len(features) or not near[at - 1] or at - start >= most:
            yield start, at
            start = at
