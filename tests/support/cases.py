"""Small models with transcoders and their exact answers, and the same weights written in other layouts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from places import CASES
from safetensors.torch import load_file, save_file
from torch import Tensor

CASE_NAMES = ("clt_affine", "clt_plain_gqa", "skip_transcoder")


@dataclass(frozen=True)
class Case:
    """A small random model with transcoders and, in ``expected``, the answers."""

    name: str
    model: Path
    transcoders: Path
    input_ids: list[int]
    expected: dict[str, Tensor]


def load_case(name: str) -> Case:
    folder = CASES / name
    transcoders = folder / "transcoder"
    if not transcoders.is_dir():
        (transcoders,) = (folder / "clt").iterdir()
    ids = json.loads((folder / "case.json").read_text())["input_ids"]
    return Case(name, folder / "model", transcoders, ids, load_file(folder / "expected.safetensors"))


def write_circuit_tracer(case: Case, folder: Path) -> Path:
    """The case's transcoders in circuit-tracer's layout: encoder and skip transposed, later decoder rows only."""
    folder.mkdir()
    files = sorted(case.transcoders.glob("**/params*.safetensors"))
    cross_layer = "transcoder" not in case.name
    config = {
        "model_name": "tiny",
        "model_kind": "cross_layer_transcoder" if cross_layer else "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "tiny",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for layer, path in enumerate(files):
        stored = load_file(path)
        if cross_layer:
            assert "affine_skip_connection" not in stored, "circuit-tracer's CLT files have no place for a skip"
            encoder = {f"W_enc_{layer}": stored["w_enc"].T, f"threshold_{layer}": stored["threshold"]}
            encoder |= {f"{key}_{layer}": stored[key] for key in ("b_enc", "b_dec")}
            _save(encoder, folder / f"W_enc_{layer}.safetensors")
            _save({f"W_dec_{layer}": stored["w_dec"][:, layer:]}, folder / f"W_dec_{layer}.safetensors")
        else:
            tensors = {"W_enc": stored["w_enc"].T, "W_dec": stored["w_dec"], "b_enc": stored["b_enc"]}
            tensors |= {"b_dec": stored["b_dec"], "activation_function.threshold": stored["threshold"]}
            _save(tensors | {"W_skip": stored["affine_skip_connection"].T}, folder / f"layer_{layer}.safetensors")
    return folder


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def rounded_copy(case: Case, folder: Path, dtype: torch.dtype) -> Path:
    """The case's transcoder folder with encoders, decoders and skips rounded to a dtype."""
    for path in sorted(case.transcoders.glob("**/*")):
        copy = folder / path.relative_to(case.transcoders)
        if path.is_dir():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".safetensors":
            copy.write_bytes(path.read_bytes())
            continue
        tensors = load_file(path)
        _save({k: v.to(dtype) if v.ndim > 1 else v for k, v in tensors.items()}, copy)
    return folder
