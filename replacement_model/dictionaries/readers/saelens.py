"""SAEs as SAELens stores them: a folder with `cfg.json` and `sae_weights.safetensors` for each.

All of its kinds are one function here, `a = h where h > threshold` with `h = x W_enc + b_enc`:

- `standard`: thresholds are 0. `jumprelu`: they are stored; below 0 they are 0, since a ReLU comes first.
- `topk`: thresholds are 0, and of what lies above them only the k largest of a token are active.
- `gated` (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", equations 6 and 7): a
  feature is open where `π = x W + b_gate > 0`, with the magnitude `relu(x W exp(r) + b_mag)`. With `W_enc = W exp(r)` and
  `b_enc = b_mag`, being open means `h > b_mag - exp(r) b_gate`, so that is the threshold, or 0 if it is less.

What comes before and after belongs to `crosstrace.replacement_model.dictionaries.saes`: tokens scaled by their norm or by a
layer norm (`normalize_activations`), and the decoder bias subtracted from the input (`apply_b_dec_to_input`). The third
way, `expected_average_only_in`, is folded into the weights by SAELens when it saves, so nothing is left to do. Some tensors
and keys of older versions change what is computed; they are refused by name.

Letters: F features, D the width of the site.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.architectures.weight_files import read_json
from crosstrace.replacement_model.dictionaries.base import (
    Activation,
    ActivationKind,
    Encoder,
    SparseDictionary,
    TokenScaling,
)
from crosstrace.replacement_model.dictionaries.readers.base import FileFormat
from crosstrace.replacement_model.dictionaries.readers.mapped_tensors import TensorFile

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_TENSORS = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "gated": ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"),
}
_SCALINGS = {
    "none": TokenScaling.NONE,
    "expected_average_only_in": TokenScaling.NONE,
    "constant_norm_rescale": TokenScaling.NORM,
    "layer_norm": TokenScaling.LAYER_NORM,
}
# TransformerLens's names of places, below `blocks.{L}.`. Its hook_mlp_out comes after Gemma's norm behind the MLP.
_HOOKS = {
    "hook_resid_post": Site.RESIDUAL,
    "hook_mlp_out": Site.MLP_OUTPUT,
    "hook_attn_out": Site.ATTENTION_OUTPUT,
    "attn.hook_z": Site.ATTENTION_HEADS,
}
_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.(.+)")
_TRANSFORMERS = re.compile(r"(?:language_)?model\.(?:language_model\.)?layers\.(\d+)")
# Keys that change what is computed, and the values with which they do not.
_OFF: Mapping[str, tuple[object, ...]] = {
    "finetuning_scaling_factor": (None, False),
    "hook_head_index": (None,),
    "noise_scale": (None, 0, 0.0),
}


class SaeLensReader(SparseDictionary):
    """One SAE in SAELens's layout."""

    def __init__(self, folder: Path, name: str, check: bool = True) -> None:
        """Open a folder.

        Args:
            folder: It holds `cfg.json` and `sae_weights.safetensors`.
            name: How messages name the SAE.
            check: Whether to read biases and thresholds, and refuse NaN and infinity.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, or says something that cannot be read exactly; file and key are named.
        """
        path = folder / CONFIG
        config = _config(path)
        self.folder, self.name = folder, name
        self.kind = _architecture(path, config)
        self.layer, site = _place(path, config)
        self.reads = self.writes = site
        self.activation = _activation(path, config, self.kind)
        self.token_scaling = _scaling(path, config)
        self.centred = _flag(path, config, "apply_b_dec_to_input")
        self._by_norm = _flag(path, config, "rescale_acts_by_decoder_norm", default=False)
        if self._by_norm and self.kind != "topk":
            raise ValueError(f"{path}: rescale_acts_by_decoder_norm is true with {self.kind}; expected topk")
        self._file = TensorFile(folder / WEIGHTS)
        self._file.check_keys(_TENSORS[self.kind])
        self.d_model, n_features = self._file.check("W_enc", (None, None))
        self.n_features = [n_features]
        self._file.check("W_dec", (n_features, self.d_model))
        for key, size in (("d_in", self.d_model), ("d_sae", n_features)):
            if config.get(key, size) != size:
                raise ValueError(f"{path}: {key} is {config[key]!r}, but {self._file.path} has {size}")
        for key in _TENSORS[self.kind]:
            if not key.startswith("W_"):
                shape = (self.d_model if key == "b_dec" else n_features,)
                self._file.check(key, shape)
                if check:
                    self._file.get(key, shape)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer whose site it reads."""
        return (self.layer,)

    def encoder(self, layer: int) -> Encoder:
        w_enc_df = self._file.get("W_enc", (self.d_model, None))
        if self.kind == "gated":
            grown_f = self._vector("r_mag").exp()
            b_mag_f = self._vector("b_mag")
            threshold_f = (b_mag_f - grown_f * self._vector("b_gate")).clamp_min(0)
            return Encoder(w_enc_df * grown_f.to(w_enc_df.dtype), b_mag_f, threshold_f)
        b_enc_f = self._vector("b_enc")
        threshold_f = self._vector("threshold").clamp_min(0) if self.kind == "jumprelu" else torch.zeros_like(b_enc_f)
        if self._by_norm:
            norms_f = self._norms()
            return Encoder(w_enc_df * norms_f.to(w_enc_df.dtype), b_enc_f * norms_f, threshold_f)
        return Encoder(w_enc_df, b_enc_f, threshold_f)

    def decoder_rows(self, layer: int, features_n: Tensor) -> Tensor:
        rows_nd = self._file.rows("W_dec", (None, self.d_model), features_n)
        if self._by_norm:  # activations are in units of it
            rows_nd = rows_nd / rows_nd.float().norm(dim=1, keepdim=True).to(rows_nd.dtype)
        return rows_nd.unsqueeze(1)

    def decoder(self, layer: int) -> Tensor:
        if self._by_norm:
            return self.decoder_rows(layer, torch.arange(self.n_features[0]))
        return self._file.get("W_dec", (None, self.d_model), unread=True).unsqueeze(1)

    def dtype(self) -> torch.dtype:
        return self._file.dtype("W_dec")

    def bias(self, layer: int) -> Tensor:
        return self._vector("b_dec")

    def centre(self, layer: int) -> Tensor | None:
        return self._vector("b_dec") if self.centred else None

    def _vector(self, key: str) -> Tensor:
        return self._file.get(key, (None,)).float()

    def _norms(self) -> Tensor:
        parts = self._file.get("W_dec", (None, self.d_model)).split(1 << 14)
        return torch.cat([part.float().norm(dim=1) for part in parts])


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: file is missing (SAELens keeps the kind and the place of an SAE there)")
    config = read_json(path)
    # Version 6 keeps the place under `metadata`, earlier ones beside the rest.
    merged = {**(config.get("metadata") or {}), **config}
    for key, values in _OFF.items():
        if merged.get(key) not in values:
            raise ValueError(f"{path}: {key} is {merged[key]!r}, which is not supported; expected {values[0]!r}")
    return merged


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    name = config.get("architecture", "standard")
    function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if name == "standard" and function == "topk":  # how version 3 wrote it
        name, function = "topk", "relu"
    if name not in _TENSORS:
        raise ValueError(f"{path}: architecture {name!r} is not supported; supported: {', '.join(_TENSORS)}")
    if function not in ("relu", name):
        raise ValueError(f"{path}: activation_fn_str is {function!r} with {name}; expected relu")
    return str(name)


def _activation(path: Path, config: Mapping[str, Any], kind: str) -> Activation:
    if kind != "topk":
        return Activation(ActivationKind.JUMP_RELU)
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if isinstance(k, bool) or not isinstance(k, int | float) or k != int(k) or k < 1:
        raise ValueError(f"{path}: k is {k!r}; expected a whole number above 0")
    return Activation(ActivationKind.TOP_K, int(k))


def _scaling(path: Path, config: Mapping[str, Any]) -> TokenScaling:
    name = config.get("normalize_activations", "none") or "none"
    if name not in _SCALINGS:
        raise ValueError(f"{path}: normalize_activations {name!r} is not supported; supported: {', '.join(_SCALINGS)}")
    return _SCALINGS[name]


def _flag(path: Path, config: Mapping[str, Any], key: str, default: bool = True) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{path}: {key} is {value!r}; expected true or false")
    return value


def _place(path: Path, config: Mapping[str, Any]) -> tuple[int, Site]:
    """The layer and the site that `hook_name` stands for."""
    hook = config.get("hook_name", config.get("hook_point"))
    if not isinstance(hook, str):
        raise ValueError(f"{path}: hook_name is {hook!r}; expected a place such as blocks.9.hook_resid_post")
    if (written := config.get("hook_name_out")) and written != hook:
        raise ValueError(f"{path}: reads {hook!r} and writes {written!r}; an SAE writes what it reads")
    if match := _TRANSFORMERS.fullmatch(hook):
        return int(match[1]), Site.RESIDUAL
    match = _TRANSFORMER_LENS.fullmatch(hook)
    layer, below = (int(match[1]), match[2]) if match else (0, hook)
    if match and below == "hook_resid_pre" and layer:
        return layer - 1, Site.RESIDUAL  # what enters a layer is what the one before it left
    if match is None or below not in _HOOKS:
        known = ", ".join(f"blocks.L.{name}" for name in (*_HOOKS, "hook_resid_pre"))
        raise ValueError(
            f"{path}: hook_name {hook!r} is not supported; supported: {known} (L at least 1), model.layers.L"
        )
    return layer, _HOOKS[below]


FORMAT = FileFormat(
    "SAELens",
    f"{CONFIG} and {WEIGHTS}",
    lambda path: (path / CONFIG).is_file() or (path / WEIGHTS).is_file(),
    SaeLensReader,
)
