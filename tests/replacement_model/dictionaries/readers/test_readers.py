"""Readers: formats agree, references resolve, and every kind of broken file is named."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cases import load_case, rounded_copy, write_circuit_tracer
from safetensors.torch import load_file, save_file

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model import ReplacementModel, Transcoders, open_transcoders
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.readers import base
from crosstrace.replacement_model.dictionaries.readers.base import NEGLIGIBLE_SHARE

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 33\n"


@pytest.fixture
def clt(tmp_path: Path) -> Path:
    return rounded_copy(load_case("clt_plain_gqa"), tmp_path / "clt" / "width_1k", torch.float32)


@pytest.fixture
def family(tmp_path: Path) -> Path:
    folder = tmp_path / "transcoder_all"
    shutil.copytree(load_case("skip_transcoder").transcoders, folder)
    return folder


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    stored = load_file(path) | {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_file({key: tensor for key, tensor in stored.items() if key not in tensors or tensors[key] is not None}, path)


def change_json(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_cross_layer_folder(clt):
    reader = open_transcoders(clt)
    stored = load_file(clt / "params_layer_2.safetensors")
    assert (reader.n_layers, reader.d_model, reader.cross_layer) == (5, 48, True)
    assert reader.reads is Site.MLP_INPUT_NORMED
    rows = reader.decoder_rows(2, torch.tensor([7, 3, 7]))
    assert torch.equal(rows, stored["w_dec"][[7, 3, 7], 2:])
    assert torch.equal(reader.encoder(2).w_enc_df, stored["w_enc"])
    assert reader.skip(2) is None


@pytest.mark.parametrize("name", ["clt_plain_gqa", "skip_transcoder"])
@pytest.mark.parametrize("layout", ["gemma_scope", "circuit_tracer"])
def test_rows_read_are_those_of_the_whole_decoder_in_any_order(name, layout, tmp_path):
    case = load_case(name)
    folder = case.transcoders if layout == "gemma_scope" else write_circuit_tracer(case, tmp_path / "ct")
    reader = open_transcoders(folder)
    generator = torch.Generator().manual_seed(5)
    for layer in range(reader.n_layers):
        whole, count = reader.decoder(layer), reader.n_features[layer]
        assert whole.shape == (count, reader.n_written(layer), reader.d_model)
        assert whole.dtype == reader.dtype()
        scattered = torch.randint(0, count, (50,), generator=generator)
        for features in (
            torch.arange(count),
            scattered,
            torch.tensor([count - 1]),
            torch.tensor([], dtype=torch.int64),
        ):
            assert torch.equal(reader.decoder_rows(layer, features), whole[features])


def test_family_by_short_name_and_by_folder(family):
    by_folder = open_transcoders(family)
    by_name = open_transcoders(family / "width_1k_l0_medium_affine")
    assert by_folder.n_layers == by_name.n_layers == 4
    assert torch.equal(by_folder.decoder_rows(1, torch.arange(5)), by_name.decoder_rows(1, torch.arange(5)))
    assert by_folder.decoder_rows(1, torch.arange(5)).shape == (5, 1, 64)
    stored = load_file(family / "layer_1_width_1k_l0_medium_affine" / "params.safetensors")
    skip = by_folder.skip(1)
    assert skip is not None
    assert torch.equal(skip, stored["affine_skip_connection"])


def test_two_families_in_a_folder_must_be_told_apart(family):
    shutil.copytree(family / "layer_0_width_1k_l0_medium_affine", family / "layer_0_width_2k_l0_big")
    with pytest.raises(ValueError, match=r"several families.*width_1k_l0_medium_affine"):
        open_transcoders(family)
    assert open_transcoders(family / "width_1k_l0_medium_affine").n_layers == 4


@pytest.mark.parametrize("name", ["clt_plain_gqa", "skip_transcoder"])
def test_circuit_tracer_layout_reads_the_same_weights(name, tmp_path):
    case = load_case(name)
    ours, theirs = open_transcoders(case.transcoders), open_transcoders(write_circuit_tracer(case, tmp_path / "ct"))
    assert ours.cross_layer == theirs.cross_layer
    for layer in range(ours.n_layers):
        for mine, other in zip(vars(ours.encoder(layer)).values(), vars(theirs.encoder(layer)).values(), strict=True):
            assert torch.equal(mine, other)
        features = torch.tensor([0, 11, 5])
        assert torch.equal(ours.decoder_rows(layer, features), theirs.decoder_rows(layer, features))
        assert torch.equal(ours.bias(layer), theirs.bias(layer))
        skips = ours.skip(layer), theirs.skip(layer)
        assert (skips[0] is None) == (skips[1] is None)
        assert skips[0] is None or skips[1] is None or torch.equal(skips[0], skips[1])


def test_circuit_tracer_file_without_thresholds_is_a_relu(tmp_path):
    folder = write_circuit_tracer(load_case("skip_transcoder"), tmp_path / "ct")
    change(folder / "layer_0.safetensors", **{"activation_function.threshold": None})
    assert not open_transcoders(folder).encoder(0).threshold_f.any()


def test_circuit_tracer_listed_files(tmp_path):
    folder = write_circuit_tracer(load_case("skip_transcoder"), tmp_path / "ct")
    for layer in range(4):
        (folder / f"layer_{layer}.safetensors").rename(folder / f"mine_{layer}.safetensors")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["transcoders"] = [f"mine_{layer}.safetensors" for layer in range(4)]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_transcoders(folder).n_layers == 4
    config["transcoders"][3] = "mine_2.safetensors"  # seen in the wild
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"mine_2.safetensors twice, for layers 2 and 3"):
        open_transcoders(folder)


def test_weight_towards_earlier_layers_is_refused_and_noise_is_dropped(clt):
    path = clt / "params_layer_3.safetensors"
    w_dec = load_file(path)["w_dec"]
    later = w_dec[:, 3:].norm()
    noise = torch.zeros_like(w_dec)
    noise[:, 0] = torch.randn(80, 48)
    noise *= later / noise.norm()
    change(path, w_dec=w_dec + 0.5 * NEGLIGIBLE_SHARE * noise)
    assert torch.equal(open_transcoders(clt).decoder_rows(3, torch.arange(80)), w_dec[:, 3:])
    change(path, w_dec=w_dec + 0.5 * noise)
    with pytest.raises(ValueError, match=r"params_layer_3.safetensors: 44.7% of the norm .* before layer 3"):
        open_transcoders(clt)


def test_unsampled_rows_are_checked_when_they_are_used(clt, monkeypatch):
    w_dec = load_file(clt / "params_layer_3.safetensors")["w_dec"]
    w_dec[1, 0] = 5.0
    change(clt / "params_layer_3.safetensors", w_dec=w_dec)
    monkeypatch.setattr(base, "CHECKED_BYTES", w_dec.numel() * 4 // 2)  # every other row
    reader = open_transcoders(clt)
    with pytest.raises(ValueError, match="the active features' decoder"):
        reader.decoder_rows(3, torch.tensor([1]))


def broken(clt: Path, how: str) -> None:
    layer = clt / "params_layer_1.safetensors"
    match how:
        case "missing layer":
            layer.unlink()
        case "last layer missing":
            (clt / "params_layer_4.safetensors").unlink()
        case "empty layer":
            (clt / "params_layer_0.safetensors").write_bytes(b"")
        case "cut short":
            layer.write_bytes(layer.read_bytes()[:5000])
        case "wrong d_model":
            change(layer, w_enc=torch.zeros(32, 80))
        case "wrong decoder":
            change(layer, w_dec=torch.zeros(80, 4, 48))
        case "tensor missing":
            change(layer, w_dec=None)
        case "no config":
            (clt / "config.json").unlink()
        case "config not JSON":
            (clt / "config.json").write_text("{")
        case "unknown hook":
            hooks = [f"model.layers.{layer}.mlp.output" for layer in range(5)]
            change_json(clt / "config.json", hf_hook_point_out=hooks)
        case "hook of another layer":
            change_json(clt / "config.json", hf_hook_point_in=["model.layers.0.pre_feedforward_layernorm.output"] * 5)
        case "other architecture":
            change_json(clt / "config.json", architecture="topk")
        case "activation elsewhere":
            change_json(clt / "config.json", activation_fn="topk")
        case "config is a pointer":
            (clt / "config.json").write_text(POINTER)
        case "config is a list":
            (clt / "config.json").write_text("[]")
        case "layer is a pointer":
            layer.write_text(POINTER)
        case "unknown tensor":
            change(layer, log_threshold=torch.zeros(80))
        case "stored as whole numbers":
            change(layer, w_enc=torch.zeros(48, 80, dtype=torch.int8))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing layer", r"params_layer_1.safetensors: layer file is missing"),
        ("last layer missing", r"params_layer_4.safetensors: layer file is missing"),
        ("empty layer", r"params_layer_0.safetensors: not a whole safetensors file \(0 bytes"),
        ("cut short", r"params_layer_1.safetensors: not a whole safetensors file \(5,000 bytes"),
        ("wrong d_model", r"params_layer_1.safetensors: w_enc has shape \(32, 80\); expected \(48, any\)"),
        ("wrong decoder", r"params_layer_1.safetensors: w_dec has shape \(80, 4, 48\); expected \(80, 5, 48\)"),
        ("tensor missing", r"params_layer_1.safetensors: tensor w_dec is missing"),
        ("no config", r"config.json: file is missing"),
        ("config not JSON", r"config.json: not valid JSON"),
        ("unknown hook", r"hook 'mlp.output' is not supported; supported: post_feedforward_layernorm.output"),
        ("hook of another layer", r"expected a site of model.layers.1"),
        ("other architecture", r"architecture 'topk' is not supported; supported: jump_relu, batch_topk"),
        ("activation elsewhere", r"config.json: key activation_fn is not known; known keys: hf_hook_point_in"),
        ("config is a pointer", r"config.json: is a Git LFS pointer, not the file itself; run git lfs pull"),
        ("config is a list", r"config.json: holds a JSON list; expected an object with hook points"),
        ("layer is a pointer", r"params_layer_1.safetensors: is a Git LFS pointer"),
        (
            "unknown tensor",
            r"params_layer_1.safetensors: tensor log_threshold is not known in such a file; expected w_enc",
        ),
        (
            "stored as whole numbers",
            r"params_layer_1.safetensors: w_enc is stored as I8; supported: F64, F32, F16, BF16",
        ),
    ],
)
def test_broken_folders_are_named(clt, how, message):
    broken(clt, how)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_transcoders(clt).encoder(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["hf_hook_point_in", "hf_hook_point_out"])
@pytest.mark.parametrize(
    "hooks", [None, [], [None] * 5, 7, {}, "model.layers.0.pre_feedforward_layernorm.output"], ids=str
)
def test_hooks_that_name_no_sites(clt, family, key, hooks):
    configs = [clt / "config.json", family / "layer_2_width_1k_l0_medium_affine" / "config.json"]
    for config, folder in zip(configs, (clt, family), strict=True):
        change_json(config, **{key: hooks})
        with pytest.raises(ValueError, match=f"{config}: .*{key}|{config}: names 1 layers") as caught:
            open_transcoders(folder)
        assert "\n" not in str(caught.value)


class TestSkipConnections:
    """What a config says of skip connections, and the tensors, have to agree."""

    @pytest.fixture(params=["in one layer", "in all layers"])
    def layers(self, request: pytest.FixtureRequest) -> range:
        return range(2, 3) if request.param == "in one layer" else range(4)

    def files(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("**/params*.safetensors"))

    @pytest.fixture(params=["clt_affine", "skip_transcoder"])
    def affine(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        return Path(shutil.copytree(load_case(request.param).transcoders, tmp_path / "affine"))

    def test_promised_and_missing(self, affine, layers):
        for layer in layers:
            change(self.files(affine)[layer], affine_skip_connection=None)
        with pytest.raises(
            ValueError,
            match=r"config.json: affine_connection is true, but .*params.* has no tensor affine_skip_connection",
        ):
            open_transcoders(affine)

    def test_there_and_denied(self, affine):
        for config in affine.glob("**/config.json"):
            change_json(config, affine_connection=False)
        with pytest.raises(ValueError, match=r"config.json: affine_connection is false, but .* has a tensor"):
            open_transcoders(affine)

    def test_a_config_that_is_silent_leaves_it_to_the_tensors(self, affine):
        for config in affine.glob("**/config.json"):
            config.write_text(
                json.dumps({k: v for k, v in json.loads(config.read_text()).items() if "affine" not in k})
            )
        assert open_transcoders(affine).skip(2) is not None
        change(self.files(affine)[2], affine_skip_connection=None)
        with pytest.raises(ValueError, match=r"tensor affine_skip_connection is missing, which other layers have"):
            open_transcoders(affine)

    def test_a_flag_is_true_or_false(self, affine):
        for config in affine.glob("**/config.json"):
            change_json(config, affine_connection="yes")
        with pytest.raises(ValueError, match="affine_connection is 'yes'; expected true or false"):
            open_transcoders(affine)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("key", ["w_enc", "b_enc", "threshold", "w_dec", "b_dec", "affine_skip_connection"])
@pytest.mark.parametrize("name", ["clt_affine", "skip_transcoder"])
@pytest.mark.parametrize("layout", ["gemma_scope", "circuit_tracer"])
def test_weights_that_are_not_finite_are_named(name, layout, key, value, tmp_path):
    case = load_case("clt_plain_gqa" if layout == "circuit_tracer" and name == "clt_affine" else name)
    folder = Path(shutil.copytree(case.transcoders, tmp_path / "scope"))
    file = sorted(folder.glob("**/params*.safetensors"))[2]
    stored = load_file(file)
    if key not in stored:
        pytest.skip("circuit-tracer's cross-layer files have no skip connection")
    stored[key][..., -1] = value
    save_file(stored, file)
    path, tensor = file, key
    if layout == "circuit_tracer":
        folder = write_circuit_tracer(dataclasses.replace(case, transcoders=folder), tmp_path / "ct")
        names = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}
        tensor = names.get(key, "activation_function.threshold" if key == "threshold" else key)
        path = folder / "layer_2.safetensors"
        if name == "clt_affine":
            tensor = f"{names.get(key, key)}_2"
            path = folder / ("W_dec_2.safetensors" if key == "w_dec" else "W_enc_2.safetensors")
    kind = "NaN" if value != value else "infinity"
    with pytest.raises(ValueError, match=re.escape(f"{path}: {tensor} holds {kind}; the file is damaged")):
        ReplacementModel.from_pretrained(case.model, folder, device="cpu").local(case.input_ids)


@pytest.mark.parametrize("budget", ["100MB", 1], ids=["whole decoders", "decoders in their files"])
def test_so_are_rows_that_are_used_where_they_lie(clt, budget):
    path = clt / "params_layer_2.safetensors"
    w_dec = load_file(path)["w_dec"]
    w_dec[:, 2:, 5] = torch.nan
    reader = open_transcoders(clt)
    change(path, w_dec=w_dec)
    transcoders = Transcoders(reader, torch.device("cpu"), memory_budget=budget)
    assert transcoders.keeps_decoders == (budget != 1)
    every = torch.cartesian_prod(torch.arange(5), torch.tensor([0]), torch.arange(80))
    active = SparseActivations.from_indices(every, torch.ones(len(every)), 5, 1)
    with pytest.raises(ValueError, match=r"params_layer_2.safetensors: w_dec holds NaN"):
        transcoders.decoder_rows_of(active)


def test_large_finite_weights_are_no_infinity(clt):
    path = clt / "params_layer_2.safetensors"
    w_enc = torch.full((48, 80), 3e38)
    change(path, w_enc=w_enc)
    assert torch.equal(open_transcoders(clt).encoder(2).w_enc_df, w_enc)


def test_missing_layer_of_a_family(family):
    shutil.rmtree(family / "layer_2_width_1k_l0_medium_affine")
    with pytest.raises(FileNotFoundError, match="no folder for layer 2"):
        open_transcoders(family)


@pytest.mark.parametrize("reference", ["/no/such/folder", "./nothing", "nothing"])
def test_folders_that_do_not_exist(reference):
    with pytest.raises(FileNotFoundError, match=f"{reference} does not exist"):
        open_transcoders(reference)


def test_folder_without_transcoders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no transcoders here"):
        open_transcoders(tmp_path)


def test_model_and_transcoders_that_do_not_fit():
    model, other = load_case("clt_affine"), load_case("clt_plain_gqa")
    with pytest.raises(ValueError, match=r"layers is 5 in the transcoders and 4 in the model"):
        ReplacementModel.from_pretrained(model.model, other.transcoders, device="cpu")


def test_labels_beside_the_weights(clt):
    assert open_transcoders(clt).labels() == {}
    labels = {"format": "crosstrace-labels/1", "layers": [{"3": {"label": "Texas"}}, {}, {}, {}, {}]}
    (clt / "labels.json").write_text(json.dumps(labels))
    assert open_transcoders(clt).labels() == {(0, 3): "Texas"}
    for content in ("[]", "", '{"format": ', POINTER):
        (clt / "labels.json").write_text(content)
        with pytest.raises(ValueError, match=r"labels.json: (not a label file|is a Git LFS pointer)") as caught:
            open_transcoders(clt).labels()
        assert "\n" not in str(caught.value)


class TestHub:
    """References to the hub, against a cache laid out as huggingface_hub lays it out; the hub itself is out of reach."""

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        commit = "0123456789012345678901234567890123456789"
        repo = tmp_path / "hub" / "models--org--scope"
        snapshot = repo / "snapshots" / commit
        shutil.copytree(load_case("clt_plain_gqa").transcoders, snapshot / "clt" / "width_1k")
        shutil.copytree(load_case("skip_transcoder").transcoders, snapshot / "transcoder_all")
        for revision in ("main", "v2"):
            (repo / "refs").mkdir(exist_ok=True)
            (repo / "refs" / revision).write_text(commit)

    @pytest.mark.parametrize("reference", ["org/scope/clt/width_1k", "org/scope/clt/width_1k@v2"])
    def test_cached_folder(self, cache, reference):
        reader = open_transcoders(reference)
        assert reader.n_layers == 5
        assert reader.name == reference

    def test_cached_family(self, cache):
        assert open_transcoders("org/scope/transcoder_all/width_1k_l0_medium_affine").n_layers == 4

    def test_out_of_reach_is_one_line_with_what_to_do(self, cache):
        with pytest.raises(OSError, match=r"^org/other/clt/width_1k: .*go online once, or give a local folder$"):
            open_transcoders("org/other/clt/width_1k")

    def test_not_in_the_repository(self, cache):
        with pytest.raises(FileNotFoundError, match="no transcoders here"):
            open_transcoders("org/scope/clt/width_9k")
