"""Gemma Scope 2's crosscoders: a folder `layer_{a}_{b}_{c}_{d}_width_{W}_l0_{l0}` with one file for each depth.

The files tell which kind they are of by the shape of their decoders.

- `w_dec` (F, K, D), K the number of depths: weakly causal. Each depth has features of its own, which read that depth and
  write it and later ones, as a cross-layer transcoder's do.
- `w_dec` (F, D): acausal. One set of latents reads all depths, added up, and writes all: each file has its depth's part of the
  encoder and of the decoder, and all have the same biases and thresholds.

Letters: F features, K depths, D d_model, n decoder rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import Activation, ActivationKind, Encoder, SparseDictionary
from crosstrace.replacement_model.dictionaries.readers.base import check_causal, checked_rows
from crosstrace.replacement_model.dictionaries.readers.gemma_scope_config import (
    config_l0,
    hook_site,
    hooks_of,
    layer_of,
    named_depths,
)
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

_HOOKS = {"output": Site.RESIDUAL}
_TENSORS = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")


class GemmaScopeCrosscoderReader(SparseDictionary):
    """A crosscoder of the residual stream in Gemma Scope 2's layout.

    Attributes:
        depths: The layers whose output is read and written, ascending.
        acausal: Whether one set of latents reads and writes all depths; see the module.
    """

    activation = Activation(ActivationKind.JUMP_RELU)
    reads = writes = Site.RESIDUAL

    def __init__(self, files: Mapping[int, Path], folder: Path, name: str, check: bool = True) -> None:
        """Open the files.

        Args:
            files: The tensor file of each depth, ascending.
            folder: Where labels are looked for.
            name: How messages name the crosscoder.
            check: Whether to read biases, thresholds and a sample of rows, and refuse NaN, infinity, weight towards earlier
                depths, and shared latents whose files disagree.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, of another shape, or has a tensor that is not known.
        """
        self.folder, self.name = folder, name
        self.depths = tuple(files)
        self._files = {depth: TensorFile(path) for depth, path in files.items()}
        first = self._files[self.depths[0]]
        self.d_model, n_shared = first.check("w_enc", (None, None))
        self.acausal = len(first.shape("w_dec")) == 2
        self.n_features = []
        for index, (depth, file) in enumerate(self._files.items()):
            file.check_keys(_TENSORS)
            n_features = file.check("w_enc", (self.d_model, n_shared if self.acausal else None))[1]
            self.n_features.append(n_features)
            file.check("w_dec", self._decoder_shape(n_features))
            for key, size in (("b_enc", n_features), ("threshold", n_features), ("b_dec", self.d_model)):
                file.check(key, (size,))
                if check:
                    values = file.get(key, (size,))
                    if self.acausal and key != "b_dec" and not torch.equal(values, first.get(key, (size,))):
                        raise ValueError(
                            f"{file.path}: {key} is not that of {first.path.name}; expected the same in every file, since "
                            "the depths share their latents"
                        )
            if check and not self.acausal:
                sampled_n = checked_rows(n_features, len(files) * self.d_model * file.dtype("w_dec").itemsize)
                rows_nkd = file.rows("w_dec", self._decoder_shape(n_features), sampled_n)
                check_causal(rows_nkd, index, file.path, kind="weakly causal crosscoder", named=depth)
        if self.acausal:
            self.n_features = self.n_features[-1:]

    def _decoder_shape(self, n_features: int | None) -> tuple[int | None, ...]:
        return (n_features, *(() if self.acausal else (len(self.depths),)), self.d_model)

    @property
    def layers(self) -> Sequence[int]:
        """The depths that have features of their own; where all share one set, the deepest."""
        return self.depths[-1:] if self.acausal else self.depths

    def n_written(self, layer: int) -> int:
        return len(self.written_layers(layer))

    def read_layers(self, layer: int) -> Sequence[int]:
        return self.depths if self.acausal else (layer,)

    def written_layers(self, layer: int) -> Sequence[int]:
        return self.depths if self.acausal else self.depths[self.depths.index(layer) :]

    def encoder(self, layer: int) -> Encoder:
        read = [self._files[depth] for depth in self.read_layers(layer)]
        parts = [file.get("w_enc", (self.d_model, None)) for file in read]
        return Encoder(
            parts[0] if len(parts) == 1 else torch.cat(parts),
            read[0].get("b_enc", (None,)).float(),
            read[0].get("threshold", (None,)).float(),
        )

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        if self.acausal:
            shape = self._decoder_shape(None)
            return torch.stack([self._files[depth].rows("w_dec", shape, features_n) for depth in self.depths], 1)
        first = self.depths.index(layer)
        return self._files[layer].rows("w_dec", self._decoder_shape(None), features_n, first_column=first)

    def decoder(self, layer: int) -> Tensor:
        """Return a layer's whole decoder (F, J, D): a view of the file, but of shared latents, whose files are joined."""
        if self.acausal:
            parts = [self._files[depth].get("w_dec", self._decoder_shape(None), unread=True) for depth in self.depths]
            return torch.stack(parts, 1)
        w_dec = self._files[layer].get("w_dec", self._decoder_shape(None), unread=True)
        return w_dec[:, self.depths.index(layer) :]

    def dtype(self) -> torch.dtype:
        return self._files[self.depths[0]].dtype("w_dec")

    def bias(self, layer: int) -> Tensor:
        return self._files[layer].get("b_dec", (self.d_model,)).float()


def open_crosscoder(folder: Path, name: str, path: Path, config: Mapping[str, Any], check: bool) -> SparseDictionary:
    """Open a crosscoder's folder.

    Args:
        folder: The folder.
        name: How messages name it.
        path: Its config, for messages.
        config: What that says.
        check: As for `GemmaScopeCrosscoderReader`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or says something that cannot be read exactly; it is named.
    """
    if config.get("affine_connection"):
        raise ValueError(
            f"{path}: affine_connection is {config['affine_connection']!r}; a crosscoder has no skip connection"
        )
    hooks = hooks_of(path, config, "hf_hook_point_in")
    depths = [layer_of(path, hook, "hf_hook_point_in") for hook in hooks]
    for key in ("hf_hook_point_in", "hf_hook_point_out"):
        if key == "hf_hook_point_out" and config.get(key) is None:
            continue  # a crosscoder writes what it reads
        named = hooks_of(path, config, key)
        if len(named) != len(depths):
            raise ValueError(f"{path}: {key} names {len(named)} sites; expected one for each of {len(depths)} depths")
        for depth, hook in zip(depths, named, strict=True):
            hook_site(path, hook, depth, _HOOKS, key)
    if sorted(set(depths)) != depths or len(depths) < 2:
        raise ValueError(f"{path}: hf_hook_point_in names layers {depths}; expected two or more, ascending")
    in_name = named_depths(folder)
    if in_name and in_name != depths:
        raise ValueError(f"{path}: hf_hook_point_in names layers {depths}, but the folder is of {in_name}")
    files = {depth: folder / f"params_layer_{index}.safetensors" for index, depth in enumerate(depths)}
    n_files = len(list(folder.glob("params_layer_*.safetensors")))
    for depth, file in files.items():
        if not file.is_file():
            raise FileNotFoundError(f"{file}: the file of layer {depth} is missing; expected {len(files)} files")
    if n_files != len(files):
        raise ValueError(f"{path}: names {len(files)} depths, but the folder has {n_files} files")
    reader = GemmaScopeCrosscoderReader(files, folder, name, check)
    reader.l0 = config_l0(config)
    return reader
