"""circuit-tracer's files: `config.yaml`, and one file (for a CLT an encoder and a decoder file) per layer.

The config may list the files instead, and then they may be Gemma Scope 2's: their tensors tell.

Letters: L layers, F features of a layer, D d_model.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from crosstrace.replacement_model import hub
from crosstrace.replacement_model.dictionaries.base import Activation, ActivationKind, Encoder, TranscoderReader
from crosstrace.replacement_model.dictionaries.readers.base import FileFormat, check_same, check_skips
from crosstrace.replacement_model.dictionaries.readers.circuit_tracer_config import (
    CONFIG,
    Settings,
    first_repeated,
    read_settings,
)
from crosstrace.replacement_model.dictionaries.readers.gemma_scope import GemmaScopeReader
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

_THRESHOLDS = ("activation_function.threshold", "threshold")  # in a per-layer file, either
_NUMBERED = re.compile(r"W_(?:enc|dec)_\d+")


class CircuitTracerCrossLayerReader(TranscoderReader):
    """A cross-layer transcoder in `W_enc_{i}.safetensors` and `W_dec_{i}.safetensors`: row j writes to layer i + j."""

    cross_layer = True

    def __init__(
        self, encoders: list[TensorFile], decoders: list[TensorFile], settings: Settings, check: bool = True
    ) -> None:
        """Open the files.

        Args:
            encoders: The file of each layer's encoder, layer 0 first.
            decoders: The file of each layer's decoder, which may be the same.
            settings: What the config says.
            check: Whether to read biases and thresholds and refuse NaN and infinity.

        Raises:
            ValueError: A file is damaged, of another shape, or has a tensor that is not known.
        """
        self.folder, self.name, self.reads = settings.folder, settings.name, settings.reads
        self.n_layers, self._encoders, self._decoders = len(encoders), encoders, decoders
        self.d_model = self._encoders[0].shape("W_enc_0")[1]
        self.n_features = [
            file.check(f"W_enc_{layer}", (None, self.d_model))[0] for layer, file in enumerate(self._encoders)
        ]
        for layer, file in enumerate(self._encoders):
            decoder = self._decoders[layer]
            decoder.check(f"W_dec_{layer}", self._decoder_shape(layer))
            encoding = [f"{key}_{layer}" for key in ("W_enc", "b_enc", "b_dec")]
            if decoder is file:
                file.check_keys([*encoding, f"W_dec_{layer}"], [f"threshold_{layer}"])
            else:
                file.check_keys(encoding, [f"threshold_{layer}"])
                decoder.check_keys([f"W_dec_{layer}"])
        check_same(self._encoders, "threshold_{layer}")
        thresholds = [f"threshold_{layer}" for layer in range(self.n_layers)]
        self.activation = settings.agreed_activation(self._encoders, thresholds)
        self.l0 = self.activation.k
        if check:
            for layer in range(self.n_layers):
                _check_vectors(self, self._encoders[layer], layer, (f"b_enc_{layer}", thresholds[layer]))

    def _decoder_shape(self, layer: int) -> tuple[int, int, int]:
        return self.n_features[layer], self.n_layers - layer, self.d_model

    def encoder(self, layer: int) -> Encoder:
        file, n_features = self._encoders[layer], self.n_features[layer]
        return Encoder(
            file.get(f"W_enc_{layer}", (n_features, self.d_model)).T,
            file.get(f"b_enc_{layer}", (n_features,)).float(),
            _threshold(file, f"threshold_{layer}", n_features, self.activation),
        )

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        return self._decoders[layer].rows(f"W_dec_{layer}", self._decoder_shape(layer), features_n)

    def decoder(self, layer: int) -> Tensor:
        return self._decoders[layer].get(f"W_dec_{layer}", self._decoder_shape(layer), unread=True)

    def dtype(self) -> torch.dtype:
        return self._decoders[0].dtype("W_dec_0")

    def skip(self, layer: int) -> Tensor | None:
        return None

    def bias(self, layer: int) -> Tensor:
        return self._encoders[layer].get(f"b_dec_{layer}", (self.d_model,)).float()


class CircuitTracerPerLayerReader(TranscoderReader):
    """Per-layer transcoders in `layer_{i}.safetensors`, or in the files that `transcoders:` of `config.yaml` lists."""

    cross_layer = False

    def __init__(self, files: list[TensorFile], settings: Settings, check: bool = True) -> None:
        """Open each layer's file, layer 0 first.

        Args:
            files: The files.
            settings: What the config says.
            check: Whether to read biases and thresholds and refuse NaN and infinity.

        Raises:
            ValueError: A file is damaged, of another shape, or has a tensor that is not known.
        """
        self.folder, self.name, self.reads = settings.folder, settings.name, settings.reads
        self.n_layers, self._files = len(files), files
        self.d_model = self._files[0].shape("W_enc")[1]
        self.n_features, self._thresholds = [], []
        for file in files:
            file.check_keys(("W_enc", "W_dec", "b_enc", "b_dec"), (*_THRESHOLDS, "W_skip", "k"))
            self.n_features.append(file.check("W_enc", (None, self.d_model))[0])
            file.check("W_dec", (self.n_features[-1], self.d_model))
            names = [key for key in _THRESHOLDS if key in file.keys]
            if len(names) > 1:
                raise ValueError(f"{file.path}: has tensors {' and '.join(names)}; expected one of them")
            self._thresholds.append(names[0] if names else _THRESHOLDS[0])
        check_skips(files, "W_skip", [(settings.path, settings.skip)] * self.n_layers, "skip_connection")
        self.activation = settings.agreed_activation(files, self._thresholds)
        self.l0 = self.activation.k
        if check:
            for layer, file in enumerate(files):
                _check_vectors(self, file, layer, ("b_enc", self._thresholds[layer]))

    def encoder(self, layer: int) -> Encoder:
        file, n_features = self._files[layer], self.n_features[layer]
        return Encoder(
            file.get("W_enc", (n_features, self.d_model)).T,
            file.get("b_enc", (n_features,)).float(),
            _threshold(file, self._thresholds[layer], n_features, self.activation),
        )

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        return self._files[layer].rows("W_dec", (self.n_features[layer], self.d_model), features_n).unsqueeze(1)

    def decoder(self, layer: int) -> Tensor:
        return self._files[layer].get("W_dec", (self.n_features[layer], self.d_model), unread=True).unsqueeze(1)

    def dtype(self) -> torch.dtype:
        return self._files[0].dtype("W_dec")

    def skip(self, layer: int) -> Tensor | None:
        file = self._files[layer]
        if "W_skip" not in file.keys:
            return None
        return file.get("W_skip", (self.d_model, self.d_model)).T  # stored transposed, compared with Gemma Scope 2

    def bias(self, layer: int) -> Tensor:
        return self._files[layer].get("b_dec", (self.d_model,)).float()


def _threshold(file: TensorFile, key: str, n_features: int, activation: Activation) -> Tensor:
    """Thresholds (F,) float32; without any in the file, zeros, which make a ReLU, or minus infinity for a TopK."""
    if key not in file.keys:
        return torch.full((n_features,), -torch.inf if activation.kind is ActivationKind.TOP_K else 0.0)
    shape = file.shape(key)
    stored = file.get(key, shape).float()
    if stored.numel() not in (1, n_features):
        raise ValueError(f"{file.path}: {key} has shape {shape}; expected ({n_features},)")
    return stored.flatten().expand(n_features).contiguous()


def _check_vectors(reader: TranscoderReader, file: TensorFile, layer: int, keys: tuple[str, str]) -> None:
    """Read a layer's small tensors once, so that damaged ones are refused when files are opened."""
    bias, threshold = keys
    file.get(bias, (reader.n_features[layer],))
    _threshold(file, threshold, reader.n_features[layer], reader.activation)
    reader.bias(layer)


