"""A trained dictionary as files in Gemma Scope 2's layout, the normalisation folded into the weights.

With x' = (x - m) * s for inputs and y' = (y - n) * t for outputs, `h = W x' + b` is `h = (W * s) x + b - (W * s) m`, and
`y' = D a + S x' + c` is `y = (D / t) a + (s * S / t) x + n + c / t - (s * S / t) m`. Activations keep their values, so
thresholds do too.

Letters: L trained layers, F features of a layer, D d_model (D_in where encoders read), J layers a feature writes to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from crosstrace.replacement_model.training.core import Trainer

_IN, _OUT = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"
_SAE_SITES = {"resid_post": "output", "mlp_out": _OUT, "attn_out": "self_attn.o_proj.input"}


def export(trainer: Trainer, folder: Path, model_name: str, dtype: torch.dtype = torch.bfloat16) -> list[Path]:
    """Write a trainer's dictionary.

    A CLT is one folder of `params_layer_{l}.safetensors`; transcoders and SAEs have a folder
    `layer_{l}_width_{F}_l0_{l0}[_affine]` for each layer. Every file is written beside its place and then renamed, the
    configs last.

    Args:
        trainer: The trainer.
        folder: Where to; made if it is missing.
        model_name: The base model, for the configs.
        dtype: Of encoders, decoders and skip connections; biases and thresholds are float32.

    Returns:
        The files.
    """
    shape, written = trainer.shape, []
    configs: dict[Path, dict[str, Any]] = {}
    for layer, tensors in enumerate(folded(trainer, dtype)):
        own = folder if shape.cross_layer else folder / f"layer_{shape.layers[layer]}_{_family(trainer)}"
        own.mkdir(parents=True, exist_ok=True)
        path = own / (f"params_layer_{layer}.safetensors" if shape.cross_layer else "params.safetensors")
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(save(tensors))  # `save_file` would make a file that only its owner reads
        os.replace(partial, path)
        written.append(path)
        if not shape.cross_layer:
            configs[own] = _config(trainer, model_name, [shape.layers[layer]])
    if shape.cross_layer:
        configs[folder] = _config(trainer, model_name, list(shape.layers))
    for own, config in configs.items():
        path = own / "config.json"
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        written.append(path)
    return written


@torch.no_grad()
def folded(trainer: Trainer, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Yield each layer's tensors as files hold them, in raw units."""
    shape, p, scaling = trainer.shape, trainer.parameters, trainer.normalisation
    thresholds_lf = trainer.thresholds()
    for layer in range(shape.n_layers):
        mean_in_d, scale_in_d = scaling.mean_in_ld[layer], scaling.scale_in_ld[layer]
        w_enc_df = (p.encoder_fd[layer] * scale_in_d).T.contiguous().to(dtype)
        # The means are folded in with the weights as they are rounded, so that rounding does not shift every token.
        b_enc_f = p.encoder_bias_lf[layer] - mean_in_d @ w_enc_df.float()
        b_dec_d = scaling.mean_out_ld[layer] + p.decoder_bias_ld[layer] / scaling.scale_out_ld[layer]
        tensors = {"w_enc": w_enc_df, "b_enc": b_enc_f, "threshold": thresholds_lf[layer].clone()}
        if p.skip_ldd is not None:
            skip_dd = (scale_in_d[:, None] * p.skip_ldd[layer] / scaling.scale_out_ld[layer]).to(dtype)
            b_dec_d = b_dec_d - mean_in_d @ skip_dd.float()
            tensors["affine_skip_connection"] = skip_dd
        tensors["b_dec"] = b_dec_d
        n_files = shape.n_layers if shape.cross_layer else 1
        w_dec_fjd = torch.zeros(shape.n_features, n_files, shape.d_out, dtype=dtype)
        for j, decoder_fd in enumerate(p.decoder_jfd[layer]):
            place = layer + j if shape.cross_layer else 0
            w_dec_fjd[:, place] = decoder_fd / scaling.scale_out_ld[layer + j]
        tensors["w_dec"] = w_dec_fjd if shape.cross_layer else w_dec_fjd[:, 0]
        yield {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _family(trainer: Trainer) -> str:
    affine = "_affine" if trainer.parameters.skip_ldd is not None else ""
    return f"width_{trainer.shape.n_features}_l0_{trainer.settings.l0:g}{affine}"


def _config(trainer: Trainer, model_name: str, layers: list[int]) -> dict[str, Any]:
    shape = trainer.shape
    sites = (_IN, _OUT) if shape.kind != "sae" else (_SAE_SITES[shape.site],) * 2
    hook_in, hook_out = ([f"model.layers.{layer}.{site}" for layer in layers] for site in sites)
    return {
        "hf_hook_point_in": hook_in if shape.cross_layer else hook_in[0],
        "hf_hook_point_out": hook_out if shape.cross_layer else hook_out[0],
        "width": shape.n_features * len(layers),
        "model_name": model_name,
        "architecture": "jump_relu",
        "l0": trainer.settings.l0,
        "affine_connection": trainer.parameters.skip_ldd is not None,
        "type": {"clt": "clt", "transcoders": "transcoder", "sae": "sae"}[shape.kind],
    }
