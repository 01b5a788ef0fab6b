"""Gemma Scope 2's files: a cross-layer transcoder's or crosscoder's folder, or one for each layer (transcoders or SAEs).

Letters: L layers, F features of a layer, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import (
    Activation,
    ActivationKind,
    Encoder,
    SparseDictionary,
    TranscoderReader,
)
from crosstrace.replacement_model.dictionaries.readers.base import (
    FileFormat,
    check_causal,
    check_skips,
    checked_rows,
)
from crosstrace.replacement_model.dictionaries.readers.gemma_scope_config import (
    PARAMETERS,
    by_layer,
    config_l0,
    families_in,
    family_patterns,
    hook_site,
    hooks_of,
    is_crosscoder,
    is_sae,
    l0_by_layer,
    layer_of,
    named_family,
    read_config,
    site_names,
)
from crosstrace.replacement_model.dictionaries.readers.gemma_scope_crosscoders import open_crosscoder
from crosstrace.replacement_model.dictionaries.readers.gemma_scope_saes import open_saes
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

_INPUT_HOOKS = {
    "pre_feedforward_layernorm.input": Site.MLP_INPUT,
    "pre_feedforward_layernorm.output": Site.MLP_INPUT_NORMED,
}
_OUTPUT_HOOKS = {"post_feedforward_layernorm.output": Site.MLP_OUTPUT}
_TENSORS = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")
_SKIP = "affine_skip_connection"


class GemmaScopeReader(TranscoderReader):
    """A cross-layer or per-layer transcoder set in Gemma Scope 2's layout."""

    activation = Activation(ActivationKind.JUMP_RELU)

    def __init__(
        self,
        files: list[Path],
        folder: Path,
        name: str,
        cross_layer: bool,
        reads: Site,
        l0: float | None = None,
        check: bool = True,
        affine: Sequence[tuple[Path, object]] | None = None,
    ) -> None:
        """Open the files.

        Args:
            files: Each layer's tensor file, layer 0 first.
            folder: Where labels are looked for.
            name: How graphs and messages name the transcoders.
            cross_layer: Whether features write to later layers too.
            reads: The site that encoders read.
            l0: The number of features of a layer that fire at a token, if the config says.
            check: Whether to read biases, thresholds and a sample of rows, and refuse NaN, infinity and weight towards
                earlier layers.
            affine: For each layer its config and what that says of a skip connection; None: no config speaks of it.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, of another shape, or has a tensor that is not known.
        """
        self.l0 = l0
        self.folder, self.name, self.cross_layer, self.reads = folder, name, cross_layer, reads
        self._files = [TensorFile(path) for path in files]
        self.n_layers = len(files)
        self.d_model = self._files[0].shape("w_enc")[0]
        self.n_features = []
        for layer, file in enumerate(self._files):
            file.check_keys(_TENSORS, [_SKIP])
            n_features = file.check("w_enc", (self.d_model, None))[1]
            self.n_features.append(n_features)
            file.check("w_dec", self._decoder_shape(layer))
            for key, size in (("b_enc", n_features), ("threshold", n_features), ("b_dec", self.d_model)):
                file.check(key, (size,))
                if check:
                    file.get(key, (size,))
            if cross_layer and check:
                sampled_n = checked_rows(n_features, self.n_layers * self.d_model * file.dtype("w_dec").itemsize)
                check_causal(file.rows("w_dec", self._decoder_shape(layer), sampled_n), layer, file.path)
        check_skips(self._files, _SKIP, affine or [(folder, None)] * self.n_layers)

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
        w_dec = self._files[layer].get("w_dec", self._decoder_shape(layer), unread=True)
        return w_dec[:, layer:] if self.cross_layer else w_dec.unsqueeze(1)

    def dtype(self) -> torch.dtype:
        return self._files[0].dtype("w_dec")

    def skip(self, layer: int) -> Tensor | None:
        file = self._files[layer]
        return file.get(_SKIP, (self.d_model, self.d_model)) if _SKIP in file.keys else None

    def bias(self, layer: int) -> Tensor:
        return self._files[layer].get("b_dec", (self.d_model,)).float()


