"""SAELens's own files: every kind gives what its formulas say, and what cannot be read exactly is refused by name.

Letters: P tokens, D the width of the site, F features.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosstrace.replacement_model import Saes, Site, open_sae
from crosstrace.replacement_model.dictionaries.base import ActivationKind

D, F, P = 16, 48, 20
KINDS = ("standard", "jumprelu", "topk", "gated")
SCALINGS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")


def write_saelens(folder: Path, kind: str = "jumprelu", layer: int = 2, **config: Any) -> Path:
    """Write a random SAE as SAELens 6 does."""
    generator = torch.Generator().manual_seed(layer)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"W_enc": draw(D, F) / D**0.5, "W_dec": draw(F, D), "b_dec": draw(D)}
    if kind == "gated":
        tensors |= {"b_gate": draw(F) - 0.5, "r_mag": 0.3 * draw(F), "b_mag": draw(F)}
    else:
        tensors["b_enc"] = 0.3 * draw(F)
    if kind == "jumprelu":
        tensors["threshold"] = draw(F)  # some of them below 0, which a ReLU forestalls
    written = {
        "d_in": D,
        "d_sae": F,
        "architecture": kind,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": "gemma-3", "hook_name": f"blocks.{layer}.hook_resid_post", "hook_head_index": None},
    }
    written |= {"k": 5} if kind == "topk" else {}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(written | config))
    return folder


def tokens() -> Tensor:
    """(P, D) inputs of very different sizes, off centre."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(P, D, generator=generator) * torch.logspace(-1, 1, P)[:, None] + 3


