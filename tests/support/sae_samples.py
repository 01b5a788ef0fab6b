"""SAEs made at random for a small model, in Gemma Scope 2's layout.

Letters: F features, D the width of the site.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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


def write_family(folder: Path, layers: Iterable[int], site: str, width: int, features: int = 96) -> Path:
    """Write the SAEs of some layers into `FOLDER/{site}_all`; return the path that names their family."""
    parent = folder / f"{site}_all"
    for layer in layers:
        write_sae(parent / f"layer_{layer}_width_1k_l0_small", layer, site, width, features)
    return parent / "width_1k_l0_small"
