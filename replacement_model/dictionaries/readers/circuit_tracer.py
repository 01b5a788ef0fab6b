"""circuit-tracer's files: ``config.yaml`` with one file (or, for a CLT, an encoder and a decoder file) a layer.

Letters: L layers, F features of a layer, D d_model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from crosstrace.replacement_model.dictionaries.readers.base import (
    Encoder,
    TranscoderReader,
    site_of,
)
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

_INPUT_HOOKS = {
    "hook_resid_mid": "pre_feedforward_layernorm.input",
    "mlp.hook_in": "pre_feedforward_layernorm.output",
}
_OUTPUT_HOOKS = {"hook_mlp_out": "post_feedforward_layernorm.output"}


class CircuitTracerCrossLayerReader(TranscoderReader):
    """``W_enc_{i}.safetensors`` and ``W_dec_{i}.safetensors``: row j of W_dec_i writes to layer i + j."""

    cross_layer = True

    def __init__(self, folder: Path, name: str, input_site: str) -> None:
        self.folder, self.name, self.input_site = folder, name, input_site
        self.n_layers = _count_layers(folder, "W_enc")
        self._encoders = [TensorFile(folder / f"W_enc_{layer}.safetensors") for layer in range(self.n_layers)]
        self._decoders = [TensorFile(folder / f"W_dec_{layer}.safetensors") for layer in range(self.n_layers)]
        self.d_model = self._encoders[0].shape("W_enc_0")[1]
        self.n_features = [
            file.check(f"W_enc_{layer}", (None, self.d_model))[0] for layer, file in enumerate(self._encoders)
        ]
        for layer, file in enumerate(self._encoders):
            self._decoders[layer].check(f"W_dec_{layer}", self._decoder_shape(layer))
            known = {f"{key}_{layer}" for key in ("W_enc", "b_enc", "b_dec", "threshold")}
            if unknown := file.keys - known:  # such as a skip connection: left out, every edge would be wrong
                raise ValueError(f"{file.path}: unknown tensor {min(unknown)}; expected {', '.join(sorted(known))}")

    def _decoder_shape(self, layer: int) -> tuple[int, int, int]:
        return self.n_features[layer], self.n_layers - layer, self.d_model

    def encoder(self, layer: int) -> Encoder:
        file, n_features = self._encoders[layer], self.n_features[layer]
        return Encoder(
            file.get(f"W_enc_{layer}", (n_features, self.d_model)).T,
            file.get(f"b_enc_{layer}", (n_features,)).float(),
            _threshold(file, f"threshold_{layer}", n_features),
        )

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        return self._decoders[layer].rows(f"W_dec_{layer}", self._decoder_shape(layer), features_n)

    def decoder(self, layer: int) -> Tensor:
        return self._decoders[layer].get(f"W_dec_{layer}", self._decoder_shape(layer))

    def dtype(self) -> torch.dtype:
        return self._decoders[0].dtype("W_dec_0")

    def skip(self, layer: int) -> Tensor | None:
        return None

    def bias(self, layer: int) -> Tensor:
        return self._encoders[layer].get(f"b_dec_{layer}", (self.d_model,)).float()


class CircuitTracerPerLayerReader(TranscoderReader):
    """``layer_{i}.safetensors``, or the files that ``transcoders:`` of ``config.yaml`` lists, layer 0 first."""

    cross_layer = False

    def __init__(self, files: list[Path], folder: Path, name: str, input_site: str) -> None:
        self.folder, self.name, self.input_site = folder, name, input_site
        self._files = [TensorFile(path) for path in files]
        self.n_layers = len(files)
        self.d_model = self._files[0].shape("W_enc")[1]
        self.n_features = [file.check("W_enc", (None, self.d_model))[0] for file in self._files]
        for file, n_features in zip(self._files, self.n_features, strict=True):
            file.check("W_dec", (n_features, self.d_model))

    def encoder(self, layer: int) -> Encoder:
        file, n_features = self._files[layer], self.n_features[layer]
        return Encoder(
            file.get("W_enc", (n_features, self.d_model)).T,
            file.get("b_enc", (n_features,)).float(),
            _threshold(file, "activation_function.threshold", n_features),
        )

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        return self._files[layer].rows("W_dec", (self.n_features[layer], self.d_model), features_n).unsqueeze(1)

    def decoder(self, layer: int) -> Tensor:
        return self._files[layer].get("W_dec", (self.n_features[layer], self.d_model)).unsqueeze(1)

    def dtype(self) -> torch.dtype:
        return self._files[0].dtype("W_dec")

    def skip(self, layer: int) -> Tensor | None:
        file = self._files[layer]
        if "W_skip" not in file.keys:
            return None
        return file.get("W_skip", (self.d_model, self.d_model)).T  # stored the other way round than Gemma Scope 2's

    def bias(self, layer: int) -> Tensor:
        return self._files[layer].get("b_dec", (self.d_model,)).float()


def _threshold(file: TensorFile, key: str, n_features: int) -> Tensor:
    """(F,) float32; a file without thresholds is a ReLU."""
    if key not in file.keys:
        return torch.zeros(n_features)
    shape = file.shape(key)
    stored = file.get(key, shape).float()
    if stored.numel() not in (1, n_features):
        raise ValueError(f"{file.path}: {key} has shape {shape}; expected ({n_features},)")
    return stored.flatten().expand(n_features).contiguous()


def _count_layers(folder: Path, prefix: str) -> int:
    numbers = sorted(
        int(match[1])
        for path in folder.iterdir()
        if (match := re.fullmatch(rf"{prefix}_(\d+)\.safetensors", path.name))
    )
    if not numbers:
        raise FileNotFoundError(f"{folder}: has no {prefix}_0.safetensors")
    for expected in range(numbers[-1] + 1):
        if expected not in numbers:
            raise FileNotFoundError(f"{folder / f'{prefix}_{expected}.safetensors'}: layer file is missing")
    return len(numbers)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` as a mapping.

    Raises:
        ValueError: not YAML, or a kind of transcoder this reader does not know.
    """
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    kind = config.get("model_kind") if isinstance(config, dict) else None
    if kind not in ("transcoder_set", "cross_layer_transcoder"):
        raise ValueError(f"{path}: model_kind is {kind!r}; expected transcoder_set or cross_layer_transcoder")
    return config


def read_circuit_tracer(folder: Path, name: str, listed_files: list[Path] | None = None) -> TranscoderReader:
    """A folder with ``config.yaml``.

    Args:
        listed_files: the local copies of the files that its ``transcoders:`` list names, if it has one.

    Raises:
        ValueError, FileNotFoundError: a file is missing, listed twice, damaged, of another shape or site.
    """
    config, path = read_config(folder), folder / "config.yaml"
    site = site_of(str(config.get("feature_input_hook")), path, _INPUT_HOOKS, "feature_input_hook")
    site_of(str(config.get("feature_output_hook")), path, _OUTPUT_HOOKS, "feature_output_hook")
    if config["model_kind"] == "cross_layer_transcoder":
        return CircuitTracerCrossLayerReader(folder, name, site)
    if listed_files is None:
        count = _count_layers(folder, "layer")
        listed_files = [folder / f"layer_{layer}.safetensors" for layer in range(count)]
    seen: dict[Path, int] = {}
    for layer, file in enumerate(listed_files):
        if file in seen:
            raise ValueError(f"{path}: transcoders: lists {file.name} twice, for layers {seen[file]} and {layer}")
        seen[file] = layer
    return CircuitTracerPerLayerReader(listed_files, folder, name, site)
