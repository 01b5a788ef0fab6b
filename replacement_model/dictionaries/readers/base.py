"""What a file format is, and the checks that formats share.

Letters: L layers, D d_model, n decoder rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import Activation, ActivationKind, SparseDictionary
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

# Decoder weight towards earlier layers: below this share of a layer's norm it is storage noise and dropped.
NEGLIGIBLE_SHARE = 1e-3
# The check reads all rows of a layer up to this size, evenly spaced ones beyond: opening a real transcoder should not
# cost reading it. The same goes for rows that are used, when they are read.
CHECKED_BYTES = 4 * 2**20
# What config files call activations, without case and separators. A batch TopK is trained with the k largest of a batch,
# and saved with the thresholds that stand for them.
_ACTIVATIONS = {
    "relu": ActivationKind.RELU,
    "jumprelu": ActivationKind.JUMP_RELU,
    "topk": ActivationKind.TOP_K,
    "batchtopk": ActivationKind.JUMP_RELU,
}
# Keys of a config that would change what is computed, were they known. Other unknown keys are somebody's notes.
_MATTERS = re.compile(
    r"activ|act_?f|top_?k|^k$|thresh|relu|nonlin|skip|affine|norm|scal|bias|b_dec|b_enc", re.IGNORECASE
)


def _folder_alone(inner: str) -> list[str]:
    return [f"{inner}/*"] if inner else []


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
        patterns: Which files of a hub repository a reference's path stands for, as `huggingface_hub` takes patterns; the
            path is "" for files at the repository's root. Without it, everything in the folder, and nothing at a root:
            the rest of the repository may be anything.
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


def check_causal(
    w_dec_nld: Tensor,
    layer: int,
    path: Path,
    rows: str = "its decoder",
    kind: str = "cross-layer transcoder",
    named: int | None = None,
) -> None:
    """Refuse decoder rows of a layer that write to earlier layers with more than negligible weight.

    Args:
        w_dec_nld: (n, L, D) the rows.
        layer: The layer, counted among the L.
        path: The file, for the message.
        rows: How the message names the rows.
        kind: How it names the dictionary.
        named: The layer's number in the model; None: the same.

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
            f"{path}: {share:.1%} of the norm of {rows} writes to layers before layer {layer if named is None else named}; "
            f"a {kind} may only write to its own and later layers (up to {NEGLIGIBLE_SHARE:.1%} is dropped as noise)"
        )


def site_of(hook: str, path: Path, known: Mapping[str, Site], role: str) -> Site:
    """Translate a file's hook name into a site.

    Raises:
        ValueError: The linear model has no place for the hook; the file, the hook and the known ones are named.
    """
    if hook not in known:
        raise ValueError(f"{path}: {role} hook {hook!r} is not supported; supported: {', '.join(known)}")
    return known[hook]


def read_activation(path: Path, name: object, k: object) -> Activation | None:
    """Translate what a config says of the activation; None if it says nothing.

    Args:
        path: The config file, for messages.
        name: The activation's name, or None.
        k: How many features fire at a token, or None.

    Raises:
        ValueError: The activation is not known, or `k` is missing, not a number above 0, or not expected.
    """
    kind = None if name is None else _ACTIVATIONS.get(re.sub(r"[\W_]", "", str(name).lower()))
    if name is not None and kind is None:
        raise ValueError(f"{path}: activation {name!r} is not supported; supported: relu, jump_relu, topk, batch_topk")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f"{path}: k is {k!r}; expected a whole number above 0")
    if kind is ActivationKind.TOP_K:
        if k is None:
            raise ValueError(f"{path}: activation is {name!r}, but k, the number of features that fire, is missing")
        return Activation(kind, int(str(k)))
    if k is not None and "top" not in str(name).lower():
        raise ValueError(f"{path}: k is {k}, but activation is {name!r}; expected topk")
    return None if kind is None else Activation(kind)


def check_config_keys(path: Path, config: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a config key that is not known and would change what is computed, unless it is switched off.

    Raises:
        ValueError: Names the file and the key.
    """
    for key, value in config.items():
        means_activation = isinstance(value, str) and re.sub(r"[\W_]", "", value.lower()) in _ACTIVATIONS
        if key not in known and value not in (None, False) and (means_activation or _MATTERS.search(str(key))):
            raise ValueError(f"{path}: key {key} is not known; known keys: {', '.join(known)}")


def check_skips(
    files: Sequence[TensorFile], key: str, flags: Sequence[tuple[Path, object]], flag_key: str = "affine_connection"
) -> None:
    """Refuse skip connections that some layers lack, or that a config promises or denies otherwise.

    Args:
        files: Each layer's file.
        key: The tensor of the skip connection.
        flags: For each layer the config and what it says under `flag_key`; None: nothing.
        flag_key: The key in the config, for messages.

    Raises:
        ValueError: Names the config, the file and the tensor.
    """
    for file, (path, flag) in zip(files, flags, strict=True):
        if flag is not None and not isinstance(flag, bool):
            raise ValueError(f"{path}: {flag_key} is {flag!r}; expected true or false")
        if flag is not None and flag != (key in file.keys):
            has = "has no tensor" if flag else "has a tensor"
            raise ValueError(f"{path}: {flag_key} is {str(flag).lower()}, but {file.path} {has} {key}")
    check_same(files, key)


def check_same(files: Sequence[TensorFile], key: str) -> None:
    """Refuse an optional tensor that some layers have and others lack; `{layer}` in the key stands for the layer.

    Raises:
        ValueError: Names the first file that lacks it.
    """
    has = [key.format(layer=layer) in file.keys for layer, file in enumerate(files)]
    if any(has) and not all(has):
        without, with_it = has.index(False), has.index(True)
        raise ValueError(
            f"{files[without].path}: tensor {key.format(layer=without)} is missing, which other layers have "
            f"({files[with_it].path.name} for layer {with_it})"
        )
