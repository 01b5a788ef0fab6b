"""Gemma Scope 2's SAEs: a folder `layer_{L}_width_{W}_l0_{small|big}` for each layer, one of them or a family.

Letters: F features of a layer, D the width of the site.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import Activation, ActivationKind, Encoder, SparseDictionary
from crosstrace.replacement_model.dictionaries.readers.gemma_scope_config import (
    PARAMETERS,
    hook_site,
    hooks_of,
    is_sae,
    l0_by_layer,
    site_names,
)
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

_HOOKS = {
    "output": Site.RESIDUAL,
    "post_feedforward_layernorm.output": Site.MLP_OUTPUT,
    "self_attn.o_proj.input": Site.ATTENTION_HEADS,
}
_TENSORS = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")


class GemmaScopeSaeReader(SparseDictionary):
    """SAEs of one site in Gemma Scope 2's layout, at one layer or several."""

    activation = Activation(ActivationKind.JUMP_RELU)

    def __init__(self, files: Mapping[int, Path], folder: Path, name: str, site: Site, check: bool = True) -> None:
        """Open the files.

        Args:
            files: The tensor file of each layer, ascending.
            folder: Where labels are looked for.
            name: How messages name the SAEs.
            site: The site that they read and write.
            check: Whether to read biases and thresholds, and refuse NaN and infinity.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, of another shape, or has a tensor that is not known.
        """
        self.folder, self.name, self.reads, self.writes = folder, name, site, site
        self._layers = tuple(files)
        self._files = {layer: TensorFile(path) for layer, path in files.items()}
        self.d_model = next(iter(self._files.values())).shape("w_enc")[0]
        self.n_features = []
        for file in self._files.values():
            file.check_keys(_TENSORS)
            n_features = file.check("w_enc", (self.d_model, None))[1]
            self.n_features.append(n_features)
            file.check("w_dec", (n_features, self.d_model))
            for key, size in (("b_enc", n_features), ("threshold", n_features), ("b_dec", self.d_model)):
                file.check(key, (size,))
                if check:
                    file.get(key, (size,))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose site it reads, ascending."""
        return self._layers

    def encoder(self, layer: int) -> Encoder:
        file = self._files[layer]
        return Encoder(
            file.get("w_enc", (self.d_model, None)),
            file.get("b_enc", (None,)).float(),
            file.get("threshold", (None,)).float(),
        )

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        return self._files[layer].rows("w_dec", (None, self.d_model), features_n).unsqueeze(1)

    def decoder(self, layer: int) -> Tensor:
        return self._files[layer].get("w_dec", (None, self.d_model), unread=True).unsqueeze(1)

    def dtype(self) -> torch.dtype:
        return self._files[self._layers[0]].dtype("w_dec")

    def bias(self, layer: int) -> Tensor:
        return self._files[layer].get("b_dec", (self.d_model,)).float()


def open_saes(
    folders: Mapping[int, Path],
    configs: Mapping[int, tuple[Path, Mapping[str, Any]]],
    folder: Path,
    name: str,
    check: bool,
) -> GemmaScopeSaeReader:
    """Open the SAEs of some layers.

    Args:
        folders: The folder of each layer, ascending.
        configs: Each layer's config and where it is.
        folder: Where labels are looked for.
        name: How messages name the SAEs.
        check: As for `GemmaScopeSaeReader`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or says something that cannot be read exactly; it is named.
    """
    sites = {_site(path, config, layer) for layer, (path, config) in configs.items()}
    if len(sites) > 1:
        raise ValueError(f"{folder}: layers of {name} read different sites: {site_names(sites)}")
    files = {layer: of_layer / PARAMETERS for layer, of_layer in folders.items()}
    reader = GemmaScopeSaeReader(files, folder, name, sites.pop(), check)
    reader.l0_by_layer = l0_by_layer(configs)
    reader.l0 = next(iter(reader.l0_by_layer.values()), None)
    return reader


def _site(path: Path, config: Mapping[str, Any], layer: int) -> Site:
    """The site of one layer's SAE, which it reads and writes."""
    if not is_sae(path, config):
        raise ValueError(f"{path}: type is {config.get('type')!r}; expected sae, as at the other layers")
    if config.get("affine_connection"):
        raise ValueError(f"{path}: affine_connection is {config['affine_connection']!r}; an SAE has no skip connection")
    sites = []
    for key in ("hf_hook_point_in", "hf_hook_point_out"):
        if key == "hf_hook_point_out" and config.get(key) is None:
            continue  # an SAE writes what it reads
        hooks = hooks_of(path, config, key)
        if len(hooks) != 1:
            raise ValueError(f"{path}: {key} names {len(hooks)} sites; expected one, that of layer {layer}")
        sites.append(hook_site(path, hooks[0], layer, _HOOKS, key))
    if len(set(sites)) > 1:
        raise ValueError(f"{path}: reads {sites[0].value} and writes {sites[1].value}; an SAE writes what it reads")
    return sites[0]
