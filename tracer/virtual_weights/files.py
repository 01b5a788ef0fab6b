"""Global weights out to files: the sparse matrix that cards and pages read, or one that scipy reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import scipy.sparse

from crosstrace.graphs.cards.weights import FORMAT, VERSION
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.tensor_file import TensorSource, write_tensors
from crosstrace.tracer.virtual_weights.compute import GlobalWeights, Key
from crosstrace.tracer.virtual_weights.strongest import RESIDUAL

SUFFIXES = (".npz", ".safetensors")


def check_weights_suffix(path: Path) -> None:
    """Refuse a file whose format is not known.

    Raises:
        ValueError: Its suffix is not one of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: global weights are written as {' or '.join(SUFFIXES)}")


def write_weights(
    weights: GlobalWeights,
    path: str | os.PathLike[str],
    fingerprints: Mapping[str, str] | None = None,
    names: Mapping[Key, str] | None = None,
) -> None:
    """Write global weights as a sparse matrix [target, source] over all features.

    Args:
        weights: The links.
        path: `.safetensors`, which holds everything (see `graphs/cards/weights.py`), or `.npz` for `scipy.sparse.load_npz`:
            the links through the residual stream alone, by their virtual weight, or by the expectation if that ranked them.
        fingerprints: Of the weights of model and transcoders, for `.safetensors`.
        names: Labels of features, for `.safetensors`; those of features in the file are kept.

    Raises:
        ValueError: The suffix is another one.
        OSError: The file cannot be written; nothing is left behind.

    Example:
        >>> write_weights(found, "weights.npz")
    """
    path = Path(path)
    check_weights_suffix(path)
    entries = _entries(weights)
    if path.suffix.lower() == ".npz":
        size = sum(weights.n_features)
        mine = entries["via"] == RESIDUAL
        of = entries["expected" if weights.by == "expected" else "weight"][mine]
        places = entries["target"][mine], entries["source"][mine]
        buffer = BytesIO()
        scipy.sparse.save_npz(buffer, scipy.sparse.csr_array(scipy.sparse.coo_array((of, places), shape=(size, size))))
        write_atomically(path, buffer.getvalue())
        return
    occurring = {weights.key_of(n) for n in np.unique(np.concatenate([entries["target"], entries["source"]])).tolist()}
    occurring |= set(weights.features)
    header = {
        "version": VERSION,
        "model": weights.model_name,
        "transcoders": weights.transcoders_name,
        "fingerprints": dict(fingerprints or {}),
        "n_features": weights.n_features,
        "n_heads": weights.n_heads,
        "top": weights.inputs.others_nk.shape[1],
        "by": weights.by,
        "positions": weights.positions,
        "names": {f"L{key[0]}/{key[1]}": label for key, label in sorted((names or {}).items()) if key in occurring},
    }
    tensors = [TensorSource.of(name, array) for name, array in entries.items()]
    tensors.append(TensorSource.of("features", np.array(weights.features, dtype=np.int32).reshape(-1, 2)))
    write_tensors(path, (FORMAT, json.dumps(header, sort_keys=True)), tensors)


def _entries(weights: GlobalWeights) -> dict[str, np.ndarray]:
    """The links of both sides, each once, ascending by (target, source, via)."""
    firsts = np.cumsum([0, *weights.n_features])
    own = np.array([firsts[layer] + feature for layer, feature in weights.features], dtype=np.int64)
    columns: dict[str, list[np.ndarray]] = {}
    for side, mine, theirs in ((weights.inputs, "target", "source"), (weights.outputs, "source", "target")):
        there = side.others_nk.numpy() >= 0
        columns.setdefault(mine, []).append(np.repeat(own, there.sum(1)))
        columns.setdefault(theirs, []).append(side.others_nk.numpy()[there])
        columns.setdefault("via", []).append(side.via_nk.numpy()[there])
        columns.setdefault("weight", []).append(side.weights_nk.numpy()[there])
        columns.setdefault("together", []).append(side.together_nk.numpy()[there])
        columns.setdefault("expected", []).append(side.expected_nk.numpy()[there])
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    order = np.lexsort((joined["via"], joined["source"], joined["target"]))
    joined = {name: column[order] for name, column in joined.items()}
    places = np.stack([joined[name] for name in ("target", "source", "via")])
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (places[:, 1:] != places[:, :-1]).any(0)
    joined = {name: column[new] for name, column in joined.items()}
    types = {"target": np.int32, "source": np.int32, "via": np.int16, "together": np.int32}
    return {
        **{name: column.astype(types.get(name, np.float32)) for name, column in joined.items()},
        "interference": weights.interference(joined["target"], joined["source"], joined["together"]),
    }