def _count_layers(folder: Path, prefix: str) -> int:
    numbers = sorted(
        int(match[1])
        for path in folder.iterdir()
        if (match := re.fullmatch(rf"{prefix}_(\d+)\.safetensors", path.name))
    )
    if not numbers:
        raise FileNotFoundError(f"{folder}: has no {prefix}_0.safetensors, and config.yaml lists no files")
    for expected in range(numbers[-1] + 1):
        if expected not in numbers:
            raise FileNotFoundError(f"{folder / f'{prefix}_{expected}.safetensors'}: layer file is missing")
    return len(numbers)


def _open(folder: Path, name: str, check: bool) -> TranscoderReader:
    settings = read_settings(folder, name)
    paths, temporary = settings.listed_files(whole=check)
    if paths is None:
        reader = _open_folder(settings, check)
    elif repeated := first_repeated(paths):
        file, first, again = repeated
        raise ValueError(f"{settings.path}: transcoders: lists {file.name} twice, for layers {first} and {again}")
    else:
        reader = _open_listed([TensorFile(path) for path in paths], settings, check)
    for part in temporary:
        hub.keep_with(part, reader)
    return reader


def _open_folder(settings: Settings, check: bool) -> TranscoderReader:
    """Open the files that lie beside the config, by their names."""

    def files(prefix: str) -> list[TensorFile]:
        return [TensorFile(settings.folder / f"{prefix}_{layer}.safetensors") for layer in range(n_layers)]

    n_layers = _count_layers(settings.folder, "W_enc" if settings.cross_layer else "layer")
    if settings.cross_layer:
        return CircuitTracerCrossLayerReader(files("W_enc"), files("W_dec"), settings, check)
    return CircuitTracerPerLayerReader(files("layer"), settings, check)


