"""Gemma Scope 2's files: one cross-layer transcoder folder, or a family of per-layer transcoder folders.

Letters: L layers, F features of a layer, D d_model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.dictionaries.readers.base import (
    INPUT_SITES,
    OUTPUT_SITE,
    Encoder,
    TranscoderReader,
    check_causal,
    checked_rows,
    site_of,
)
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

_HOOK = re.compile(r"(?:language_)?model\.(?:language_model\.)?layers\.(\d+)\.(.+)")


class GemmaScopeReader(TranscoderReader):
    """A cross-layer or per-layer transcoder set in Gemma Scope 2's layout."""

    def __init__(
        self,
        files: list[Path],
        folder: Path,
        name: str,
        cross_layer: bool,
        input_site: str,
        l0: float | None = None,
        check: bool = True,
    ) -> None:
        """``files`` holds each layer's tensor file, layer 0 first; ``check``: read a sample of rows for causality."""
        self.l0 = l0
        self.folder, self.name, self.cross_layer, self.input_site = folder, name, cross_layer, input_site
        self._files = [TensorFile(path) for path in files]
        self.n_layers = len(files)
        self.d_model = self._files[0].shape("w_enc")[0]
        self.n_features = []
        for layer, file in enumerate(self._files):
            n_features = file.check("w_enc", (self.d_model, None))[1]
            self.n_features.append(n_features)
            file.check("w_dec", self._decoder_shape(layer))
            file.check("b_dec", (self.d_model,))
            if cross_layer and check:
                sampled_n = checked_rows(n_features, self.n_layers * self.d_model * file.dtype("w_dec").itemsize)
                check_causal(file.rows("w_dec", self._decoder_shape(layer), sampled_n), layer, file.path)

    def _decoder_shape(self, layer: int) -> tuple[int, ...]:
        written = (self.n_layers,) if self.cross_layer else ()
        return (self.n_features[layer], *written, self.d_model)

    def encoder(self, layer: int) -> Encoder:
        file, n_features = self._files[layer], self.n_features[layer]
        return Encoder(
            file.get("w_enc", (self.d_model, n_features)),
            file.get("b_enc", (n_features,)).float(),
            file.get("threshold", (n_features,)).float(),
        )

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        file, shape = self._files[layer], self._decoder_shape(layer)
        if not self.cross_layer:
            return file.rows("w_dec", shape, features_n).unsqueeze(1)
        if layer:
            sampled = checked_rows(len(features_n), self.n_layers * self.d_model * file.dtype("w_dec").itemsize)
            rows_nld = file.rows("w_dec", shape, features_n[sampled.to(features_n.device)])
            check_causal(rows_nld, layer, file.path, "the active features' decoder")
        return file.rows("w_dec", shape, features_n, first_column=layer)

    def decoder(self, layer: int) -> Tensor:
        w_dec = self._files[layer].get("w_dec", self._decoder_shape(layer))
        return w_dec[:, layer:] if self.cross_layer else w_dec.unsqueeze(1)

    def dtype(self) -> torch.dtype:
        return self._files[0].dtype("w_dec")

    def skip(self, layer: int) -> Tensor | None:
        file = self._files[layer]
        if "affine_skip_connection" not in file.keys:
            return None
        return file.get("affine_skip_connection", (self.d_model, self.d_model))

    def bias(self, layer: int) -> Tensor:
        return self._files[layer].get("b_dec", (self.d_model,)).float()


def read_cross_layer(folder: Path, name: str, check: bool = True) -> GemmaScopeReader:
    """A ``clt/width_…`` folder: ``config.json`` and ``params_layer_{0..L-1}.safetensors``.

    Raises:
        ValueError, FileNotFoundError: config or a layer file is missing, damaged, or of another shape.
    """
    config_path, config = _read_config(folder)
    n_files = len(list(folder.glob("params_layer_*.safetensors")))
    n_layers = len(_hooks(config, "hf_hook_point_in")) or n_files
    for layer in range(max(n_layers, n_files)):
        path = folder / f"params_layer_{layer}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: layer file is missing; expected layers 0 to {max(n_layers, n_files) - 1}")
    if n_files != n_layers:
        raise ValueError(f"{config_path}: names {n_layers} layers, but the folder has {n_files} layer files")
    input_site = _check_sites(config_path, config, list(range(n_layers)))
    files = [folder / f"params_layer_{layer}.safetensors" for layer in range(n_layers)]
    return GemmaScopeReader(files, folder, name, True, input_site, _l0(config), check)


def read_per_layer(folders: list[Path], parent: Path, name: str) -> GemmaScopeReader:
    """A family of ``layer_{L}_…`` folders, each with ``config.json`` and ``params.safetensors``, layer 0 first.

    Raises:
        ValueError, FileNotFoundError: a layer is missing or twice there, damaged, or of another shape.
    """
    numbers = [int(folder.name.split("_")[1]) for folder in folders]
    for expected in range(len(numbers)):
        if expected not in numbers:
            raise FileNotFoundError(
                f"{parent}: {name} has no folder for layer {expected} (found layers {sorted(numbers)})"
            )
    ordered = [folder for _, folder in sorted(zip(numbers, folders, strict=True))]
    configs = [_read_config(folder) for folder in ordered]
    sites = {_check_sites(path, config, [layer]) for layer, (path, config) in enumerate(configs)}
    if len(sites) > 1:
        raise ValueError(f"{parent}: layers of {name} read different sites: {', '.join(sorted(sites))}")
    files = [folder / "params.safetensors" for folder in ordered]
    return GemmaScopeReader(files, parent, name, False, sites.pop(), _l0(configs[0][1]))


def _read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: file is missing (Gemma Scope 2 keeps hook points there)")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ValueError(f"{path}: architecture {config['architecture']!r} is not supported; supported: jump_relu")
    return path, config


def _l0(config: dict[str, Any]) -> float | None:
    value = config.get("l0")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _hooks(config: dict[str, Any], key: str) -> list[str]:
    value = config.get(key, [])
    return [value] if isinstance(value, str) else list(value)


def _check_sites(path: Path, config: dict[str, Any], layers: list[int]) -> str:
    """The common input site of the given layers' hooks; the layer in each hook's name must be the file's own."""
    found: dict[str, set[str]] = {}
    for key, known in (("hf_hook_point_in", INPUT_SITES), ("hf_hook_point_out", (OUTPUT_SITE,))):
        hooks = _hooks(config, key)
        if len(hooks) != len(layers):
            raise ValueError(f"{path}: {key} names {len(hooks)} sites; expected one for each of {len(layers)} layers")
        for layer, hook in zip(layers, hooks, strict=True):
            match = _HOOK.fullmatch(hook)
            if match is None or int(match[1]) != layer:
                raise ValueError(f"{path}: {key} names {hook!r}; expected a site of model.layers.{layer}")
            found.setdefault(key, set()).add(site_of(match[2], path, {site: site for site in known}, key))
    sites = found["hf_hook_point_in"]
    if len(sites) > 1:
        raise ValueError(f"{path}: layers read different sites: {', '.join(sorted(sites))}")
    return sites.pop()
