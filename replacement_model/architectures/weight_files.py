"""The files that weights come in: whether they are whole, and which of a checkpoint's holds which tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from crosstrace.replacement_model.hub import check_fetched, read_text

_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a checkpoint.

    Attributes:
        places: The file of each tensor, by the tensor's name in the files; empty for other kinds of files.
    """

    places: dict[str, Path]

    @staticmethod
    def in_folder(folder: Path) -> WeightFiles:
        """Return the files in a folder; headers are read, and checked against the index.

        Raises:
            FileNotFoundError: A file that the index names is missing.
            ValueError: A file is damaged, or lacks a tensor that the index places in it; it is named.
        """
        places: dict[str, Path] = {}
        if (folder / _WHOLE).is_file():
            places = dict.fromkeys(_tensors(folder / _WHOLE), folder / _WHOLE)
        elif (folder / _INDEX).is_file():
            index = read_json(folder / _INDEX)
            names = index.get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise ValueError(f"{folder / _INDEX}: has no weight_map from tensors to files")
            for name in sorted(set(names.values())):
                placed = [tensor for tensor, file in names.items() if file == name]
                if not (folder / name).is_file():
                    raise FileNotFoundError(
                        f"{folder / name}: file is missing; {_INDEX} places {len(placed)} tensors in it, such as {placed[0]}"
                    )
                stored = _tensors(folder / name)
                if absent := sorted(set(placed) - stored):
                    raise ValueError(f"{folder / name}: tensor {absent[0]} is missing, which {_INDEX} places there")
                places |= dict.fromkeys(sorted(stored), folder / name)
        return WeightFiles(places)

    def nearest(self, tensor: str) -> str:
        """Return the file that holds a tensor, or the most similar names, for messages; empty if none is known."""
        if not self.places:
            return ""
        tail, numbers = tensor.split(".")[::-1], [part for part in tensor.split(".") if part.isdigit()]

        def likeness(stored: str) -> tuple[bool, int]:
            """Count what names share from their ends, since prefixes change; those of one layer lie together."""
            parts = stored.split(".")
            same_end = takewhile(lambda pair: pair[0] == pair[1], zip(tail, parts[::-1], strict=False))
            return [part for part in parts if part.isdigit()][:1] == numbers[:1], sum(1 for _ in same_end)

        return str(self.places[max(sorted(self.places), key=likeness)])


def read_json(path: Path, expected: str = "an object") -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        expected: What it should hold, for the message.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is a Git LFS pointer, cut short, or holds no object; the file is named.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON (cut short? fetch it again): {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}; expected {expected}")
    return content


def check_whole(paths: Iterable[Path]) -> None:
    """Refuse files that are Git LFS pointers, and JSON files that are cut short, without reading all of them.

    Raises:
        ValueError: Names the file.
    """
    for path in paths:
        if not path.is_file():
            continue
        check_fetched(path)
        if path.suffix == ".json":
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 64))
                end = file.read().rstrip()[-1:]
            if end not in (b"}", b"]"):
                raise ValueError(f"{path}: not valid JSON: cut short at {size:,} bytes? fetch it again")


def not_finite(tensor: Tensor) -> str | None:
    """Return `"NaN"` or `"infinity"` if a tensor holds one, else None; one pass, at the speed of memory.

    Example:
        >>> not_finite(torch.tensor([1.0, float("inf")]))
        'infinity'
    """
    if not tensor.numel():
        return None
    low, high = tensor.aminmax()  # which pass NaN on
    if low.isfinite() and high.isfinite():
        return None
    return "NaN" if low.isnan() or high.isnan() else "infinity"


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """Open a safetensors file as `safetensors.safe_open` does, which checks its header and its length.

    Raises:
        ValueError: It is a Git LFS pointer, empty, cut short or not a safetensors file; the file is named.
    """
    check_fetched(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: not a whole safetensors file ({size:,} bytes; empty or cut short? fetch it again): {error}"
        ) from error


def _tensors(path: Path) -> set[str]:
    with mapped(path) as file:
        return set(file.keys())
