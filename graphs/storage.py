"""Values and tensors of a graph in a `.safetensors` file; it knows names, not what they mean.

Plain values (strings, numbers, lists, settings) are JSON in the header's metadata, tensors are stored as they are, and a
sparse matrix is stored as the three tensors of its rows. The metadata is one entry under the format's name, so that
equal graphs give equal bytes: several entries would be written in no fixed order. Its JSON is ASCII, so that any string
comes back unchanged, lone surrogates included. A checksum over values and tensors exposes damage.

Letters: n nodes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from crosstrace.graphs.tensor_file import TensorSource, write_tensors

FORMAT = "crosstrace-graph"
VERSION = 1


def write_values(path: str | os.PathLike[str], values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named values and tensors, whole or not at all.

    Args:
        path: The file.
        values: What can be JSON, by name.
        tensors: On the CPU, by name.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
        ValueError: `settings`, the only value of free form, cannot be written as JSON.
    """
    header = {"version": VERSION, "checksum": _checksum(values, tensors), **values}
    try:
        text = json.dumps(header, ensure_ascii=True, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"settings cannot be written as JSON: {problem}") from None
    write_tensors(path, (FORMAT, text), [TensorSource.of(name, tensor.numpy()) for name, tensor in tensors.items()])


def read_values(
    path: str | os.PathLike[str], values: Iterable[str], tensors: Iterable[str]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read what `write_values` wrote.

    Args:
        path: The file.
        values: Names of the values that have to be there; others are ignored.
        tensors: Names of the tensors that have to be there.

    Returns:
        The values asked for, and every tensor of the file.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: The file is damaged, not a graph, incomplete, or of a newer version; one line that names it and says
            which.
    """
    # Imported here because only reading needs it.
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a graph file' if file.is_dir() else 'no such graph file'}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(f"{path}: not a crosstrace graph (no {FORMAT!r} in its header)")
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as problem:
        raise ValueError(f"{path}: damaged or not a safetensors file ({_one_line(problem)})") from None
    try:
        return _checked_header(metadata[FORMAT], list(values), list(tensors), stored), stored
    except (ValueError, TypeError, KeyError) as problem:
        raise ValueError(f"{path}: {_one_line(problem)}") from None


def csr_names(name: str) -> tuple[str, str, str]:
    """Return the names of the tensors that hold a sparse matrix."""
    return f"{name}.indptr", f"{name}.indices", f"{name}.data"


def csr_tensors(name: str, matrix: scipy.sparse.csr_array) -> dict[str, torch.Tensor]:
    """Return the tensors that hold a sparse matrix, by name."""
    parts = (matrix.indptr, matrix.indices, matrix.data)
    return {key: torch.from_numpy(np.ascontiguousarray(part)) for key, part in zip(csr_names(name), parts, strict=True)}


def csr_of(name: str, tensors: Mapping[str, torch.Tensor], n: int) -> scipy.sparse.csr_array:
    """Return the (n, n) sparse matrix that `csr_tensors` took apart.

    Args:
        name: The matrix.
        tensors: All tensors of the file.
        n: Its number of rows.

    Raises:
        ValueError: The tensors do not fit together.
    """
    indptr, indices, data = (tensors[key].numpy() for key in csr_names(name))
    matrix = scipy.sparse.csr_array((data, indices, indptr), shape=(n, n))
    matrix.check_format(full_check=True)
    return matrix


def _checked_header(
    text: str, values: list[str], tensors: list[str], stored: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except json.JSONDecodeError as problem:
        raise ValueError(f"damaged header ({problem})") from None
    version = header.get("version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise ValueError("damaged header (no format version)")
    if version > VERSION:
        raise ValueError(f"written by a newer crosstrace: format {version}, this version reads up to {VERSION}")
    missing = [name for name in (*values, "checksum") if name not in header]
    missing += [name for name in tensors if name not in stored]
    if missing:
        raise ValueError(f"incomplete graph file: it lacks {', '.join(missing)}")
    found = {name: header[name] for name in values}
    if header["checksum"] != _checksum(found, stored):
        raise ValueError("damaged: its checksum does not fit its content")
    return found


def _checksum(values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> int:
    checksum = zlib.crc32(json.dumps(values, sort_keys=True, default=repr).encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode(), checksum)
        # NumPy and not torch, which cannot view an empty tensor as bytes.
        checksum = zlib.crc32(np.ascontiguousarray(tensors[name].numpy()).view(np.uint8).data, checksum)
    return checksum


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())
