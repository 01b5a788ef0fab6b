"""SAEs in Gemma Scope 2's layout: one layer, several, a family, from a folder and from the hub; what is wrong is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from cases import load_case
from hub_server import HubServer, serving
from huggingface_hub import constants
from sae_samples import SITES, write_family, write_sae
from safetensors.torch import load_file, save_file

from crosstrace.kernels.encoding import encode_reference
from crosstrace.replacement_model import Saes, Site, Transcoders, demo, open_sae, open_transcoders

CPU = torch.device("cpu")
NAMES = {"resid_post": Site.RESIDUAL, "mlp_out": Site.MLP_OUTPUT, "attn_out": Site.ATTENTION_HEADS}


def change_json(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("site", SITES)
def test_a_family_is_read_as_it_is_stored(site, tmp_path):
    family = write_family(tmp_path, (0, 1, 3), site, 24)
    for reference in (family, family.parent, str(family)):
        reader = open_sae(reference)
        assert (reader.layers, reader.d_model, reader.n_features) == ((0, 1, 3), 24, [96, 96, 96])
        assert reader.reads is reader.writes is NAMES[site]
        assert reader.l0_by_layer == {0: 10, 1: 11, 3: 13}
    stored = load_file(family.parent / f"layer_3_{family.name}" / "params.safetensors")
    assert torch.equal(reader.encoder(3).w_enc_df, stored["w_enc"])
    assert torch.equal(reader.encoder(3).threshold_f, stored["threshold"])
    assert torch.equal(reader.decoder_rows(3, torch.tensor([7, 2, 7])), stored["w_dec"][[7, 2, 7], None])
    assert torch.equal(reader.decoder(3), stored["w_dec"][:, None])
    assert torch.equal(reader.bias(3), stored["b_dec"])


def test_one_layer_and_several_named_one_by_one(tmp_path):
    family = write_family(tmp_path, (1, 2, 4), "resid_post", 16)
    one, four = (family.parent / f"layer_{layer}_{family.name}" for layer in (1, 4))
    assert open_sae(one).layers == (1,)
    joined = open_sae([four, one])
    assert joined.layers == (1, 4)
    assert joined.l0_by_layer == {1: 11, 4: 14}
    for layer in joined.layers:
        assert torch.equal(joined.decoder(layer), open_sae(family).decoder(layer))
        assert torch.equal(joined.encoder(layer).w_enc_df, open_sae(family).encoder(layer).w_enc_df)
    with pytest.raises(ValueError, match=r"has layer 4, as .* has; name one of them"):
        open_sae([four, family])
    other = write_sae(tmp_path / "other", 7, "mlp_out", 16)
    with pytest.raises(ValueError, match=r"other: reads is post_feedforward_layernorm.output; expected output, as in"):
        open_sae([one, other])
    with pytest.raises(ValueError, match="no SAE is named"):
        open_sae([])


@pytest.mark.parametrize("budget", [None, "100kB", "1GB"])
def test_in_use_it_encodes_and_decodes_by_the_definition(budget, tmp_path):
    saes = Saes(open_sae(write_sae(tmp_path / "sae", 2, "attn_out", 24)), CPU, memory_budget=budget)
    stored = load_file(tmp_path / "sae" / "params.safetensors")
    x_pd = torch.randn(9, 24, generator=torch.Generator().manual_seed(0))
    found = saes.encode(2, x_pd, 0)
    expected = encode_reference(x_pd, stored["w_enc"], stored["b_enc"], stored["threshold"])
    assert all(torch.equal(mine, other) for mine, other in zip(found[:2], expected[:2], strict=True))
    made_pd = saes.affine(2, x_pd).clone()
    saes.add_decoded(2, found, made_pd[None])
    h_pf = x_pd @ stored["w_enc"] + stored["b_enc"]
    dense_pd = (h_pf * (h_pf > stored["threshold"])) @ stored["w_dec"] + stored["b_dec"]
    torch.testing.assert_close(made_pd, dense_pd)


def test_other_dictionaries_are_refused_in_one_line(tmp_path):
    sae = write_sae(tmp_path / "layer_0_x", 0, "mlp_out", 8)
    with pytest.raises(ValueError, match=r"holds a dictionary from post_feed.* to post_feed.*, not transcoders"):
        open_transcoders(tmp_path)
    with pytest.raises(ValueError, match="holds transcoders, not an SAE"):
        open_sae(demo.TRANSCODERS_DIR)
    with pytest.raises(FileNotFoundError, match="no SAEs here; expected one of"):
        open_sae(_empty(tmp_path))
    with pytest.raises(FileNotFoundError, match="SAE folder nowhere does not exist"):
        open_sae("nowhere")
    case = load_case("skip_transcoder")
    with pytest.raises(
        ValueError, match="holds the transcoder of one layer; expected a folder with one for every layer"
    ):
        open_transcoders(next(case.transcoders.iterdir()))
    assert open_sae(sae).layers == (0,)
    assert isinstance(Transcoders(open_transcoders(case.transcoders), CPU), Transcoders)


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            {"hf_hook_point_in": "model.layers.4.output"},
            "names 'model.layers.4.output'; expected a site of model.layers.1",
        ),
        ({"hf_hook_point_in": "model.layers.1.mlp.output"}, "hook 'mlp.output' is not supported; supported: output, "),
        ({"hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output"}, "an SAE writes what it reads"),
        ({"hf_hook_point_in": ["model.layers.1.output"] * 2}, "names 2 sites; expected one, that of layer 1"),
        ({"hf_hook_point_in": None}, "hf_hook_point_in is null; expected a site"),
        ({"affine_connection": True}, "affine_connection is True; an SAE has no skip connection"),
        ({"architecture": "gated"}, "architecture 'gated' is not supported"),
        ({"type": "crosscoder"}, "type is 'crosscoder'; expected sae or transcoder"),
        ({"apply_b_dec_to_input": True}, "key apply_b_dec_to_input is not known"),
    ],
)
def test_a_config_that_cannot_be_read_exactly_is_named(entries, said, tmp_path):
    family = write_family(tmp_path, (0, 1), "resid_post", 8)
    config = family.parent / f"layer_1_{family.name}" / "config.json"
    change_json(config, **entries)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        open_sae(family)
    assert str(config) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w_dec": torch.zeros(96, 9)}, r"w_dec has shape \(96, 9\); expected \(96, 8\)"),
        ({"b_enc": torch.zeros(95)}, r"b_enc has shape \(95,\); expected \(96\)"),
        ({"threshold": torch.full((96,), torch.nan)}, "threshold holds NaN"),
        ({"w_enc": torch.zeros(7, 96)}, r"w_enc has shape \(7, 96\); expected \(8, any\)"),
        ({"affine_skip_connection": torch.zeros(8, 8)}, "tensor affine_skip_connection is not known"),
    ],
)
def test_a_damaged_file_is_named(tensors, said, tmp_path):
    family = write_family(tmp_path, (0, 1), "resid_post", 8)
    path = family.parent / f"layer_1_{family.name}" / "params.safetensors"
    save_file(load_file(path) | tensors, path)
    with pytest.raises(ValueError, match=said) as caught:
        open_sae(family)
    assert str(path) in str(caught.value)


def test_a_layer_without_its_file_is_named(tmp_path):
    family = write_family(tmp_path, (0, 1), "resid_post", 8)
    (family.parent / f"layer_1_{family.name}" / "params.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"layer_1_.*params.safetensors: file is missing"):
        open_sae(family)


def test_a_config_without_type_or_output_site_is_an_sae_where_it_reads_what_it_writes(tmp_path):
    folder = write_sae(tmp_path / "sae", 0, "resid_post", 8)
    config = json.loads((folder / "config.json").read_text())
    for without in (("type",), ("hf_hook_point_out",)):
        kept = {key: value for key, value in config.items() if key not in without}
        (folder / "config.json").write_text(json.dumps(kept))
        assert open_sae(folder).reads is Site.RESIDUAL


def test_two_families_must_be_told_apart(tmp_path):
    family = write_family(tmp_path, (0, 1), "resid_post", 8)
    shutil.copytree(family.parent / f"layer_0_{family.name}", family.parent / "layer_0_width_262k_l0_big")
    with pytest.raises(ValueError, match=r"holds several families; name one, e\.g\."):
        open_sae(family.parent)
    assert open_sae(family).layers == (0, 1)


def test_from_the_hub_only_what_is_named_is_fetched(tmp_path, monkeypatch):
    family = write_family(tmp_path / "repo", (0, 1, 2), "resid_post", 8)
    write_sae(family.parent / "layer_1_width_262k_l0_big", 1, "resid_post", 8)
    with serving(HubServer({"org/scope": tmp_path / "repo"})) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants._HF_DEFAULT_ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        place = "org/scope/resid_post_all"
        one = open_sae(f"{place}/layer_1_width_1k_l0_small")
        assert one.layers == (1,)
        size = (family.parent / f"layer_1_{family.name}" / "params.safetensors").stat().st_size
        assert running.sent["params.safetensors"] == size
        whole = open_sae(f"{place}/width_1k_l0_small")
        assert whole.layers == (0, 1, 2)
        assert torch.equal(whole.decoder(2), open_sae(family).decoder(2))
        assert running.sent["params.safetensors"] == 3 * size
