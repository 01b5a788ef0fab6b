"""Prompts: what may be one, and its token ids.

Letters: P positions.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Prompt = str | Sequence[int] | Tensor
"""A text, or token ids that are taken as they are."""


def check_text(prompt: str) -> None:
    """Refuse text that UTF-8 cannot encode, such as other bytes that a terminal passes on; tokenizers take none of it.

    Raises:
        ValueError: The text is not valid; one line that says where it stops being.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as problem:
        raise ValueError(f"the prompt is not valid text: character {problem.start} is not valid UTF-8") from None


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a text, with `<bos>` in front unless it starts with it."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def prompt_ids(prompt: Prompt, tokenizer: Any, model_name: str, vocab_size: int, max_positions: int) -> Tensor:
    """Return the token ids (P,) int64 of a prompt.

    Args:
        prompt: A text, which gets `<bos>` unless it starts with it, or token ids, which are taken as they are.
        tokenizer: The tokenizer of `transformers`, or None.
        model_name: The model, for messages.
        vocab_size: The number of tokens in the vocabulary.
        max_positions: The longest prompt that the model takes.

    Raises:
        ValueError: The prompt is empty or too long, ids are out of range or not integers, or a text is given without a
            tokenizer.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        check_text(prompt)
        if tokenizer is None:
            raise ValueError(f"model {model_name} has no tokenizer; give the prompt as token ids")
        tokens_p = torch.tensor(text_ids(prompt, tokenizer), dtype=torch.int64)
    else:
        tokens_p = torch.as_tensor(prompt)
        if tokens_p.numel() and (tokens_p.ndim != 1 or tokens_p.is_floating_point() or tokens_p.dtype == torch.bool):
            raise ValueError(
                "token ids must be a flat list or 1-D tensor of integers, "
                f"not {tokens_p.dtype} of shape {tuple(tokens_p.shape)}"
            )
        tokens_p = tokens_p.to(torch.int64)
    if not len(tokens_p):
        raise ValueError("the prompt is empty")
    if len(tokens_p) > max_positions:
        raise ValueError(f"the prompt has {len(tokens_p):,} tokens; model {model_name} takes at most {max_positions:,}")
    wrong = ((tokens_p < 0) | (tokens_p >= vocab_size)).nonzero()
    if len(wrong):
        position = int(wrong[0])
        raise ValueError(
            f"token id {int(tokens_p[position])} at position {position} is out of range; "
            f"the vocabulary has ids 0 to {vocab_size - 1}"
        )
    return tokens_p


def unknown_words(prompt: str, tokenizer: Any) -> list[str]:
    """Return the parts of a text that a tokenizer has no token for, each once; see `ReplacementModel.unknown_words`."""
    if tokenizer is None or tokenizer.unk_token_id is None or not tokenizer.is_fast:
        return []
    check_text(prompt)
    found = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    parts = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return list(dict.fromkeys(prompt[a:b] for token, (a, b) in parts if token == tokenizer.unk_token_id))


def close_tokens(text: str, tokenizer: Any, n: int) -> list[str]:
    """Return the tokens of a vocabulary with nearly the spelling of a text; see `ReplacementModel.close_tokens`."""
    if tokenizer is None:
        return []
    folded: dict[str, str] = {}
    for token in sorted(tokenizer.get_vocab()):
        folded.setdefault(token.casefold(), token)
    return [folded[name] for name in difflib.get_close_matches(text.strip().casefold(), folded, n=n, cutoff=0.75)]
