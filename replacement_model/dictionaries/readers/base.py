"""What a file format is, and the checks that formats share.

Letters: L layers, D d_model, n decoder rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import SparseDictionary

# Decoder weight towards earlier layers: below this share of a layer's norm it is storage noise and dropped.
NEGLIGIBLE_SHARE = 1e-3
# The check reads all rows of a layer up to this size, evenly spaced ones beyond: opening a real transcoder should not
# cost reading it. The same goes for rows that are used, when they are read.
CHECKED_BYTES = 4 * 2**20


def _folder_alone(inner: str) -> list[str]:
    return [f"{inner}/*"]


@dataclass(frozen=True)
class FileFormat:
    """A file format of dictionaries.

    Attributes:
        name: How messages name it.
        files: What its folders hold, for messages.
        matches: Whether a path names files of this format. The path need not be a folder: a format may give names to
            groups of folders.
        open: Opens them, given the path, the name to show and whether to check a sample of the weights. Without that
            check only headers are read. Raises `ValueError` and `FileNotFoundError` in one line each.
        patterns: Which files of a hub repository a reference's path stands for, as `huggingface_hub` takes patterns.
    """

    name: str
    files: str
    matches: Callable[[Path], bool]
    open: Callable[[Path, str, bool], SparseDictionary]
    patterns: Callable[[str], list[str]] = _folder_alone


def checked_rows(n_rows: int, row_bytes: int) -> Tensor:
    """Return which decoder rows (n,) int64 are checked: all of a small file, evenly spaced ones of a large one."""
    step = max(1, -(-n_rows * row_bytes // CHECKED_BYTES))
    return torch.arange(0, n_rows, step)


def check_causal(w_dec_nld: Tensor, layer: int, path: Path, rows: str = "its decoder") -> None:
    """Refuse decoder rows (n, L, D) of a layer that write to earlier layers with more than negligible weight.

    Raises:
        ValueError: Names the file and the share of the norm that points backwards.
    """
    if layer == 0 or not len(w_dec_nld):
        return
    earlier = w_dec_nld[:, :layer].float().norm().item()
    later = w_dec_nld[:, layer:].float().norm().item()
    share = earlier / max((earlier**2 + later**2) ** 0.5, torch.finfo(torch.float32).tiny)
    if share > NEGLIGIBLE_SHARE:
        raise ValueError(
            f"{path}: {share:.1%} of the norm of {rows} writes to layers before layer {layer}; a cross-layer transcoder "
            f"may only write to its own and later layers (up to {NEGLIGIBLE_SHARE:.1%} is dropped as noise)"
        )


def site_of(hook: str, path: Path, known: Mapping[str, Site], role: str) -> Site:
    """Translate a file's hook name into a site.

    Raises:
        ValueError: The linear model has no place for the hook; the file, the hook and the known ones are named.
    """
    if hook not in known:
        raise ValueError(f"{path}: {role} hook {hook!r} is not supported; supported: {', '.join(known)}")
    return known[hook]
