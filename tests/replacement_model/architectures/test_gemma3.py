"""The description of Gemma 3: both checkpoints, float32 arithmetic, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from cases import Case, load_case
from reference import relative_error

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.architectures.float32 import float32_arithmetic
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.replacement_model.architectures.registry import describe
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.tracer import trace

CPU = torch.device("cpu")


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(load_case("clt_affine").model, tmp_path / "model"))


def change_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.fixture(scope="module", params=["clt_affine", "clt_plain_gqa"])  # one kv head, and several
def multimodal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A Gemma3ForConditionalGeneration whose text part is the case's model."""
    case = load_case(request.param)
    source = case.model
    text = transformers.Gemma3ForCausalLM.from_pretrained(source)
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.Gemma3Config(text_config=text.config, vision_config=vision, mm_tokens_per_image=4)
    whole = transformers.Gemma3ForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.tie_weights()
    folder = tmp_path_factory.mktemp("multimodal")
    whole.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    return case, folder


def test_text_part_of_a_multimodal_checkpoint_gives_the_same_graph(multimodal):
    case, folder = multimodal
    alone = trace(ReplacementModel.from_pretrained(case.model, case.transcoders, CPU), case.input_ids)
    model = ReplacementModel.from_pretrained(folder, case.transcoders, CPU)
    assert model.description.modules.text_model == "model.language_model"
    again = trace(model, case.input_ids)
    assert torch.equal(again.active_features, alone.active_features)
    assert relative_error(again.adjacency, alone.adjacency) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_arithmetic_is_float32_for_narrow_weights(dtype):
    # The same rounded weights, stored narrow or wide, must give the same numbers.
    case = load_case("clt_plain_gqa")
    narrow, _, description = load_model(str(case.model), dtype, CPU)
    wide, _, _ = load_model(str(case.model), dtype, CPU)
    wide = wide.float()
    ids = torch.tensor(case.input_ids)
    narrow_sites, wide_sites = ModelSites(narrow, description), ModelSites(wide, description)
    embedded = narrow_sites.embed(ids)[None]
    assert torch.equal(narrow_sites.run(embedded), wide_sites.run(embedded))
    assert torch.equal(narrow_sites.unembed(embedded), wide_sites.unembed(embedded))


@pytest.mark.parametrize("n_inputs", [1, 70])  # few inputs: the weight passes in pieces
@pytest.mark.parametrize("n_out", [1, 3000])
def test_a_narrow_weight_is_widened_piece_by_piece(n_inputs, n_out):
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(2, n_inputs, 640), torch.randn(n_out, 640).bfloat16(), torch.randn(n_out)
    with float32_arithmetic():
        out = F.linear(inputs, weight, bias)
    assert out.dtype == torch.float32
    expected = inputs.double() @ weight.double().T + bias
    assert relative_error(out, expected) < 1e-6


def test_float32_arithmetic_ends_with_its_block():
    weight, x = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(1, 2)
    with float32_arithmetic():
        assert F.linear(x, weight).dtype == torch.float32
    with pytest.raises(RuntimeError):
        F.linear(x, weight)


def test_forward_is_that_of_transformers():
    case = load_case("clt_affine")
    model, _, description = load_model(str(case.model), None, CPU)
    sites, ids = ModelSites(model, description), torch.tensor(case.input_ids)
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    torch.testing.assert_close(sites.unembed(sites.run(sites.embed(ids)[None]))[0], expected, rtol=1e-5, atol=1e-5)


def test_chat_template_excludes_the_turn_header(model_copy):
    assert load_model(str(model_copy), None, CPU)[2].excluded_first == 1
    path = model_copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages }}"}))
    assert load_model(str(model_copy), None, CPU)[2].excluded_first == 4


def test_excluded_first_can_be_changed_but_not_below_zero():
    description = load_model(str(load_case("clt_affine").model), None, CPU)[2]
    assert description.excluding(3).excluded_first == 3
    with pytest.raises(ValueError, match="-1"):
        description.excluding(-1)


def test_unsupported_architecture_lists_the_supported_ones():
    config = transformers.LlamaConfig(architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .*Gemma3ForCausalLM, Gemma3ForConditionalGeneration"):
        describe(config, "some/llama")


@pytest.mark.parametrize("entry", [{"final_logit_softcapping": 30.0}, {"attention_bias": True}], ids=str)
def test_variants_that_are_not_linear_are_refused(model_copy, entry):
    change_config(model_copy, **entry)
    with pytest.raises(ValueError, match=next(iter(entry))):
        load_model(str(model_copy), None, CPU)


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
