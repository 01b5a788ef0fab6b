"""What every sparse dictionary is: an encoder, an activation, a decoder, and the sites it reads and writes.

Transcoders are one kind: they read the input of MLPs and write their output. SAEs are another: they write the site that
they read. Crosscoders read and write a site at several depths. A dictionary here is what its files hold, read piece by piece;
`crosstrace.replacement_model.dictionaries.in_use` puts it to use on a device.

Letters: L layers, F features of a layer, D the width of the sites, J layers a feature writes to.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.hub import check_fetched, read_text


class ActivationKind(Enum):
    """How pre-activations `h` become activations."""

    RELU = "ReLU"  # h where h > 0
    JUMP_RELU = "JumpReLU"  # h where h > the feature's threshold (Rajamanoharan et al. 2024, equation 1)
    TOP_K = "TopK"  # the k largest of a token (Gao et al. 2024, equation 5)


class TokenScaling(Enum):
    """How a token's vector is scaled before it is encoded; what comes out is scaled back."""

    NONE = "none"
    NORM = "norm"  # to the norm sqrt(D)
    LAYER_NORM = "layer norm"  # to mean 0 and standard deviation 1, without weights


@dataclass(frozen=True)
class Activation:
    """The activation function of a dictionary.

    Attributes:
        kind: Which function it is.
        k: How many features fire at a token with TopK; None with the others.
    """

    kind: ActivationKind
    k: int | None = None

    def __str__(self) -> str:
        return self.kind.value if self.k is None else f"{self.kind.value} with k = {self.k}"


@dataclass(frozen=True)
class Encoder:
    """One layer's encoder: `h = x W_enc + b_enc`.

    Attributes:
        w_enc_df: (D, F), in the stored dtype; D for each layer that is read, one after the other.
        b_enc_f: (F,) float32.
        threshold_f: (F,) float32: a feature fires above it. 0 for a ReLU; minus infinity for a TopK, of which only the
            `k` largest fire.
    """

    w_enc_df: Tensor
    b_enc_f: Tensor
    threshold_f: Tensor


class SparseDictionary(ABC):
    """A folder of dictionary files, read piece by piece: tensors are memory-mapped, nothing is held.

    Opening reads headers and a few rows; `decoder_rows` reads just the rows asked for.

    Attributes:
        name: How graphs and messages name the dictionary.
        folder: Where the files are; `labels.json` is looked for here.
        d_model: D, the width of the sites: that of the residual stream, or H * head_dim at `Site.ATTENTION_HEADS`.
        n_features: The number of features of each layer in `layers`.
        activation: The activation function.
        reads: The site that its encoders read.
        writes: The site that its decoders write.
        token_scaling: How tokens are scaled before they are encoded.
        l0: How many features of a layer fire at a token, as the files' config has it; None if it does not say.
        l0_by_layer: The same for each layer that has a config of its own.
    """

    name: str
    folder: Path
    d_model: int
    n_features: list[int]
    activation: Activation
    reads: Site
    writes: Site
    token_scaling: TokenScaling = TokenScaling.NONE
    l0: float | None = None
    l0_by_layer: Mapping[int, float] = MappingProxyType({})

    @property
    @abstractmethod
    def layers(self) -> Sequence[int]:
        """The layers of the model whose sites it reads, ascending."""

    def n_written(self, layer: int) -> int:
        """Return J, how many layers a feature of this layer writes to: 1, unless a kind writes to other ones too."""
        return 1

    def read_layers(self, layer: int) -> Sequence[int]:
        """Return the layers whose sites, side by side, are what this layer's encoder reads: its own, but in a crosscoder."""
        return (layer,)

    def written_layers(self, layer: int) -> Sequence[int]:
        """Return the J layers that a feature of this layer writes to, in the order of its decoder's rows."""
        return range(layer, layer + self.n_written(layer))

    @abstractmethod
    def encoder(self, layer: int) -> Encoder:
        """Return one layer's encoder."""

    @abstractmethod
    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        """Read the decoder rows (n, J, D) of some features, in the stored dtype; row j writes to `written_layers(layer)[j]`."""

    @abstractmethod
    def decoder(self, layer: int) -> Tensor:
        """Return a layer's whole decoder (F, J, D) as a view of the mapped file: nothing is read until it is used."""

    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Return the dtype that decoders are stored in, from a header."""

    @abstractmethod
    def bias(self, layer: int) -> Tensor:
        """Return the decoder bias (D,) float32 of the layer's reconstruction."""

    def centre(self, layer: int) -> Tensor | None:
        """Return what is subtracted from the scaled inputs before they are encoded, (D,) float32, or None."""
        return None

    def labels(self) -> dict[tuple[int, int], str]:
        """Return the feature names kept beside the weights, by (layer, feature).

        Raises:
            ValueError: The label file is damaged.
        """
        return read_labels(self.folder)


class TranscoderReader(SparseDictionary):
    """Transcoders as their files hold them: a dictionary that reads the MLPs' inputs and writes their outputs.

    Attributes:
        n_layers: L; transcoders cover every layer of the model.
        cross_layer: Whether features of layer l write to layers l .. L - 1 (J = L - l) rather than to l alone (J = 1).
    """

    n_layers: int
    cross_layer: bool
    writes = Site.MLP_OUTPUT

    @property
    def layers(self) -> range:
        """All layers of the model."""
        return range(self.n_layers)

    def n_written(self, layer: int) -> int:
        """Return J, how many layers a feature of this layer writes to."""
        return self.n_layers - layer if self.cross_layer else 1

    @abstractmethod
    def skip(self, layer: int) -> Tensor | None:
        """Return the affine skip connection (D, D), `y += u @ skip`, or None."""


def read_labels(folder: Path) -> dict[tuple[int, int], str]:
    """Return the feature names in a folder's `labels.json`, by (layer, feature); empty if there is none.

    Those that a program made have a `source`; they are marked as automatic labels are, and say their score if they were
    tested.

    Raises:
        ValueError: The file is not a label file; it is named.
    """
    path = folder / "labels.json"
    if not path.is_file():
        return {}
    check_fetched(path)
    try:
        content = json.loads(read_text(path))
        if content["format"] != "crosstrace-labels/1":
            raise ValueError(f"format {content['format']!r}")
        return {
            (layer, int(feature)): shown_label(entry)
            for layer, entries in enumerate(content["layers"])
            for feature, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a label file (expected format crosstrace-labels/1): {error}") from error


def shown_label(entry: Mapping[str, Any]) -> str:
    """Return how an entry of a label file is shown: a person's label as it is, a program's as `~ Texas 0.93`.

    Example:
        >>> shown_label({"label": "Texas", "source": "some-model", "score": 0.931})
        '~ Texas 0.93'
    """
    label = entry["label"]
    if not isinstance(label, str):
        raise TypeError(f"label {label!r}")
    if not entry.get("source"):
        return label
    score = entry.get("score")
    return f"~ {label.removeprefix('~').strip()}" + (f" {score:.2f}" if isinstance(score, int | float) else "")
