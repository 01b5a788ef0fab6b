"""Prompts: what may be one, what is said about it, and the texts of its tokens."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from cases import load_case
from small_tokenizer import TOKENS, id_of, write_tokenizer

from crosstrace.replacement_model import ReplacementModel, prompts
from crosstrace.replacement_model.interventions.running import intervene_batch

HEADER = [id_of(token) for token in ("<bos>", "<start_of_turn>", "user", "\n")]


def load(folder, chat: bool) -> ReplacementModel:
    case = load_case("clt_affine")
    copy = shutil.copytree(case.model, folder / "model")
    write_tokenizer(copy, chat)
    return ReplacementModel.from_pretrained(copy, case.transcoders, device="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> ReplacementModel:
    return load(tmp_path_factory.mktemp("base"), chat=False)


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> ReplacementModel:
    return load(tmp_path_factory.mktemp("chat"), chat=True)


IDS = [2, 10, 12]


@pytest.mark.parametrize(
    "prompt",
    [
        IDS,
        tuple(IDS),
        [IDS],
        torch.tensor(IDS),
        torch.tensor([IDS]),
        torch.tensor(IDS, dtype=torch.int32),
        np.array(IDS),
        np.array([IDS], dtype=np.uint16),
        {"input_ids": IDS},
        {"input_ids": [IDS], "attention_mask": [[1, 1, 1]]},
    ],
    ids=lambda prompt: f"{type(prompt).__name__}",
)
def test_one_prompt_in_every_shape(base, prompt):
    assert base.tokenize(prompt).tolist() == IDS


def test_what_a_chat_template_returns_is_a_prompt(chat):
    messages = [{"role": "user", "content": "Austin"}]
    wanted = [*HEADER, id_of("Austin"), id_of("<end_of_turn>"), id_of("\n")]
    for options in ({"return_dict": True}, {"return_dict": True, "return_tensors": "pt"}, {"return_dict": False}):
        given = chat.tokenizer.apply_chat_template(messages, tokenize=True, **options)
        assert chat.tokenize(given).tolist() == wanted
    assert chat.tokenize(chat.tokenizer("<bos>Austin", add_special_tokens=False)).tolist() == [2, id_of("Austin")]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([IDS, IDS], "a batch of 2 prompts: token ids must be a flat list or 1-D tensor of integers, of one prompt"),
        ([IDS, [2]], "a batch of 2 prompts"),
        (torch.tensor([IDS, IDS, IDS]), "a batch of 3 prompts"),
        ({"input_ids": [IDS, IDS]}, "a batch of 2 prompts"),
        ({"input_ids": [IDS], "attention_mask": [[0, 1, 1]]}, "the prompt is padded: its attention_mask holds 0"),
        ({"ids": IDS}, "the prompt has no 'input_ids'; its keys are 'ids'"),
        (["Austin"], "token ids must be a flat list or 1-D tensor of integers"),
        ([2, 1.5], "of integers, not torch.float64"),
        ([True, False], "of integers, not torch.bool"),
        (None, "of integers, or a text; not NoneType"),
        ([[]], "the prompt is empty"),
    ],
    ids=str,
)
def test_what_is_not_one_prompt_is_refused_in_one_line(base, prompt, message):
    with pytest.raises(ValueError, match=message) as caught:
        base.tokenize(prompt)
    assert "\n" not in str(caught.value)


def test_line_breaks_at_the_end_are_tokens(base):
    assert base.tokenize("Austin\n").tolist() == [2, id_of("Austin"), id_of("\n")]
    assert base.tokenize("Austin\r\n").tolist() == [2, id_of("Austin"), id_of("<0x0D>"), id_of("\n")]


def test_every_token_has_a_text_of_its_own(base):
    strings = base.token_strings(torch.arange(len(TOKENS) + 1))
    assert len(set(strings)) == len(strings)
    assert strings[id_of("<0x41>")] == "<0x41>"
    assert strings[id_of("A")] == "A"
    assert strings[id_of("<0xE2>")] == "<0xE2>"  # a third of a character
    assert strings[id_of("\n")] == "\n"
    assert strings[id_of("▁")] == " "
    assert strings[-1] == f"<{len(TOKENS)}>"  # an id without a token


@pytest.mark.parametrize(
    ("prompt", "notes"),
    [
        ("Austin", []),
        ("<bos>Austin", []),
        ("<bos><start_of_turn>user\nAustin<end_of_turn>\n", []),
        ("<bos><bos>Austin", ["<bos> stands at position 1 too; the model expects it once, at the beginning"]),
        ([2, 2, 11, 2], ["<bos> stands at positions 1, 3 too; the model expects it once, at the beginning"]),
        ("<start_of_turn><start_of_turn>user\n", ["<start_of_turn> stands twice in a row, at position 2"]),
        ("Austin<eos>Austin", ["<eos> at position 2 is read as the special token (eos)"]),
        (
            "<Start_of_turn>Austin",
            ["'<Start_of_turn>' in the prompt is read as text; the special token is <start_of_turn>"],
        ),
        (
            "<|start_of_turn|>",
            ["'<|start_of_turn|>' in the prompt is read as text; the special token is <start_of_turn>"],
        ),
        ("<b>Austin</b>", []),
        ("\ufeffAustin", ["the prompt begins with a byte order mark (U+FEFF), which is read as part of it"]),
    ],
    ids=str,
)
def test_notes(base, prompt, notes):
    assert base.prompt_notes(prompt) == notes


@pytest.mark.parametrize(("text", "what"), [("a\\nb\\nc", "\\n"), ("a\\tb", "\\t"), ("a\\r\\nb", "\\r\\n")])
def test_an_escape_that_stays_two_characters_is_said_once(base, text, what):
    (note,) = base.prompt_notes(text)
    assert note.startswith(f"{what} in the prompt is read as written, a backslash and a letter")
    assert base.prompt_notes("a\nb") == base.prompt_notes("a\\\\nb") == []


def test_the_header_is_excluded_only_where_the_prompt_has_it(chat, base):
    question = [*HEADER, id_of("Austin"), id_of(" Paris")]
    assert chat.local(question).description.excluded_first == 4
    for other in ("Austin Paris", question[:3], question[1:], [2, *question]):
        assert chat.local(other).description.excluded_first == 1
    assert base.local(question).description.excluded_first == 1  # no template, no header
    assert chat.excluding(2).local(question).description.excluded_first == 2


def test_prompts_that_exclude_different_numbers_run_side_by_side(chat):
    question, plain = [*HEADER, id_of("Austin"), id_of(" Paris")], [2, *[id_of("Austin"), id_of(" Paris")] * 2]
    together = intervene_batch(chat, [(question, []), (plain, [])])
    for prompt, outcome in zip((question, plain), together, strict=True):
        alone = chat.intervene(prompt, [])
        assert torch.allclose(outcome.logits_v, alone.logits_v, atol=1e-4)


def test_generation_keeps_what_its_prompt_excludes(chat):
    """The first token may complete the header; positions that carried features go on doing so."""
    begun = HEADER[:3]
    whole = chat.generate(begun, max_new_tokens=2, return_activations=True)
    assert int(whole.activations[0].positions.min()) == 1


def test_single_tokens_and_their_variants(base):
    assert prompts.single_token("\n", base.tokenizer) == id_of("\n")
    assert prompts.single_token("<0x0A>", base.tokenizer) == id_of("<0x0A>")
    assert prompts.single_token("Sacramento", base.tokenizer) is None
    assert prompts.variants("Sacramento", base.tokenizer) == {" Sacramento": id_of(" Sacramento")}
    assert prompts.variants("Austin", base.tokenizer) == {" Austin": id_of(" Austin")}
    assert prompts.variants("austin", base.tokenizer) == {" Austin": id_of(" Austin"), "Austin": id_of("Austin")}
