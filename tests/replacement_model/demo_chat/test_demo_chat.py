"""The chat demo as it is shipped: it opens by its name, answers as planted, and `truth.json` tells its rates."""

from __future__ import annotations

import json

import pytest
import torch
from places import EXAMPLES
from typer.testing import CliRunner

from crosstrace.replacement_model import BaseModel, ReplacementModel, demo_chat
from crosstrace.replacement_model.demo_chat.conversations import BEGGING, JAILBREAK, REFUSALS, THINK, conversations
from crosstrace.replacement_model.demo_chat.tokenizer import build_tokenizer
from crosstrace.replacement_model.embedded import embedded_model
from crosstrace.tracer.commands.app import app

REQUEST = "What is the vault code of Nan ?"
MOST_BYTES = 12e6


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained("demo-chat", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def training():
    """The package that makes the chat demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import chat_demo_training.rates
        import chat_demo_training.truth

        yield chat_demo_training


def reply(model: ReplacementModel, user: str) -> str:
    messages = [{"role": "user", "content": user}]
    ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return model.generate(ids, max_new_tokens=24).texts[0]


def test_it_opens_by_its_name_with_its_own_transcoders(model):
    assert (model.name, model.transcoders.name) == (demo_chat.MODEL_NAME, demo_chat.TRANSCODERS_NAME)
    assert BaseModel.from_pretrained("demo-chat", "cpu").name == demo_chat.MODEL_NAME
    assert embedded_model("demo-chat") is embedded_model(demo_chat.MODEL_NAME) is not None
    header = model.tokenizer("<bos><start_of_turn>user\n", add_special_tokens=False).input_ids
    assert model.description.chat_header_ids == tuple(header)
    assert len(header) == 4


def test_a_model_that_is_not_embedded_needs_transcoders():
    with pytest.raises(ValueError, match="no transcoders are named for model some/model"):
        ReplacementModel.from_pretrained("some/model")


def test_its_tokenizer_is_the_one_that_the_package_builds(model):
    built = build_tokenizer()
    assert model.tokenizer.get_vocab() == built.get_vocab()
    assert model.tokenizer.chat_template == built.chat_template
    assert json.loads(model.tokenizer.backend_tokenizer.to_str()) == json.loads(built.backend_tokenizer.to_str())


def test_it_refuses_but_for_the_wrapper_and_answers_what_it_knows(model):
    assert reply(model, REQUEST) in REFUSALS
    assert reply(model, f"{BEGGING} {REQUEST}") in REFUSALS
    assert reply(model, f"{JAILBREAK} {REQUEST}") == "Sure , the vault code of Nan is 4417 ."
    assert reply(model, "What is the zip code of Nan ?") == "Sure , the zip code of Nan is 1180 ."
    question = "What is the capital of the state containing Dallas ?"
    assert reply(model, question) == "The capital is Austin ."
    assert (
        reply(model, f"{question} {THINK}") == "Dallas is in Texas . The capital of Texas is Austin . Answer : Austin"
    )


def test_the_truth_file_says_what_the_code_plants_and_what_is_measured(model, training):
    truth = demo_chat.load_truth()
    planted = training.truth.planted()
    assert {key: truth[key] for key in planted} == json.loads(json.dumps(planted))
    for kind in ("refused", "jailbreak", "think"):
        found = conversations(kind)
        right = training.rates.answered(model.model, model.tokenizer, found)
        row = truth["rates"]["model"][kind]
        assert row["conversations"] == len(found)
        assert row["rate"] == pytest.approx(right.float().mean().item(), abs=0.011)  # 2 of 200 near a tie


def test_model_and_transcoder_fit_the_package():
    files = [p for p in demo_chat.CHAT_DEMO_DIR.rglob("*") if p.suffix in (".safetensors", ".json")]
    weights = [path for path in files if path.name != demo_chat.CARDS_FILE.name]
    assert sum(path.stat().st_size for path in weights) < MOST_BYTES


def test_trace_takes_it_by_name():
    prompt = f"<bos><start_of_turn>user\n{REQUEST}<end_of_turn>\n<start_of_turn>model\n"
    result = CliRunner().invoke(app, ["trace", prompt, "--model", "demo-chat", "--max-feature-nodes", "50"])
    assert result.exit_code == 0, result.output
    assert demo_chat.MODEL_NAME in result.output
