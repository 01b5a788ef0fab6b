"""Crosscoders in Gemma Scope 2's layout: both kinds are read as they are stored, and what is wrong is named.

Letters: F features, K depths, D the width of the site.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from sae_samples import write_crosscoder, write_sae
from safetensors.torch import load_file, save_file

from crosstrace.replacement_model import Saes, Site, open_sae, open_transcoders

DEPTHS = (0, 2, 3)
NAME = "layer_0_2_3_width_48_l0_medium"
CPU = torch.device("cpu")


def stored(folder) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / f"params_layer_{index}.safetensors") for index in range(len(DEPTHS))]


@pytest.mark.parametrize("kind", ["crosscoder", None])
def test_a_weakly_causal_one_has_features_at_every_depth(kind, tmp_path):
    folder = write_crosscoder(tmp_path / NAME, DEPTHS, 16, type=kind)
    reader, files = open_sae(folder), stored(folder)
    assert (reader.layers, reader.n_features, reader.d_model, reader.l0) == (DEPTHS, [48] * 3, 16, 12)
    assert reader.reads is reader.writes is Site.RESIDUAL
    some = torch.tensor([5, 1, 5])
    for index, (depth, file) in enumerate(zip(DEPTHS, files, strict=True)):
        assert list(reader.written_layers(depth)) == list(DEPTHS[index:])
        assert tuple(reader.read_layers(depth)) == (depth,)
        assert torch.equal(reader.encoder(depth).w_enc_df, file["w_enc"])
        assert torch.equal(reader.encoder(depth).threshold_f, file["threshold"])
        assert torch.equal(reader.decoder_rows(depth, some), file["w_dec"][some, index:])
        assert torch.equal(reader.decoder(depth), file["w_dec"][:, index:])
        assert torch.equal(reader.bias(depth), file["b_dec"])


@pytest.mark.parametrize("budget", [None, "30kB", "1GB"])
def test_an_acausal_one_has_one_set_of_latents(budget, tmp_path):
    folder = write_crosscoder(tmp_path / NAME, DEPTHS, 16, acausal=True)
    reader, files = open_sae(folder), stored(folder)
    assert (tuple(reader.layers), reader.n_features) == ((3,), [48])
    assert tuple(reader.read_layers(3)) == tuple(reader.written_layers(3)) == DEPTHS
    used = Saes(reader, CPU, memory_budget=budget)
    assert used.depths == list(DEPTHS)
    x_kpd = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(1)) * 2
    h_pf = sum(x_pd @ file["w_enc"] for x_pd, file in zip(x_kpd, files, strict=True)) + files[0]["b_enc"]
    a_pf = h_pf * (h_pf > files[0]["threshold"])
    positions, features, values = found = used.encode(3, torch.cat(list(x_kpd), 1), 0)
    assert len(values) > 20
    assert torch.equal(torch.stack([positions, features]), torch.stack(a_pf.nonzero(as_tuple=True)))
    torch.testing.assert_close(values, a_pf[positions, features])
    torch.testing.assert_close(
        used.pre_activations(3, torch.cat(list(x_kpd), 1), positions, features), values.double(), rtol=1e-5, atol=1e-5
    )
    made_kpd = torch.stack([used.affine(depth, x_kpd[0]) for depth in DEPTHS])
    used.add_decoded(3, found, made_kpd)
    wanted_kpd = torch.stack([a_pf @ file["w_dec"] + file["b_dec"] for file in files])
    torch.testing.assert_close(made_kpd, wanted_kpd)


def change(folder, index: int, **tensors: torch.Tensor) -> None:
    path = folder / f"params_layer_{index}.safetensors"
    save_file(load_file(path) | tensors, path)


@pytest.mark.parametrize(
    ("acausal", "index", "tensors", "said"),
    [
        (True, 1, {"b_enc": torch.zeros(48)}, "b_enc is not that of params_layer_0.safetensors; expected the same"),
        (True, 2, {"w_dec": torch.zeros(48, 3, 16)}, "w_dec has shape (48, 3, 16); expected (48, 16)"),
        (True, 1, {"w_enc": torch.zeros(16, 47)}, "w_enc has shape (16, 47); expected (16, 48)"),
        (False, 1, {"w_dec": torch.ones(48, 3, 16)}, "writes to layers before layer 2; a weakly causal crosscoder may"),
        (False, 2, {"w_dec": torch.zeros(48, 4, 16)}, "w_dec has shape (48, 4, 16); expected (48, 3, 16)"),
        (False, 0, {"threshold": torch.full((48,), torch.nan)}, "threshold holds NaN"),
        (False, 0, {"scale": torch.zeros(1)}, "tensor scale is not known"),
    ],
)
def test_a_file_that_cannot_be_read_exactly_is_named(acausal, index, tensors, said, tmp_path):
    folder = write_crosscoder(tmp_path / NAME, DEPTHS, 16, acausal=acausal)
    change(folder, index, **tensors)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        open_sae(folder)
    assert str(folder / f"params_layer_{index}.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"hf_hook_point_in": ["model.layers.0.output", "model.layers.2.output"]}, "hf_hook_point_out names 3 sites"),
        ({"hf_hook_point_in": [f"model.layers.{i}.output" for i in (0, 1, 3)]}, "hf_hook_point_out names"),
        ({"hf_hook_point_in": [f"model.layers.{i}.output" for i in (3, 2, 0)]}, "hf_hook_point_out names"),
        ({"hf_hook_point_in": [f"model.layers.{i}.mlp.output" for i in DEPTHS]}, "hook 'mlp.output' is not supported"),
        ({"affine_connection": True}, "affine_connection is True; a crosscoder has no skip connection"),
        ({"hf_hook_point_in": "model.layers.0.output", "hf_hook_point_out": None}, "expected two or more, ascending"),
    ],
)
def test_a_config_that_does_not_fit_is_named(entries, said, tmp_path):
    folder = write_crosscoder(tmp_path / NAME, DEPTHS, 16, **entries)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        open_sae(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_names_and_files_must_agree(tmp_path):
    folder = write_crosscoder(tmp_path / "layer_0_1_3_width_48_l0_medium", DEPTHS, 16)
    with pytest.raises(ValueError, match=re.escape("names layers [0, 2, 3], but the folder is of [0, 1, 3]")):
        open_sae(folder)
    folder = folder.rename(tmp_path / "any_name")
    assert open_sae(folder).layers == DEPTHS
    (folder / "params_layer_2.safetensors").rename(folder / "params_layer_3.safetensors")
    with pytest.raises(FileNotFoundError, match=r"params_layer_2.safetensors: the file of layer 3 is missing"):
        open_sae(folder)


def test_it_is_no_set_of_transcoders_and_stands_alone(tmp_path):
    folder = write_crosscoder(tmp_path / NAME, DEPTHS, 16)
    with pytest.raises(ValueError, match="holds a dictionary from output to output, not transcoders"):
        open_transcoders(folder)
    with pytest.raises(ValueError, match="a crosscoder stands alone"):
        open_sae([write_sae(tmp_path / "layer_1_width_1k_l0_small", 1, "resid_post", 16), folder])
    config = json.loads((folder / "config.json").read_text())
    assert config["type"] == "crosscoder"
