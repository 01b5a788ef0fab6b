"""Gemma 3: both checkpoints, what chat models exclude, and the variants that are refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from cases import Case, load_case
from reference import relative_error
from safetensors.torch import load_file, save_file
from small_tokenizer import id_of, write_tokenizer

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.tracer import plan_trace, trace

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
    assert type(model.model).__name__ == "Gemma3ForCausalLM"
    again = trace(model, case.input_ids)
    assert torch.equal(again.active_features, alone.active_features)
    assert relative_error(again.adjacency, alone.adjacency) < 1e-6


def without_vision(folder: Path, target: Path, prefix: str) -> Path:
    """The checkpoint without its vision tower, its text model's tensors under another name."""
    shutil.copytree(folder, target)
    stored = load_file(folder / "model.safetensors")
    text = {key: tensor for key, tensor in stored.items() if "language_model" in key}
    assert 0 < len(text) < len(stored)
    names = {key: f"{prefix}.{re.split('language_model.(?:model.)?', key)[1]}" for key in text}
    save_file(
        {names[key]: tensor for key, tensor in text.items()}, target / "model.safetensors", metadata={"format": "pt"}
    )
    return target


@pytest.mark.parametrize("prefix", [None, "model.language_model", "language_model.model"])
def test_the_text_part_alone_gives_the_whole_models_logits(multimodal, tmp_path, prefix):
    case, folder = multimodal
    whole = transformers.Gemma3ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    source = folder if prefix is None else without_vision(folder, tmp_path / "text", prefix)
    model = load_model(str(source), None, CPU)[0]
    assert not any("vision" in name or "projector" in name for name, _ in model.named_parameters())
    ids = torch.tensor([case.input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, whole(ids).logits, rtol=1e-6, atol=1e-6)


def test_a_plan_counts_the_text_part_alone(multimodal):
    case, folder = multimodal
    plan = plan_trace(folder, case.transcoders, 5, device="cpu")
    (weights,) = [part.n_bytes for part in plan.parts if part.name == "model weights"]
    model = load_model(str(folder), None, CPU)[0]
    assert weights == sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert weights < sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_a_text_part_that_lacks_a_tensor_is_refused(multimodal, tmp_path):
    folder = without_vision(multimodal[1], tmp_path / "text", "language_model.model")
    stored = load_file(folder / "model.safetensors")
    del stored["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"first is model.layers.1.mlp.up_proj.weight \(expected in model.safetensors\)"
    ):
        load_model(str(folder), None, CPU)


def test_chat_template_excludes_the_turn_header_of_prompts_that_have_it(model_copy):
    write_tokenizer(model_copy)
    assert load_model(str(model_copy), None, CPU)[2].chat_header_ids == ()
    write_tokenizer(model_copy, chat=True)
    description = load_model(str(model_copy), None, CPU)[2]
    header = tuple(id_of(token) for token in ("<bos>", "<start_of_turn>", "user", "\n"))
    assert (description.excluded_first, description.chat_header_ids) == (1, header)
    assert description.excluded_first_of([*header, 20]) == 4
    assert description.excluded_first_of([2, 20]) == 1


def test_vocabulary_without_the_turn_header_has_none(model_copy):
    path = model_copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages }}"}))
    assert load_model(str(model_copy), None, CPU)[2].chat_header_ids == ()


@pytest.mark.parametrize("entry", [{"final_logit_softcapping": 30.0}, {"attention_bias": True}], ids=str)
def test_variants_that_are_not_linear_are_refused(model_copy, entry):
    change_config(model_copy, **entry)
    with pytest.raises(ValueError, match=next(iter(entry))):
        load_model(str(model_copy), None, CPU)
