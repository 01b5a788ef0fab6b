"""Conversations: the span of each turn and of the answer, which tokens are the template's, and what is refused."""

from __future__ import annotations

import json

import pytest
from chat_samples import TEMPLATE, write_chat_model

from crosstrace.replacement_model import BaseModel, ReplacementModel, read_conversations, read_messages
from crosstrace.replacement_model.conversations import ending

ASK = [{"role": "user", "content": "Paris"}]
LONG = [
    {"role": "system", "content": "ASPcim"},
    {"role": "user", "content": "  torn Paris "},
    {"role": "assistant", "content": "Austin"},
    {"role": "user", "content": "user"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ReplacementModel:
    return ReplacementModel.from_pretrained(*write_chat_model(tmp_path_factory.mktemp("chat")), device="cpu")


@pytest.mark.parametrize("messages", [ASK, LONG])
def test_the_tokens_are_those_that_the_template_gives(model, messages):
    given = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    conversation = model.conversation(messages)
    assert list(conversation) == list(given) == model.tokenize(conversation).tolist()
    assert conversation.answer is None


def test_each_turn_holds_its_content_and_nothing_else(model):
    conversation = model.conversation(LONG, " Austin")
    texts = [model.tokenizer.decode(conversation[turn.start : turn.stop]) for turn in conversation.turns]
    # Trimmed as the template does; a content that is also a word of the template is found in its own place.
    assert texts == ["ASPcim", "torn Paris", "Austin", "user", " Austin"]
    assert [turn.role for turn in conversation.turns] == ["system", "user", "assistant", "user", "assistant"]
    inside = {p for turn in conversation.turns for p in range(turn.start, turn.stop)}
    assert sorted({*inside, *conversation.template}) == list(range(len(conversation)))
    assert not inside & set(conversation.template)
    assert conversation.answer == (len(conversation) - 1, len(conversation))


def test_an_answer_changes_no_token_before_it(model):
    asked, answered = model.conversation(LONG), model.conversation(LONG, "Austin Paris")
    assert answered[: len(asked)] == asked.tokens
    assert answered.unanswered() == asked
    assert asked.answered(answered.answer_tokens) == answered


def test_an_assistants_last_message_is_the_answer(model):
    said = [*ASK, {"role": "assistant", "content": "Austin"}]
    assert model.conversation(said) == model.conversation(ASK, "Austin")
    with pytest.raises(ValueError, match="it is the answer already"):
        model.conversation(said, "Paris")


def test_a_base_model_reads_conversations_too(model, tmp_path):
    folder, _ = write_chat_model(tmp_path, template=None)
    base = BaseModel.from_pretrained(folder, device="cpu", chat_template=TEMPLATE)
    assert base.conversation(LONG) == model.conversation(LONG)
    assert base.description.chat_header_ids == tuple(base.conversation(ASK)[:4])
    with pytest.raises(ValueError, match=r"has no chat template; give one with --chat-template FILE"):
        BaseModel.from_pretrained(folder, device="cpu").conversation(ASK)


def test_what_ends_an_answer(model):
    assert model.tokenizer.convert_ids_to_tokens(ending(model.tokenizer)) == ["<eos>", "<end_of_turn>"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "the conversation has no messages"),
        ("Paris", "expected a list of messages"),
        ([{"role": "user"}], 'message 1: its "content" is not there; expected text'),
        ([{"role": "user", "content": 3}], 'message 1: its "content" is a number'),
        (
            [*ASK, {"role": "wizard", "content": "?"}],
            "message 2 has the role 'wizard'; known are system, user, assistant",
        ),
        ([{"role": "user", "content": " \n"}], r"message 1 \(user\) is empty"),
        ([*ASK, *ASK], "the chat template refuses these messages: Conversation roles must alternate"),
        (["Paris"], "message 1 is text"),
    ],
)
def test_messages_that_are_none(model, messages, said):
    with pytest.raises(ValueError, match=said):
        model.conversation(messages)


def test_answers_that_cannot_be(model):
    with pytest.raises(ValueError, match="the answer is empty"):
        model.conversation(ASK, "  ")
    most = model.description.max_positions
    with pytest.raises(ValueError, match=rf"has \d+ tokens and its answer {most:,}; model .* takes at most {most:,}"):
        model.conversation(ASK, " Austin" * most)


@pytest.mark.parametrize("template", ["{% if %}", "{{ bos_token }}hello", "{{ messages[5].content }}"])
def test_templates_that_do_not_do(model, template, tmp_path):
    folder, _ = write_chat_model(tmp_path, template)
    with pytest.raises(ValueError, match="the chat template"):
        BaseModel.from_pretrained(folder, device="cpu").conversation(ASK)


def test_files_of_conversations(tmp_path):
    one, lines, several = tmp_path / "one.json", tmp_path / "many.jsonl", tmp_path / "many.json"
    one.write_text(json.dumps(LONG))
    assert read_messages(one) == LONG
    lines.write_text(json.dumps(ASK) + "\n\n" + json.dumps({"messages": LONG, "label": True}))
    first, second = read_conversations(lines)
    assert (first.messages, second.messages, second.fields) == (ASK, LONG, {"label": True})
    assert second.place == f"{lines}, line 3"
    several.write_text(json.dumps([ASK, {"messages": LONG}]))
    assert [record.messages for record in read_conversations(several)] == [ASK, LONG]
    with pytest.raises(ValueError, match="has 2 conversations; expected one"):
        read_messages(several)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "[{", "a.json: not JSON: "),
        ("a.json", "", "a.json: not JSON: "),
        ("a.jsonl", "[]\n{", r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", "\n", "has no conversations"),
        ("a.json", '{"text": 1}', 'expected a list of messages, or an object with "messages"'),
        ("a.jsonl", '[{"role": "x", "content": "y"}]', "a.jsonl, line 1: message 1 has the role 'x'"),
        ("a.txt", "", "conversations are read from .json or .jsonl"),
    ],
)
def test_files_that_hold_none(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_conversations(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_conversations(tmp_path / "none.json")
