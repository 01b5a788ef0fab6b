"""circuit-tracer's files: `config.yaml`, and one file (for a CLT an encoder and a decoder file) per layer.

Letters: L layers, F features of a layer, D d_model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import Tensor

from crosstrace.replacement_model import hub
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import Activation, ActivationKind, Encoder, TranscoderReader
from crosstrace.replacement_model.dictionaries.readers.base import FileFormat, site_of
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

_INPUT_HOOKS = {
    "hook_resid_mid": Site.MLP_INPUT,
    "mlp.hook_in": Site.MLP_INPUT_NORMED,
}
_OUTPUT_HOOKS = {"hook_mlp_out": Site.MLP_OUTPUT}
_THRESHOLD = "activation_function.threshold"  # in a per-layer file


class CircuitTracerCrossLayerReader(TranscoderReader):
    """A cross-layer transcoder in `W_enc_{i}.safetensors` and `W_dec_{i}.safetensors`: row j writes to layer i + j."""

    cross_layer = True

    def __init__(self, folder: Path, name: str, reads: Site) -> None:
        """Open the files of a folder.

        Raises:
            FileNotFoundError: A layer's file is missing.
            ValueError: A file is damaged, of another shape, or has a tensor that is not known.
        """
        self.folder, self.name, self.reads = folder, name, reads
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
        self.activation = _activation(f"threshold_{layer}" in file.keys for layer, file in enumerate(self._encoders))

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
    """Per-layer transcoders in `layer_{i}.safetensors`, or in the files that `transcoders:` of `config.yaml` lists."""

    cross_layer = False

    def __init__(self, files: list[Path], folder: Path, name: str, reads: Site) -> None:
        """Open each layer's file, layer 0 first.

        Raises:
            FileNotFoundError: A layer's file is missing.
            ValueError: A file is damaged or of another shape.
        """
        self.folder, self.name, self.reads = folder, name, reads
        self._files = [TensorFile(path) for path in files]
        self.n_layers = len(files)
        self.d_model = self._files[0].shape("W_enc")[1]
        self.n_features = [file.check("W_enc", (None, self.d_model))[0] for file in self._files]
        for file, n_features in zip(self._files, self.n_features, strict=True):
            file.check("W_dec", (n_features, self.d_model))
        self.activation = _activation(_THRESHOLD in file.keys for file in self._files)

    def encoder(self, layer: int) -> Encoder:
        file, n_features = self._files[layer], self.n_features[layer]
        return Encoder(
            file.get("W_enc", (n_features, self.d_model)).T,
            file.get("b_enc", (n_features,)).float(),
            _threshold(file, _THRESHOLD, n_features),
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
        return file.get("W_skip", (self.d_model, self.d_model)).T  # stored transposed, compared with Gemma Scope 2

    def bias(self, layer: int) -> Tensor:
        return self._files[layer].get("b_dec", (self.d_model,)).float()


def _activation(with_thresholds: Iterable[bool]) -> Activation:
    return Activation(ActivationKind.JUMP_RELU if any(with_thresholds) else ActivationKind.RELU)


def _threshold(file: TensorFile, key: str, n_features: int) -> Tensor:
    """Thresholds (F,) float32; zeros if the file has none, which makes a ReLU."""
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


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    kind = config.get("model_kind") if isinstance(config, dict) else None
    if kind not in ("transcoder_set", "cross_layer_transcoder"):
        raise ValueError(f"{path}: model_kind is {kind!r}; expected transcoder_set or cross_layer_transcoder")
    return config


def _open(folder: Path, name: str, check: bool) -> TranscoderReader:
    config, path = _read_config(folder), folder / "config.yaml"
    site = site_of(str(config.get("feature_input_hook")), path, _INPUT_HOOKS, "feature_input_hook")
    site_of(str(config.get("feature_output_hook")), path, _OUTPUT_HOOKS, "feature_output_hook")
    files, temporary = _listed_files(folder, config, whole=check)
    reader = _open_files(folder, name, config["model_kind"], site, files)
    for part in temporary:
        hub.keep_with(part, reader)
    return reader


def _open_files(folder: Path, name: str, kind: str, site: Site, files: list[Path] | None) -> TranscoderReader:
    if kind == "cross_layer_transcoder":
        return CircuitTracerCrossLayerReader(folder, name, site)
    if files is None:
        files = [folder / f"layer_{layer}.safetensors" for layer in range(_count_layers(folder, "layer"))]
    if repeated := _repeated(files):
        file, first, again = repeated
        raise ValueError(
            f"{folder / 'config.yaml'}: transcoders: lists {file.name} twice, for layers {first} and {again}"
        )
    return CircuitTracerPerLayerReader(files, folder, name, site)


def _listed_files(
    folder: Path, config: dict[str, Any], whole: bool
) -> tuple[list[Path] | None, list[TemporaryDirectory[str] | None]]:
    """The files that `transcoders:` of a config lists: beside it, or `hf://org/repo/path[@revision]`.

    Without `whole` only the headers of files that are on the hub alone are fetched, into temporary folders.
    """
    entries = config.get("transcoders")
    if not entries:
        return None, []
    if repeated := _repeated(entries):  # known from the wild; caught before anything is fetched
        entry, first, again = repeated
        raise ValueError(f"{folder / 'config.yaml'}: transcoders: lists {entry} twice, for layers {first} and {again}")
    files: list[Path] = []
    temporary: list[TemporaryDirectory[str] | None] = []
    for entry in entries:
        if not entry.startswith("hf://"):
            files.append(folder / entry)
            continue
        repo, inner, revision = hub.split_reference(entry.removeprefix("hf://"))
        if whole:
            files.append(hub.fetch(repo, revision, [inner], entry) / inner)
        else:
            snapshot, kept = hub.fetch_headers(repo, revision, [inner], entry)
            files.append(snapshot / inner)
            temporary.append(kept)
    return files, temporary


def _repeated(entries: Sequence[Any]) -> tuple[Any, int, int] | None:
    """The first entry that stands twice, with both of its places."""
    seen: dict[Any, int] = {}
    for place, entry in enumerate(entries):
        if entry in seen:
            return entry, seen[entry], place
        seen[entry] = place
    return None


FORMAT = FileFormat("circuit-tracer", "config.yaml", lambda path: (path / "config.yaml").is_file(), _open)
