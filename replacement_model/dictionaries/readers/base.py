"""What every transcoder file format is read into.

Letters: L layers, F features of a layer, D d_model, J layers a feature writes to.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# Where a transcoder reads the residual stream, as a site of DESIGN's linear model: before or after the norm.
INPUT_SITES = ("pre_feedforward_layernorm.input", "pre_feedforward_layernorm.output")
OUTPUT_SITE = "post_feedforward_layernorm.output"

# Decoder weight towards earlier layers: below this share of a layer's norm it is storage noise and dropped.
NEGLIGIBLE_SHARE = 1e-3
# The check reads all rows of a layer up to this size, evenly spaced ones beyond: opening a real transcoder should not
# cost reading it. So are rows that are used, when they are read.
_CHECKED_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Encoder:
    """One layer's encoder: ``h = x W_enc + b_enc``, active where ``h > threshold`` (a ReLU has threshold 0)."""

    w_enc_df: Tensor  # (D, F), stored dtype
    b_enc_f: Tensor  # (F,) float32
    threshold_f: Tensor  # (F,) float32


class TranscoderReader(ABC):
    """A folder of transcoder files, read piece by piece: tensors are memory-mapped, nothing is held.

    Opening reads headers and a few rows; :meth:`decoder_rows` reads just the rows asked for.

    Attributes:
        name: how to name these transcoders in graphs and messages.
        folder: where the files are; labels.json is looked for here.
        n_layers: L. d_model: D. n_features: features of each layer.
        cross_layer: features of layer l write to layers l .. L - 1 (J = L - l) rather than to l alone (J = 1).
        input_site: one of :data:`INPUT_SITES`.
        l0: how many features of a layer fire at a token, as the files' config has it; None where it does not say.
    """

    name: str
    folder: Path
    n_layers: int
    d_model: int
    n_features: list[int]
    cross_layer: bool
    input_site: str
    l0: float | None = None

    def n_written(self, layer: int) -> int:
        """J: how many layers a feature of this layer writes to."""
        return self.n_layers - layer if self.cross_layer else 1

    @abstractmethod
    def encoder(self, layer: int) -> Encoder:
        """One layer's encoder."""

    @abstractmethod
    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        """(n, J, D) decoder rows of some features, in the stored dtype, read from the file; row j writes to layer + j."""

    @abstractmethod
    def decoder(self, layer: int) -> Tensor:
        """(F, J, D) a layer's whole decoder as a view of the mapped file: nothing is read until it is used."""

    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype that decoders are stored in, from a header."""

    @abstractmethod
    def skip(self, layer: int) -> Tensor | None:
        """(D, D) affine skip connection, ``y += u @ skip``, or None."""

    @abstractmethod
    def bias(self, layer: int) -> Tensor:
        """(D,) float32 decoder bias of the layer's reconstruction."""

    def labels(self) -> dict[tuple[int, int], str]:
        """Feature names kept beside the weights; see :func:`read_labels`."""
        return read_labels(self.folder)


def read_labels(folder: Path) -> dict[tuple[int, int], str]:
    """The feature names in a folder's ``labels.json``, by (layer, feature); empty where there is none.

    Raises:
        ValueError: the file is there but is not a label file; it is named.
    """
    path = folder / "labels.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != "crosstrace-labels/1":
            raise ValueError(f"format {content['format']!r}")
        return {
            (layer, int(feature)): entry["label"]
            for layer, entries in enumerate(content["layers"])
            for feature, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a label file (expected format crosstrace-labels/1): {error}") from error


def checked_rows(n_rows: int, row_bytes: int) -> Tensor:
    """(n,) int64: which of so many decoder rows :func:`check_causal` is given: all of a small file, else evenly spaced."""
    step = max(1, -(-n_rows * row_bytes // _CHECKED_BYTES))
    return torch.arange(0, n_rows, step)


def check_causal(w_dec_nld: Tensor, layer: int, path: Path, rows: str = "its decoder") -> None:
    """Refuse decoder rows (n, L, D) of a layer that write to earlier layers with more than negligible weight.

    Raises:
        ValueError: names the file and the share of the norm that points backwards.
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


def site_of(hook: str, path: Path, known: Mapping[str, str], role: str) -> str:
    """Translate a file's hook name into a site of the linear model.

    Raises:
        ValueError: a hook that the linear model has no place for; the file, the hook and the known ones are named.
    """
    if hook not in known:
        raise ValueError(f"{path}: {role} hook {hook!r} is not supported; supported: {', '.join(known)}")
    return known[hook]
