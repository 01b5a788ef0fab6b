"""Gemma 3: both checkpoints, what chat models exclude, and the variants that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from cases import Case, load_case
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


def test_chat_template_excludes_the_turn_header(model_copy):
    assert load_model(str(model_copy), None, CPU)[2].excluded_first == 1
    path = model_copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages }}"}))
    assert load_model(str(model_copy), None, CPU)[2].excluded_first == 4


@pytest.mark.parametrize("entry", [{"final_logit_softcapping": 30.0}, {"attention_bias": True}], ids=str)
def test_variants_that_are_not_linear_are_refused(model_copy, entry):
    change_config(model_copy, **entry)
    with pytest.raises(ValueError, match=next(iter(entry))):
        load_model(str(model_copy), None, CPU)
