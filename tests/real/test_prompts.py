"""Prompts as people paste them, through the real tokenizer, and every text format that has to name their tokens."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET

import networkx as nx
import pydot
import pytest
import torch
from hard_texts import HARD_TEXTS

from crosstrace.graphs import AttributionGraph, prune, write_graph
from crosstrace.graphs.text import _look, distinct, visible
from crosstrace.replacement_model.architectures import tokenizer_files
from crosstrace.tracer import trace

pytestmark = pytest.mark.real

CHAT = "<start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n"
PROMPTS = {
    "chat template": CHAT,
    "bos in the text": "<bos>" + CHAT,
    "byte tokens": "The hieroglyph 𓀀𓂀 means",
    "emoji": "I am so happy 🙂👩🏽‍🚀🇫🇷",
    "newlines": "one\n\n\ntwo\r\n\tthree\n",
    "brackets and quotes": "x = [\"]\", '<b>&amp;</b>', `\\n`, ]",
    "right to left": "שלום עולם، مرحبا بالعالم",
    "spaces": "a  b      c ",
}


@pytest.fixture(scope="module", params=PROMPTS.values(), ids=PROMPTS)
def given(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def traced(given, model) -> AttributionGraph:
    return trace(model, given, max_feature_nodes=40, max_logits=3)


def test_tokens_are_the_tokenizers_own(given, traced, tokenizer):
    expected = tokenizer(given.removeprefix("<bos>"))["input_ids"]
    assert expected[0] == tokenizer.bos_token_id
    assert traced.tokens.tolist() == expected
    assert tokenizer.decode(expected[1:]) == given.removeprefix("<bos>")
    assert traced.completeness_error() < 1e-5


def test_special_tokens_are_one_token_each(model):
    ids = model.tokenize(CHAT).tolist()
    assert ids[:4] == [2, 105, 2364, 107]
    assert [ids.count(token) for token in (105, 106, 107)] == [2, 1, 3]


def test_ids_are_the_same_prompt_as_text(model):
    ids = model.tokenize(CHAT)
    as_text, as_ids, as_list = (trace(model, p, max_feature_nodes=20, max_logits=2) for p in (CHAT, ids, ids.tolist()))
    assert torch.equal(as_text.tokens, as_ids.tokens)
    assert torch.equal(as_text.adjacency, as_ids.adjacency)
    assert torch.equal(as_ids.adjacency, as_list.adjacency)


def test_byte_tokens_are_there(model):
    ids = model.tokenize(PROMPTS["byte tokens"]).tolist()
    pieces = model.tokenizer.convert_ids_to_tokens(ids)
    assert [piece for piece in pieces if piece.startswith("<0x")][:4] == ["<0xF0>", "<0x93>", "<0x80>", "<0x80>"]


def test_every_format_survives_them(traced, tmp_path):
    pruned = prune(traced)
    kept = int(pruned.node_mask.sum())
    paths = {suffix: tmp_path / f"g.{suffix}" for suffix in ("safetensors", "json", "html", "dot", "svg", "graphml")}
    for path in paths.values():
        write_graph(pruned, path)
    again = AttributionGraph.load(paths["safetensors"])
    assert again.token_strings == traced.token_strings
    assert torch.equal(again.adjacency, pruned.adjacency)
    written = json.loads(paths["json"].read_text("utf-8"))
    assert len(written["nodes"]) == kept
    assert len(written["metadata"]["prompt_tokens"]) == len(traced.tokens)
    ET.parse(paths["svg"])
    assert len(nx.read_graphml(paths["graphml"])) == kept
    (drawn,) = pydot.graph_from_dot_data(paths["dot"].read_text("utf-8"))
    if shutil.which("dot"):
        assert drawn.create(format="svg")
    assert "</html>" in paths["html"].read_text("utf-8")


def test_all_tokens_of_the_vocabulary_are_told_apart(model):
    """As tables show them, as JSON has them, and as a reader sees them."""
    ids = list(range(model.description.vocab_size))
    assert len(ids) == 262_144
    texts = model.token_strings(torch.tensor(ids))
    assert len({text.strip() for text in texts}) < len(ids) - 40_000  # they are not without their blanks
    shown = distinct(texts, ids)
    assert len({_look(form) for form in shown}) == len(ids)
    assert all(form == visible(form) and form.strip() == form for form in shown)
    assert len(set(texts)) == len(ids)  # so that `distinct` of raw texts is the texts


def test_the_tokenizer_from_its_file_is_the_automatic_one(folder, tokenizer, monkeypatch):
    def refuse(name):
        raise AssertionError(f"AutoTokenizer for {name}")

    monkeypatch.setattr(tokenizer_files, "_auto", refuse)
    own = tokenizer_files.read_tokenizer(str(folder))
    for text in [*HARD_TEXTS, *PROMPTS.values()]:
        for special in (False, True):
            ids = own(text, add_special_tokens=special)["input_ids"]
            assert ids == tokenizer(text, add_special_tokens=special)["input_ids"], text
            assert own.decode(ids) == tokenizer.decode(ids)
    assert own.all_special_ids == tokenizer.all_special_ids
    assert own.added_tokens_decoder == tokenizer.added_tokens_decoder
    assert own.get_vocab() == tokenizer.get_vocab()
    assert (own.padding_side, own.chat_template) == (tokenizer.padding_side, tokenizer.chat_template)
