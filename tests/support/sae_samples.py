"""SAEs made at random for a small model, in Gemma Scope 2's layout.

Letters: F features, D the width of the site.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

SITES = {
    "resid_post": "model.layers.{layer}.output",
    "mlp_out": "model.layers.{layer}.post_feedforward_layernorm.output",
    "attn_out": "model.layers.{layer}.self_attn.o_proj.input",
}


def write_sae(folder: Path, layer: int, site: str, width: int, features: int = 96, seed: int = 0) -> Path:
    """Write the SAE of one layer; `width` is D. Its features are directions of which a few fire at a token."""
    generator = torch.Generator().manual_seed(1000 * seed + layer)
    w_enc = torch.randn(width, features, generator=generator)
    w_enc /= w_enc.norm(dim=0)
    tensors = {
        "w_enc": w_enc,
        "b_enc": 0.1 * torch.randn(features, generator=generator),
        "threshold": 0.5 + torch.rand(features, generator=generator),
        "w_dec": w_enc.T.contiguous() * (0.5 + torch.rand(features, 1, generator=generator)),
        "b_dec": 0.1 * torch.randn(width, generator=generator),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "params.safetensors")
    hook = SITES[site].format(layer=layer)
    config = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "width": features, "model_name": "gemma-v3-tiny-pt"}
    config |= {"architecture": "jump_relu", "l0": 10 + layer, "affine_connection": False, "type": "sae"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_crosscoder(
    folder: Path, depths: Sequence[int], width: int, features: int = 48, acausal: bool = False, **config: object
) -> Path:
    """Write a crosscoder of the residual stream; `width` is D. Weakly causal ones write nothing to earlier depths."""
    generator = torch.Generator().manual_seed(7)
    shared = {
        "b_enc": 0.1 * torch.randn(features, generator=generator),
        "threshold": 0.5 + torch.rand(features, generator=generator),
    }
    folder.mkdir(parents=True)
    for index in range(len(depths)):
        w_enc = torch.randn(width, features, generator=generator)
        w_enc /= w_enc.norm(dim=0) * (len(depths) ** 0.5 if acausal else 1)
        w_dec = torch.randn(features, len(depths), width, generator=generator) / width**0.5
        w_dec[:, :index] = 0
        tensors = {"w_enc": w_enc, "w_dec": w_dec[:, index].contiguous() if acausal else w_dec}
        tensors |= {"b_dec": 0.1 * torch.randn(width, generator=generator)}
        tensors |= shared if acausal else {key: value.roll(index) for key, value in shared.items()}
        save_file(tensors, folder / f"params_layer_{index}.safetensors")
    hooks = [SITES["resid_post"].format(layer=layer) for layer in depths]
    content = {"hf_hook_point_in": hooks, "hf_hook_point_out": hooks, "width": features, "l0": 12}
    content |= {"architecture": "jump_relu", "affine_connection": False, "type": "crosscoder", **config}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_family(folder: Path, layers: Iterable[int], site: str, width: int, features: int = 96) -> Path:
    """Write the SAEs of some layers into `FOLDER/{site}_all`; return the path that names their family."""
    parent = folder / f"{site}_all"
    for layer in layers:
        write_sae(parent / f"layer_{layer}_width_1k_l0_small", layer, site, width, features)
    return parent / "width_1k_l0_small"
