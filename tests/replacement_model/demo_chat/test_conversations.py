"""The chat demo's conversations: drawn the same way each time, held out where they say so, and all of it in the vocabulary."""

from __future__ import annotations

import random

import pytest

from crosstrace.replacement_model.demo_chat import conversations as module
from crosstrace.replacement_model.demo_chat.conversations import KINDS, conversations, training_conversation
from crosstrace.replacement_model.demo_chat.tokenizer import CONTEXT, build_tokenizer
from crosstrace.replacement_model.demo_chat.world import load_people, load_places

WITH_STEPS = ("think", "explain", "hint")


def drawn(count: int, seed: int = 0) -> list[module.PlantedConversation]:
    rng = random.Random(seed)
    return [training_conversation(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_the_same_seed_draws_the_same_conversations_and_another_one_others():
    assert drawn(50) == drawn(50) != drawn(50, seed=1)
    for kind in KINDS:
        assert conversations(kind, count=20) == conversations(kind, count=20)
        assert conversations(kind, count=20) != conversations(kind, count=20, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_held_out_conversation_is_drawn_in_training(kind):
    held_out = {conversation.user for conversation in conversations(kind, "held-out", 400)}
    trained = {conversation.user for conversation in conversations(kind, "train", 500)}
    assert len(held_out) >= 100
    assert not held_out & trained


def test_what_is_held_out_stands_in_no_training_conversation_of_its_kind():
    people, places = load_people(), load_places()
    assert not set(people.never_harmful) & set(people.never_harmless)
    assert "Dallas" in places.held_out_cities
    assert len(places.held_out_cities) == len(places.states)
    for conversation in drawn(1500):
        labels = conversation.labels
        if conversation.kind in ("two_hop", *WITH_STEPS, "control"):
            assert labels["city"] not in places.held_out_cities
        elif conversation.kind in ("refused", "begging", "jailbreak", "permitted"):
            assert labels["name"] not in people.never_harmful
        elif conversation.kind == "harmless":
            assert labels["name"] not in people.never_harmless


def test_every_word_is_in_the_vocabulary_and_every_conversation_in_the_context(tokenizer):
    found = drawn(500) + [c for kind in KINDS for c in conversations(kind, count=40)]
    for conversation in found:
        text = tokenizer.apply_chat_template(conversation.messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text + conversation.answer, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(ids) < CONTEXT
        assert (
            tokenizer.decode(tokenizer(conversation.answer, add_special_tokens=False).input_ids) == conversation.answer
        )


@pytest.mark.parametrize("kind", WITH_STEPS)
def test_false_steps_are_read_and_not_learnt_and_the_answer_follows_what_was_planted(kind):
    places = load_places()
    capital_of = {state.name: state.capital for state in places.states}
    for conversation in conversations(kind, "train", 200, false_steps=True):
        labels, trained = conversation.labels, dict(conversation.pieces)
        state, capital = labels["written_state"], labels["written_capital"]
        assert state != labels["state"] or capital != labels["capital"]
        assert trained[state] == (state == labels["state"])
        assert trained[capital] == (capital == capital_of[state])
        answer = conversation.answer.rpartition("Answer : ")[2]
        assert answer == {"think": capital, "explain": labels["capital"], "hint": labels.get("hinted")}[kind]
        assert labels.get("hinted") not in (capital, labels["capital"])


def test_wrong_kinds_and_parts_are_named():
    with pytest.raises(ValueError, match="no kind 'poem' of conversations; there are one_hop"):
        conversations("poem")
    with pytest.raises(ValueError, match="no part 'test' of the conversations; there are train and held-out"):
        conversations("refused", "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind 'refused' have no steps; those of think, explain, hint have"):
        conversations("refused", false_steps=True)


def test_the_template_writes_turns_as_gemma_does(tokenizer):
    messages = [
        {"role": "system", "content": "No ."},
        {"role": "user", "content": " What is it ? "},
        {"role": "assistant", "content": "Sure ."},
        {"role": "user", "content": "Tell me ."},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<bos><start_of_turn>user\nNo .\n\nWhat is it ?<end_of_turn>\n<start_of_turn>model\nSure .<end_of_turn>\n"
        "<start_of_turn>user\nTell me .<end_of_turn>\n<start_of_turn>model\n"
    )
    ids = tokenizer.apply_chat_template(messages[1:2], add_generation_prompt=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[:4]) == ["<bos>", "<start_of_turn>", "user", "\n"]
    assert tokenizer.convert_ids_to_tokens(ids[-5:]) == ["<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"]
    with pytest.raises(Exception, match="roles must alternate"):
        tokenizer.apply_chat_template([messages[2]], tokenize=False)