def _open_cross_layer(folder: Path, name: str, check: bool) -> SparseDictionary:
    config_path, config = read_config(folder)
    if is_crosscoder(config):
        return open_crosscoder(folder, name, config_path, config, check)
    n_files = len(list(folder.glob("params_layer_*.safetensors")))
    n_layers = len(hooks_of(config_path, config, "hf_hook_point_in"))
    for layer in range(max(n_layers, n_files)):
        path = folder / f"params_layer_{layer}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: layer file is missing; expected layers 0 to {max(n_layers, n_files) - 1}")
    if n_files != n_layers:
        raise ValueError(f"{config_path}: names {n_layers} layers, but the folder has {n_files} layer files")
    reads = _check_sites(config_path, config, list(range(n_layers)))
    files = [folder / f"params_layer_{layer}.safetensors" for layer in range(n_layers)]
    affine = [(config_path, config.get("affine_connection"))] * n_layers
    return GemmaScopeReader(files, folder, name, True, reads, config_l0(config), check, affine)


def _open_per_layer(path: Path, name: str, check: bool) -> SparseDictionary:
    """A family of `layer_{L}_…` folders, by its short name or by the folder that holds no other."""
    if family := named_family(path):
        return _open_family(by_layer(family), path.parent, name, check)
    families = families_in(path)
    if len(families) > 1:
        names = sorted(families)
        raise ValueError(f"{path}: holds several families; name one, e.g. {path}/{names[0]} (of {', '.join(names)})")
    return _open_family(by_layer(next(iter(families.values()))), path, name, check)


def _open_family(folders: dict[int, Path], parent: Path, name: str, check: bool) -> SparseDictionary:
    configs = {layer: read_config(folder) for layer, folder in folders.items()}
    if is_sae(*next(iter(configs.values()))):
        return open_saes(folders, configs, parent, name, check)
    for expected in range(len(folders)):
        if expected not in folders:
            raise FileNotFoundError(
                f"{parent}: {name} has no folder for layer {expected} (found layers {list(folders)})"
            )
    sites = {_check_sites(path, config, [layer]) for layer, (path, config) in configs.items()}
    if len(sites) > 1:
        raise ValueError(f"{parent}: layers of {name} read different sites: {site_names(sites)}")
    files = [folder / PARAMETERS for folder in folders.values()]
    affine = [(path, config.get("affine_connection")) for path, config in configs.values()]
    reader = GemmaScopeReader(files, parent, name, False, sites.pop(), config_l0(configs[0][1]), check, affine)
    reader.l0_by_layer = l0_by_layer(configs)
    return reader


def _open_layer(folder: Path, name: str, check: bool) -> SparseDictionary:
    """One layer's folder, which for an SAE is enough."""
    path, config = read_config(folder)
    if not is_sae(path, config):
        raise ValueError(
            f"{folder}: holds the transcoder of one layer; expected a folder with one for every layer, or their family's name"
        )
    layer = layer_of(path, hooks_of(path, config, "hf_hook_point_in")[0], "hf_hook_point_in")
    return open_saes({layer: folder}, {layer: (path, config)}, folder, name, check)


def _cross_layer_patterns(inner: str) -> list[str]:
    return [f"{inner}/*"] if inner else ["config.json", "params_layer_*.safetensors"]


def _layer_patterns(inner: str) -> list[str]:
    return [f"{inner}/*"] if inner else ["config.json", PARAMETERS]


def _check_sites(path: Path, config: dict[str, Any], layers: list[int]) -> Site:
    """The common input site of the given layers' hooks; the layer in each hook's name must be the file's own."""
    found: dict[str, set[Site]] = {}
    for key, known in (("hf_hook_point_in", _INPUT_HOOKS), ("hf_hook_point_out", _OUTPUT_HOOKS)):
        hooks = hooks_of(path, config, key)
        if len(hooks) != len(layers):
            raise ValueError(f"{path}: {key} names {len(hooks)} sites; expected one for each of {len(layers)} layers")
        for layer, hook in zip(layers, hooks, strict=True):
            found.setdefault(key, set()).add(hook_site(path, hook, layer, known, key))
    sites = found["hf_hook_point_in"]
    if len(sites) > 1:
        raise ValueError(f"{path}: layers read different sites: {site_names(sites)}")
    return sites.pop()


CROSS_LAYER = FileFormat(
    "Gemma Scope 2, cross-layer",
    "params_layer_0.safetensors",
    lambda path: any(path.glob("params_layer_*.safetensors")),
    _open_cross_layer,
    _cross_layer_patterns,
)
PER_LAYER = FileFormat(
    "Gemma Scope 2, per layer",
    "layer_0_…/params.safetensors",
    lambda path: bool(named_family(path) or families_in(path)),
    _open_per_layer,
    family_patterns,
)
ONE_LAYER = FileFormat(
    "Gemma Scope 2, one layer",
    PARAMETERS,
    lambda path: (path / PARAMETERS).is_file(),
    _open_layer,
    _layer_patterns,
)