def answers(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations (P, F) and reconstructions (P, D) in float64, written out from the definitions."""
    config = json.loads((folder / "cfg.json").read_text())
    w = {key: tensor.double() for key, tensor in load_file(folder / "sae_weights.safetensors").items()}
    x = x.double()
    mean, size = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
    match config["normalize_activations"]:
        case "constant_norm_rescale":
            size = x.norm(dim=1, keepdim=True) / D**0.5
            x = x / size
        case "layer_norm":
            mean, size = x.mean(1, keepdim=True), x.std(1, keepdim=True)
            x = (x - mean) / (size + 1e-5)
    if config["apply_b_dec_to_input"]:
        x = x - w["b_dec"]
    decoder = w["W_dec"]
    if config["architecture"] == "gated":
        opened = x @ w["W_enc"] + w["b_gate"] > 0
        a = opened * (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    else:
        h = x @ w["W_enc"] + w["b_enc"]
        if config.get("rescale_acts_by_decoder_norm"):
            h, decoder = h * decoder.norm(dim=1), decoder / decoder.norm(dim=1, keepdim=True)
        a = h.relu()
        if config["architecture"] == "jumprelu":
            a = a * (h > w["threshold"])
        if config["architecture"] == "topk":
            a = torch.zeros_like(a).scatter(1, h.topk(config["k"]).indices, 1.0) * a
    return a, (a @ decoder + w["b_dec"]) * size + mean


def ours(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same from crosstrace."""
    sae = Saes(open_sae(folder), torch.device("cpu"))
    (layer,) = sae.layers
    positions, features, values = sae.encode(layer, x, 0)
    a = torch.zeros(len(x), F).index_put((positions, features), values)
    written = torch.zeros(1, len(x), D)
    sae.add_decoded(layer, (positions, features, values), written)
    h = sae.pre_activations(layer, x, positions, features)
    assert torch.allclose(h.float(), values, rtol=1e-4, atol=1e-4)
    return a, sae.reconstruction(layer, written[0], x)


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_its_formulas_say(kind, centred, scaling, path, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSTRACE_KERNELS", path)
    folder = write_saelens(tmp_path, kind, apply_b_dec_to_input=centred, normalize_activations=scaling)
    x = tokens()
    for got, wanted in zip(ours(folder, x), answers(folder, x), strict=True):
        assert wanted.count_nonzero() > P
        assert torch.dist(got.double(), wanted) < 1e-5 * wanted.norm()


def test_topk_may_count_decoder_norms(tmp_path):
    folder, x = write_saelens(tmp_path, "topk", rescale_acts_by_decoder_norm=True), tokens()
    for got, wanted in zip(ours(folder, x), answers(folder, x), strict=True):
        assert torch.dist(got.double(), wanted) < 1e-5 * wanted.norm()
    with pytest.raises(ValueError, match="rescale_acts_by_decoder_norm is true with gated; expected topk"):
        open_sae(write_saelens(tmp_path / "other", "gated", rescale_acts_by_decoder_norm=True))


@pytest.mark.parametrize(
    ("hook", "layer", "site"),
    [
        ("blocks.9.hook_resid_post", 9, Site.RESIDUAL),
        ("blocks.9.hook_resid_pre", 8, Site.RESIDUAL),
        ("blocks.0.hook_mlp_out", 0, Site.MLP_OUTPUT),
        ("blocks.3.hook_attn_out", 3, Site.ATTENTION_OUTPUT),
        ("blocks.3.attn.hook_z", 3, Site.ATTENTION_HEADS),
        ("model.layers.4", 4, Site.RESIDUAL),
    ],
)
def test_hook_names_are_places(hook, layer, site, tmp_path):
    reader = open_sae(write_saelens(tmp_path, metadata={"hook_name": hook}))
    assert (reader.layers, reader.reads, reader.writes) == ((layer,), site, site)


def test_older_versions_keep_everything_side_by_side(tmp_path):
    old = {
        "metadata": None,
        "hook_name": "blocks.5.hook_resid_post",
        "hook_layer": 5,
        "finetuning_scaling_factor": False,
    }
    reader = open_sae(write_saelens(tmp_path / "a", "jumprelu", activation_fn_str="relu", **old))
    assert reader.layers == (5,)
    old |= {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}
    reader = open_sae(write_saelens(tmp_path / "b", "topk", **old))
    assert (reader.activation.kind, reader.activation.k) == (ActivationKind.TOP_K, 5)  # `k` itself is still there


def test_several_layers_are_one_dictionary(tmp_path):
    folders = [write_saelens(tmp_path / str(layer), layer=layer) for layer in (4, 1)]
    joined = open_sae(folders)
    assert joined.layers == (1, 4)
    assert torch.equal(joined.centre(4), open_sae(folders[0]).centre(4))
    other = write_saelens(tmp_path / "other", layer=7, normalize_activations="layer_norm")
    with pytest.raises(ValueError, match="other: token scaling is layer norm; expected none, as in"):
        open_sae([*folders, other])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' is not supported; supported: standard, jumprelu, topk"),
        ({"architecture": "transcoder"}, "architecture 'transcoder' is not supported"),
        ({"normalize_activations": "unit"}, "normalize_activations 'unit' is not supported; supported: none, expected"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input is 'yes'; expected true or false"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str is 'tanh-relu' with jumprelu; expected relu"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is True, which is not supported"),
        (
            {"metadata": {"hook_name": "blocks.0.hook_resid_pre"}},
            "hook_name 'blocks.0.hook_resid_pre' is not supported",
        ),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_q"}}, "hook_name 'blocks.1.attn.hook_q' is not supported"),
        ({"metadata": {}}, "hook_name is None; expected a place such as blocks.9.hook_resid_post"),
        ({"d_sae": 50}, "d_sae is 50, but"),
        ({"hook_name_out": "blocks.3.hook_mlp_out"}, "an SAE writes what it reads"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_sae(write_saelens(tmp_path, **changes))
    assert str(caught.value).startswith(str(tmp_path / "cfg.json"))
    assert "\n" not in str(caught.value)


def test_a_wrong_k_and_wrong_tensors_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"cfg\.json: k is 0; expected a whole number above 0"):
        open_sae(write_saelens(tmp_path / "k", "topk", k=0))
    folder = write_saelens(tmp_path / "more")
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file(tensors | {"scaling_factor": torch.ones(F)}, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="tensor scaling_factor is not known in such a file"):
        open_sae(folder)
    save_file(tensors | {"threshold": torch.full((F,), torch.nan)}, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="threshold holds NaN"):
        open_sae(folder)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"sae_weights\.safetensors: file is missing"):
        open_sae(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        open_sae(folder)
