"""Loading: what is refused in one line, and layers that accelerate keeps elsewhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from cases import load_case
from reference import relative_error

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
    from safetensors.torch import load_file, save_file

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
