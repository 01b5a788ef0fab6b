"""Loading: what is refused in one line, and layers that accelerate keeps elsewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from cases import load_case
from reference import relative_error
from safetensors.torch import load_file, save_file

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.tracer import trace

CPU = torch.device("cpu")


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(load_case("clt_affine").model, tmp_path / "model"))


def change_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", r"model folder .* does not exist"),
        ("no config", r"model folder .* has no config.json"),
        ("cut short", r"model .*: "),
        ("tensors missing", r"1 tensors are missing from its files, the first is model.layers.1.mlp.up_proj.weight"),
        ("other size", r"model .*: "),
    ],
)
def test_broken_model_folders_are_one_line(model_copy, how, message):
    weights = model_copy / "model.safetensors"
    match how:
        case "no folder":
            shutil.rmtree(model_copy)
        case "no config":
            (model_copy / "config.json").unlink()
        case "cut short":
            weights.write_bytes(weights.read_bytes()[:10_000])
        case "tensors missing":
            stored = load_file(weights)
            del stored["model.layers.1.mlp.up_proj.weight"]
            save_file(stored, weights, metadata={"format": "pt"})
        case "other size":
            change_config(model_copy, hidden_size=32)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        load_model(str(model_copy), None, CPU)
    assert "\n" not in str(caught.value)
    assert str(model_copy) in str(caught.value)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 33\n"


def in_two_shards(folder: Path) -> tuple[Path, Path]:
    """Split the checkpoint; return its second file and its index."""
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(stored), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: stored[name] for name in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / "model-00002-of-00002.safetensors", index


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    stored = load_file(path) | tensors
    save_file({key: tensor for key, tensor in stored.items() if tensor is not None}, path, metadata={"format": "pt"})


def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises((OSError, ValueError)) as caught:
        load_model(str(folder), None, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"model {folder}: ")
    assert "LOAD REPORT" not in "".join(capsys.readouterr())
    return message.removeprefix(f"model {folder}: ")


UP = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "shard missing",
            "00002-of-00002.safetensors: file is missing; model.safetensors.index.json places 27 tensors",
        ),
        ("shard cut short", "00002-of-00002.safetensors: not a whole safetensors file"),
        (
            "shard is a pointer",
            "00002-of-00002.safetensors: is a Git LFS pointer, not the file itself; run git lfs pull",
        ),
        (
            "shard lacks a tensor",
            f"00002-of-00002.safetensors: tensor {UP} is missing, which model.safetensors.index.json",
        ),
        ("index cut short", "model.safetensors.index.json: not valid JSON"),
        ("NaN", f"00002-of-00002.safetensors: {UP} holds NaN"),
        ("infinity", f"00002-of-00002.safetensors: {UP} holds infinity"),
        ("other shape", rf"00002-of-00002.safetensors: {UP} has shape \(3, 4\); expected \(\d+, 64\) by config.json"),
        (
            "unknown tensor",
            "00002-of-00002.safetensors: tensor model.layers.2.mlp.up_proj.bias is not known in a Gemma3For",
        ),
    ],
)
def test_the_shard_at_fault_is_named(model_copy, capsys, how, message):
    assert load_model(str(model_copy), None, CPU)
    shard, index = in_two_shards(model_copy)
    up = load_file(shard)[UP]
    up[0, 0] = {"NaN": torch.nan, "infinity": -torch.inf}.get(how, 0.0)
    match how:
        case "shard missing":
            shard.unlink()
        case "shard cut short":
            shard.write_bytes(shard.read_bytes()[:-100])
        case "shard is a pointer":
            shard.write_text(POINTER)
        case "shard lacks a tensor":
            change(shard, **{UP: None})
        case "index cut short":
            index.write_text(index.read_text()[:200])
        case "NaN" | "infinity":
            change(shard, **{UP: up})
        case "other shape":
            change(shard, **{UP: torch.zeros(3, 4)})
        case "unknown tensor":
            entries = json.loads(index.read_text())
            entries["weight_map"][UP.replace("weight", "bias")] = shard.name
            index.write_text(json.dumps(entries))
            change(shard, **{UP.replace("weight", "bias"): torch.zeros(3)})
    assert re.search(message, refusal(model_copy, capsys))


def test_shards_load_as_one_file_does(model_copy):
    whole = load_model(str(model_copy), None, CPU)[0].state_dict()
    in_two_shards(model_copy)
    again = load_model(str(model_copy), None, CPU)[0].state_dict()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.parametrize(
    ("entry", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"load_in_8bit": True}, "quantization_config"),
    ],
    ids=str,
)
def test_quantised_checkpoints_are_refused(model_copy, capsys, entry, method):
    change_config(model_copy, quantization_config=entry)
    expected = f"its weights are quantised ({method}); only unquantised ones can be traced: "
    assert refusal(model_copy, capsys).startswith(expected)


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
@pytest.mark.parametrize("how", ["pointer", "cut short", "empty"])
def test_damaged_files_of_a_model_are_named(model_copy, capsys, file, how):
    path = model_copy / file
    content = path.read_bytes()
    path.write_bytes({"pointer": POINTER.encode(), "cut short": content[: len(content) // 2], "empty": b""}[how])
    expected = "is a Git LFS pointer" if how == "pointer" else "not (valid JSON|a whole safetensors file)"
    assert re.match(f"{file}: {expected}", refusal(model_copy, capsys))


def test_a_config_that_contradicts_itself_is_one_line(model_copy, capsys):
    change_config(model_copy, num_hidden_layers=3)
    assert re.match(r"config.json: .*num_hidden_layers.* \(3\) must be equal", refusal(model_copy, capsys))


def test_a_tokenizer_that_is_json_but_no_tokenizer_is_named(model_copy, capsys):
    (model_copy / "tokenizer.json").write_text("{}")
    assert refusal(model_copy, capsys).startswith("tokenizer.json: the tokenizer cannot be read")


def test_device_map_without_accelerate_is_one_line(monkeypatch):
    case, find = load_case("clt_affine"), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "accelerate" else find(name, *rest)
    )
    with pytest.raises(
        ValueError, match="a device map needs accelerate, which is not installed; pip install accelerate"
    ):
        ReplacementModel.from_pretrained(case.model, case.transcoders, CPU, device_map="auto")


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")
def test_layers_kept_elsewhere_by_accelerate_give_the_same_graph(tmp_path, monkeypatch):
    case = load_case("clt_plain_gqa")
    alone = trace(ReplacementModel.from_pretrained(case.model, case.transcoders, CPU), case.input_ids)
    # Some layers on disk: the furthest from where tracing happens that there is without a second device.
    places: dict[str, str] = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    places |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(5)}
    monkeypatch.chdir(tmp_path)
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, CPU, device_map=places)
    assert any(parameter.device.type == "meta" for parameter in model.model.parameters())
    again = trace(model, case.input_ids)
    assert torch.equal(again.active_features, alone.active_features)
    assert relative_error(again.adjacency, alone.adjacency) < 1e-6
