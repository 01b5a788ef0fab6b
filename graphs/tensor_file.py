"""Safetensors files, written tensor by tensor and read in place: neither end holds the whole file in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from crosstrace.graphs.files import write_atomically

_NAMES = {
    "BOOL": "|b1",
    "U8": "<u1",
    "I8": "<i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
_DTYPES = {np.dtype(code): name for name, code in _NAMES.items()}
_LARGEST_HEADER = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written: its values are read when their turn comes, and dropped afterwards."""

    name: str
    dtype: Any
    """Of NumPy."""
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]
    """Returns the values."""

    @staticmethod
    def of(name: str, array: NDArray[Any]) -> TensorSource:
        """Return an array in memory as a source."""
        return TensorSource(name, array.dtype, array.shape, lambda: array)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def narrowest(largest: int) -> np.dtype[Any]:
    """Return the smallest unsigned type that holds numbers from 0 to `largest`.

    Example:
        >>> narrowest(255)
        dtype('uint8')
    """
    return next(np.dtype(code) for code in ("<u1", "<u2", "<u4", "<u8") if largest <= np.iinfo(code).max)


def write_tensors(path: str | os.PathLike[str], metadata: tuple[str, str], tensors: Sequence[TensorSource]) -> None:
    """Write a safetensors file, whole or not at all; equal content gives equal bytes.

    Args:
        path: The file.
        metadata: The one entry of the header's metadata: its key and its text.
        tensors: In any order; wider types come first in the file, so that every tensor is aligned.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
    """
    ordered = sorted(tensors, key=lambda tensor: -np.dtype(tensor.dtype).itemsize)
    entries: dict[str, Any] = {"__metadata__": {metadata[0]: metadata[1]}}
    at = 0
    for tensor in ordered:
        dtype = _DTYPES[np.dtype(tensor.dtype).newbyteorder("<")]
        entries[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in ordered:
            values = np.asarray(tensor.read(), dtype=np.dtype(tensor.dtype).newbyteorder("<"), order="C")
            assert values.shape == tuple(tensor.shape), f"{tensor.name} is {values.shape}, declared as {tensor.shape}"
            file.write(values.reshape(-1).view(np.uint8).data)

    write_atomically(path, write)


def map_tensors(path: str | os.PathLike[str]) -> tuple[Mapping[str, str], dict[str, NDArray[Any]]]:
    """Return the metadata and the tensors of a safetensors file, the latter as views of the mapped file.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is not a safetensors file, is cut short, or holds a type that NumPy does not have; the file is
            named.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a file' if file.is_dir() else 'no such file'}")
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(length) if 2 <= length <= min(_LARGEST_HEADER, size - 8) else b""
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        places = {
            name: (np.dtype(_NAMES[entry["dtype"]]), tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in header.items()
        }
        for dtype, shape, begin, end in places.values():
            if (
                not all(isinstance(size, int) and size >= 0 for size in shape)
                or not 0 <= begin <= end <= size - 8 - length
            ):
                raise ValueError("cut short")
            if end - begin != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
                raise ValueError("a tensor's size does not fit its shape")
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        reason = " ".join(str(problem).split()) if text else "no header"
        raise ValueError(f"{path}: damaged or not a safetensors file ({reason})") from None
    data = np.memmap(file, np.uint8, "r", 8 + length) if size > 8 + length else np.empty(0, np.uint8)
    return metadata, {
        name: np.asarray(data[begin:end]).view(dtype).reshape(shape)
        for name, (dtype, shape, begin, end) in places.items()
    }


def headed_tensors(
    path: str | os.PathLike[str], name: str, version: int, what: str
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Map a file's tensors, and read what its header says of their format.

    Args:
        path: The file.
        name: The format, under which the header stands.
        version: The latest version that can be read.
        what: What the file should be, for messages: "a sample of a corpus".

    Returns:
        The header, and the tensors by name.

    Raises:
        OSError: There is no such file.
        ValueError: It is something else, is damaged, or of a newer version; one line that names it.
    """
    metadata, tensors = map_tensors(path)
    if name not in metadata:
        raise ValueError(f"{path}: not {what} (no {name!r} in its header)")
    try:
        header = json.loads(metadata[name])
        if header["version"] > version:
            raise ValueError(f"written by a newer crosstrace: format {header['version']}; this reads up to {version}")
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path}: {' '.join(str(problem).split())}") from None
    return header, tensors
