"""A tokenizer with what Gemma's has and word lists have not: blanks and line breaks in tokens, byte tokens, chat tokens."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
WORDS = ["user", "model", "\n", "\n\n", " Austin", "Austin", " Paris", " Sacramento", "\\n"]
BYTES = ["<0x0A>", "<0x0D>", "<0x41>", "<0xE2>", "<0x82>", "<0xAC>"]
LETTERS = ["▁", "\\", *"ABSPacimnorstu"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] }}"
    "<end_of_turn>\n{% endfor %}"
)
TOKENS = [*SPECIAL, *WORDS, *BYTES, *LETTERS]


def id_of(token: str) -> int:
    """The id of a token by its name in the vocabulary."""
    return TOKENS.index(token)


def write_tokenizer(folder: Path, chat: bool = False) -> None:
    """Write the tokenizer in place of a model's own."""
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in WORDS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    if chat:
        config["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