def _open_listed(files: list[TensorFile], settings: Settings, check: bool) -> TranscoderReader:
    """Open the files that a config lists, whose tensors tell their layout."""
    layouts = [_layout(file) for file in files]
    for file, layout in zip(files, layouts, strict=True):
        if layout is not layouts[0]:
            raise ValueError(f"{file.path}: is {layout.value}, but {files[0].path} is {layouts[0].value}")
    if layouts[0].cross_layer != settings.cross_layer:
        raise ValueError(f"{settings.path}: model_kind is {settings.kind}, but {files[0].path} is {layouts[0].value}")
    match layouts[0]:
        case _Layout.OURS:
            return CircuitTracerPerLayerReader(files, settings, check)
        case _Layout.OURS_CROSS_LAYER:
            return _open_cross_layer(files, settings, check)
        case _:
            affine = [(settings.path, settings.skip)] * len(files)
            reader = GemmaScopeReader(
                [file.path for file in files],
                settings.folder,
                settings.name,
                settings.cross_layer,
                settings.reads,
                check=check,
                affine=affine,
            )
            reader.activation = settings.agreed_activation(files, ["threshold"] * len(files))
            return reader


def _open_cross_layer(files: list[TensorFile], settings: Settings, check: bool) -> TranscoderReader:
    """Open listed files of a cross-layer transcoder; encoder and decoder of a layer may lie in one file or in two."""
    found: dict[str, list[TensorFile]] = {}
    for file in files:
        for key in file.keys:
            if _NUMBERED.fullmatch(key):
                found.setdefault(key, []).append(file)
    n_layers = 1 + max(int(key.rpartition("_")[2]) for key in found)
    for key in (f"{kind}_{layer}" for kind in ("W_enc", "W_dec") for layer in range(n_layers)):
        if len(holders := found.get(key, [])) != 1:
            where = "in none" if not holders else "in " + " and ".join(str(file.path) for file in holders)
            raise ValueError(f"{settings.path}: transcoders: tensor {key} is {where} of the listed files; expected one")
    encoders, decoders = ([found[f"{kind}_{layer}"][0] for layer in range(n_layers)] for kind in ("W_enc", "W_dec"))
    return CircuitTracerCrossLayerReader(encoders, decoders, settings, check)


class _Layout(Enum):
    """How a file's tensors are laid out; the value is how messages name it."""

    OURS = "a transcoder of circuit-tracer"
    OURS_CROSS_LAYER = "part of a cross-layer transcoder of circuit-tracer"
    SCOPE = "a transcoder of Gemma Scope 2"
    SCOPE_CROSS_LAYER = "part of a cross-layer transcoder of Gemma Scope 2"

    @property
    def cross_layer(self) -> bool:
        return self in (_Layout.OURS_CROSS_LAYER, _Layout.SCOPE_CROSS_LAYER)


def _layout(file: TensorFile) -> _Layout:
    if "w_dec" in file.keys:
        return _Layout.SCOPE_CROSS_LAYER if len(file.shape("w_dec")) == 3 else _Layout.SCOPE
    if "W_enc" in file.keys:
        return _Layout.OURS
    if any(_NUMBERED.fullmatch(key) for key in file.keys):
        return _Layout.OURS_CROSS_LAYER
    raise ValueError(
        f"{file.path}: has tensors {', '.join(sorted(file.keys)) or '(none)'}; expected w_enc, w_dec, … (Gemma Scope 2), "
        "W_enc, W_dec, … (circuit-tracer, per layer) or W_enc_0, W_dec_0, … (circuit-tracer, cross-layer)"
    )


def _patterns(inner: str) -> list[str]:
    """At a repository's root, where `*` would be everything, the files by their names."""
    return [f"{inner}/*"] if inner else [CONFIG, *(f"{start}_*.safetensors" for start in ("W_enc", "W_dec", "layer"))]


FORMAT = FileFormat("circuit-tracer", CONFIG, lambda path: (path / CONFIG).is_file(), _open, _patterns)
