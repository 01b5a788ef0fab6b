"""The graph as a `.safetensors` file: every tensor as it is, strings and settings as JSON in the header's metadata.

Letters: n nodes, E edges.
The metadata is a single entry under the format's name, so that equal graphs give equal bytes (several entries would be
written in no fixed order). Its JSON is ASCII: any string comes back as it was, lone surrogates included. A checksum
over it and over the tensors tells a damaged file from a whole one.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.tensor_file import TensorSource, write_tensors

FORMAT = "crosstrace-graph"
VERSION = 1

_TENSORS = (
    "active_features",
    "activations",
    "selected_features",
    "tokens",
    "logit_tokens",
    "logit_probabilities",
    "logit_positions",
    "logit_layers",
    "unattributed",
    "omitted",
    "omitted_magnitude",
    "target_values",
)
_PRUNED_TENSORS = ("node_mask", "influence")
_STRINGS = (
    "token_strings",
    "logit_strings",
    "n_layers",
    "prompt",
    "model_name",
    "transcoders_name",
    "settings",
    "feature_labels",
)


def save(graph: AttributionGraph, path: str | os.PathLike[str]) -> None:
    """Writes the whole graph, pruned or raw, lossless.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
        ValueError: `settings` cannot be written as JSON.

    Example:
        >>> save(graph, "raw.safetensors")
    """
    tensors = {name: getattr(graph, name) for name in _TENSORS}
    tensors |= {name: getattr(graph, name) for name in _PRUNED_TENSORS if getattr(graph, name) is not None}
    tensors |= _csr_tensors("edges", graph.edges)
    if graph.edge_mask_sparse is not None:
        tensors |= _csr_tensors("edge_mask", graph.edge_mask_sparse)
    strings = {name: getattr(graph, name) for name in _STRINGS}
    header = {"version": VERSION, "checksum": _checksum(strings, tensors), **strings}
    try:
        text = _json(header)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"settings cannot be written as JSON: {problem}") from None
    sources = [TensorSource.of(name, tensor.numpy()) for name, tensor in tensors.items()]
    write_tensors(path, (FORMAT, text), sources)


def load(path: str | os.PathLike[str]) -> AttributionGraph:
    """Reads what `save` wrote.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: One line that names the file and what is wrong: damaged, foreign, incomplete, of a newer version.

    Example:
        >>> graph = load("raw.safetensors")
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a graph file' if file.is_dir() else 'no such graph file'}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(f"{path}: not a crosstrace graph (no {FORMAT!r} in its header)")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as problem:
        raise ValueError(f"{path}: damaged or not a safetensors file ({_one_line(problem)})") from None
    try:
        return _assemble(metadata[FORMAT], tensors)
    except (ValueError, TypeError, KeyError) as problem:
        raise ValueError(f"{path}: {_one_line(problem)}") from None


def _assemble(text: str, tensors: dict[str, torch.Tensor]) -> AttributionGraph:
    try:
        header = json.loads(text)
    except json.JSONDecodeError as problem:
        raise ValueError(f"damaged header ({problem})") from None
    version = header.get("version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise ValueError("damaged header (no format version)")
    if version > VERSION:
        raise ValueError(f"written by a newer crosstrace: format {version}, this version reads up to {VERSION}")
    missing = [name for name in (*_STRINGS, "checksum") if name not in header]
    missing += [name for name in (*_TENSORS, *_csr_names("edges")) if name not in tensors]
    if missing:
        raise ValueError(f"incomplete graph file: it lacks {', '.join(missing)}")
    strings = {name: header[name] for name in _STRINGS}
    if header["checksum"] != _checksum(strings, tensors):
        raise ValueError("damaged: its checksum does not fit its content")
    n = len(tensors["unattributed"])
    values: dict[str, Any] = {**strings, **{name: tensors[name] for name in _TENSORS}}
    values |= {name: tensors[name] for name in _PRUNED_TENSORS if name in tensors}
    values["edges"] = _csr("edges", tensors, n)
    if _csr_names("edge_mask")[0] in tensors:
        values["edge_mask_sparse"] = _csr("edge_mask", tensors, n)
    return AttributionGraph(**values)


def _csr_names(name: str) -> tuple[str, str, str]:
    return f"{name}.indptr", f"{name}.indices", f"{name}.data"


def _csr_tensors(name: str, matrix: scipy.sparse.csr_array) -> dict[str, torch.Tensor]:
    parts = (matrix.indptr, matrix.indices, matrix.data)
    return {
        key: torch.from_numpy(np.ascontiguousarray(part)) for key, part in zip(_csr_names(name), parts, strict=True)
    }


def _csr(name: str, tensors: dict[str, torch.Tensor], n: int) -> scipy.sparse.csr_array:
    indptr, indices, data = (tensors[key].numpy() for key in _csr_names(name))
    matrix = scipy.sparse.csr_array((data, indices, indptr), shape=(n, n))
    matrix.check_format(full_check=True)
    return matrix


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=True)


def _checksum(strings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> int:
    checksum = zlib.crc32(json.dumps(strings, sort_keys=True, default=repr).encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode(), checksum)
        # numpy and not torch, which cannot view an empty tensor as bytes.
        checksum = zlib.crc32(np.ascontiguousarray(tensors[name].numpy()).view(np.uint8).data, checksum)
    return checksum


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())
