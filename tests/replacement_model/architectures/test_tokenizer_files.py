"""Tokenizers from their files are those of `AutoTokenizer`."""

import json
import shutil

import pytest
import small_tokenizer
from hard_texts import HARD_TEXTS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GemmaTokenizer

from crosstrace.replacement_model import demo
from crosstrace.replacement_model.architectures import tokenizer_files
from crosstrace.replacement_model.architectures.tokenizer_files import read_tokenizer

ATTRIBUTES = (
    *("bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("all_special_ids", "chat_template", "padding_side", "truncation_side", "model_max_length", "model_input_names"),
    *("clean_up_tokenization_spaces", "added_tokens_decoder", "extra_special_tokens", "is_fast", "name_or_path"),
)


def assert_same(own, automatic):
    for name in ATTRIBUTES:
        assert getattr(own, name) == getattr(automatic, name), name
    assert own.backend_tokenizer.to_str() == automatic.backend_tokenizer.to_str()
    for text in HARD_TEXTS:
        for special in (False, True):
            given = {"add_special_tokens": special, "return_offsets_mapping": True, "verbose": False}
            found = own(text, **given)
            assert dict(found) == dict(automatic(text, **given)), text
            ids = found["input_ids"]
            assert own.decode(ids) == automatic.decode(ids)
            assert own.convert_ids_to_tokens(ids) == automatic.convert_ids_to_tokens(ids)
    if own.pad_token is not None:
        assert own(HARD_TEXTS[2:4], padding=True) == automatic(HARD_TEXTS[2:4], padding=True)


@pytest.fixture
def no_automatic(monkeypatch):
    """The automatic tokenizer is not reached."""

    def refuse(name):
        raise AssertionError(f"AutoTokenizer for {name}")

    monkeypatch.setattr(tokenizer_files, "_auto", refuse)


def write_gemma(folder, config=None, **changes):
    """Write a small tokenizer with the parts of Gemma's, some of them changed."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters += ["▁", *"abcdefghijklmnopqrstuvwxyzT", "th", "▁th", "▁the", "is"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("i", "s")]
    settings = {"fuse_unk": True, "byte_fallback": True, "unk_token": "<unk>"} | changes.pop("model", {})
    vocabulary = {token: number for number, token in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **settings))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    for name, part in changes.items():
        setattr(tokenizer, name, part)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in letters[:5]])
    tokenizer.add_tokens([AddedToken("<unused7>", normalized=False), AddedToken("\n\n", normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<start_of_turn>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    written = {"tokenizer_class": "GemmaTokenizerFast", **named, **(config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]})
    )


def test_the_demos_tokenizer(no_automatic):
    assert_same(read_tokenizer(str(demo.MODEL_DIR)), AutoTokenizer.from_pretrained(demo.MODEL_DIR))


ADDED = {
    "content": "<bos>",
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"padding_side": "right", "model_max_length": 77, "add_bos_token": False, "add_eos_token": True},
        {"bos_token": {"__type": "AddedToken", **ADDED}},
        {"additional_special_tokens": ["<start_of_turn>"], "clean_up_tokenization_spaces": True},
        {"extra_special_tokens": {"boi_token": "<start_of_turn>"}, "image_token": "<eos>"},
        {"chat_template": small_tokenizer.TEMPLATE},
    ],
    ids=["plain", "settings", "added tokens", "additional", "extra", "chat template"],
)
def test_gemmas_tokenizer(config, tmp_path, no_automatic):
    write_gemma(tmp_path, config)
    assert_same(read_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path))


def test_all_added_tokens_listed_in_the_config(tmp_path, no_automatic):
    write_gemma(tmp_path)
    added = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_added_tokens_decoder()
    listed = {str(number): token.__getstate__() for number, token in added.items()}
    write_gemma(tmp_path, {"added_tokens_decoder": listed})
    assert_same(read_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path))


def test_a_chat_template_in_a_file_of_its_own(tmp_path, no_automatic):
    write_gemma(tmp_path, {"chat_template": "{{ nothing }}"})
    (tmp_path / "chat_template.jinja").write_text(small_tokenizer.TEMPLATE)
    own = read_tokenizer(str(tmp_path))
    messages = [{"role": "user", "content": "the is"}]
    automatic = AutoTokenizer.from_pretrained(tmp_path)
    assert own.apply_chat_template(messages, tokenize=False) == automatic.apply_chat_template(messages, tokenize=False)
    assert_same(own, automatic)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": normalizers.Lowercase()},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"model": {"byte_fallback": False}},
        {"decoder": decoders.Fuse()},
    ],
    ids=["normalizer", "pre-tokenizer", "no bytes", "decoder"],
)
def test_a_file_that_gemmas_class_would_not_follow_is_left_to_it(changes, tmp_path):
    write_gemma(tmp_path, **changes)
    own = read_tokenizer(str(tmp_path))
    assert isinstance(own, GemmaTokenizer)
    assert_same(own, AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("special_tokens_map.json", {"bos_token": "<start_of_turn>"}),
        ("added_tokens.json", {"<other>": 9}),
        ("tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "split_special_tokens": True}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {}),
        ("tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "added_tokens_decoder": {"2": ADDED}}),
        ("tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "image_token": "<unused7>"}),
    ],
    ids=["special", "added", "unknown key", "another class", "no class", "fewer added tokens", "not special"],
)
def test_whatever_else_a_folder_says_is_left_to_the_automatic_tokenizer(file, content, tmp_path):
    write_gemma(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    assert tokenizer_files._from_its_file(tmp_path) is None
    assert_same(read_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path))


def test_the_other_backend_classes(tmp_path, no_automatic):
    shutil.copytree(demo.MODEL_DIR, tmp_path / "model")
    small_tokenizer.write_tokenizer(tmp_path / "model", chat=True)
    assert_same(read_tokenizer(str(tmp_path / "model")), AutoTokenizer.from_pretrained(tmp_path / "model"))
