"""Prompts: what may be one, and its token ids.

Letters: P positions.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Prompt = str | Sequence[int] | Sequence[Sequence[int]] | Tensor | NDArray[Any] | Mapping[str, Any]
"""A text, or token ids that are taken as they are: a list, a tensor, a NumPy array, or what a tokenizer returns
(`input_ids` and `attention_mask`); a batch of one prompt is that prompt."""

# Escapes that people write in prompts, where they stay two characters.
_ESCAPES = re.compile(r"(?<!\\)(?:\\r\\n|\\[nrt])")
# What is spelled nearly like a special token: in angle brackets, with or without bars.
_BRACKETED = re.compile(r"<\|?\s*/?[A-Za-z][A-Za-z_ -]*\s*\|?>")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NOTED = 3


def check_text(prompt: str, what: str = "prompt") -> None:
    """Refuse text that UTF-8 cannot encode, such as other bytes that a terminal passes on; tokenizers take none of it.

    Raises:
        ValueError: The text is not valid; one line that says where it stops being.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as problem:
        raise ValueError(f"the {what} is not valid text: character {problem.start} is not valid UTF-8") from None


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a text, with `<bos>` in front unless it starts with it."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def prompt_ids(prompt: Prompt, tokenizer: Any, model_name: str, vocab_size: int, max_positions: int) -> Tensor:
    """Return the token ids (P,) int64 of a prompt.

    Args:
        prompt: A text, which gets `<bos>` unless it starts with it, or token ids, which are taken as they are; see
            `Prompt`.
        tokenizer: The tokenizer of `transformers`, or None.
        model_name: The model, for messages.
        vocab_size: The number of tokens in the vocabulary.
        max_positions: The longest prompt that the model takes.

    Raises:
        ValueError: The prompt is empty, too long, padded or a batch of several, ids are out of range or not integers,
            or a text is given without a tokenizer.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        check_text(prompt)
        if tokenizer is None:
            raise ValueError(f"model {model_name} has no tokenizer; give the prompt as token ids")
        tokens_p = torch.tensor(text_ids(prompt, tokenizer), dtype=torch.int64)
    else:
        tokens_p = _given_ids(prompt)
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


def _given_ids(prompt: Any) -> Tensor:
    """Token ids (P,) int64 as somebody gave them."""
    if isinstance(prompt, Mapping):
        if "input_ids" not in prompt:
            raise ValueError(f"the prompt has no 'input_ids'; its keys are {', '.join(map(repr, prompt)) or 'none'}")
        mask = prompt.get("attention_mask")
        if mask is not None and not bool(_one_prompt(mask, "attention_mask").all()):
            raise ValueError("the prompt is padded: its attention_mask holds 0; give the tokens of the prompt alone")
        prompt = prompt["input_ids"]
    return _one_prompt(prompt, "token ids")


def _one_prompt(values: Any, what: str) -> Tensor:
    """The integers (P,) of a single prompt, without the dimension of a batch."""
    wanted = "a flat list or 1-D tensor of integers"
    try:
        # Most lists are made by torch; NumPy knows more kinds, unsigned integers among them.
        numbers = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError, OverflowError):
        rows = len(values) if isinstance(values, Sequence) else 0
        if rows > 1 and all(isinstance(row, Sequence) and not isinstance(row, str) for row in values):
            raise ValueError(f"a batch of {rows} prompts: {what} must be {wanted}, of one prompt") from None
        raise ValueError(f"{what} must be {wanted}, or a text; not {type(values).__name__}") from None
    if numbers.ndim == 2 and len(numbers) == 1:
        numbers = numbers[0]
    elif numbers.ndim == 2 and len(numbers) > 1:
        raise ValueError(f"a batch of {len(numbers)} prompts: {what} must be {wanted}, of one prompt")
    if numbers.numel() and (numbers.ndim != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool):
        raise ValueError(f"{what} must be {wanted}, not {numbers.dtype} of shape {tuple(numbers.shape)}")
    return numbers.flatten().to(torch.int64).cpu()


def prompt_notes(prompt: Prompt, tokens: Sequence[int], tokenizer: Any) -> list[str]:
    """Return what a prompt holds that is probably not meant, one line each; see `ReplacementModel.prompt_notes`."""
    if tokenizer is None:
        return []
    notes = _special_token_notes(tokens, tokenizer)
    if isinstance(prompt, str):
        notes += _text_notes(prompt, tokenizer)
    return notes


def _special_token_notes(tokens: Sequence[int], tokenizer: Any) -> list[str]:
    names = special_tokens(tokenizer)
    bos = tokenizer.bos_token_id
    notes = []
    again = [position for position, token in enumerate(tokens) if position and token == bos]
    if again:
        notes.append(f"{names[bos]} stands at {_positions(again)} too; the model expects it once, at the beginning")
    doubled: dict[int, list[int]] = {}
    for position, (before, token) in enumerate(itertools.pairwise(tokens), 1):
        if token == before and token in names and token not in (bos, tokenizer.unk_token_id):
            doubled.setdefault(token, []).append(position)
    notes += [f"{names[token]} stands twice in a row, at {_positions(where)}" for token, where in doubled.items()]
    # What ends texts or pads them: a prompt does not go on after it, unless its chat template does so.
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for kind in ("eos", "pad", "mask"):
        ending = getattr(tokenizer, f"{kind}_token_id", None)
        if ending not in names or ending == bos or ending in doubled or names[ending] in template:
            continue
        where = [position for position, found in enumerate(tokens) if found == ending]
        if where and where != [len(tokens) - 1]:
            notes.append(f"{names[ending]} at {_positions(where)} is read as the special token ({kind})")
    return notes


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens of a vocabulary by id: those that a tokenizer never splits and that are no text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    names = {int(token): str(added.content) for token, added in added.items() if added.special}
    return names | {int(token): tokenizer.convert_ids_to_tokens(int(token)) for token in tokenizer.all_special_ids}


def _text_notes(text: str, tokenizer: Any) -> list[str]:
    notes = []
    if escapes := list(dict.fromkeys(_ESCAPES.findall(text))):
        what = " and ".join(escapes)
        notes.append(
            f"{what} in the prompt {'is' if len(escapes) == 1 else 'are'} read as written, a backslash and a letter; a "
            "line break or tab itself comes from standard input (-) or, in bash, from $'…'"
        )
    if text.startswith("\ufeff"):
        notes.append("the prompt begins with a byte order mark (U+FEFF), which is read as part of it")
    names = set(special_tokens(tokenizer).values())
    if tokenizer.unk_token_id is not None and not tokenizer.is_fast:
        return notes
    meant = {_letters(name): name for name in sorted(names) if _BRACKETED.fullmatch(name)}
    close = {
        found: meant[_letters(found)]
        for found in dict.fromkeys(_BRACKETED.findall(text))
        if found not in names and _letters(found) in meant
    }
    for found, name in list(close.items())[:_NOTED]:
        notes.append(f"{found!r} in the prompt is read as text; the special token is {name}")
    return notes


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.casefold())


def _positions(where: Sequence[int]) -> str:
    more = f" and {len(where) - _NOTED} more" if len(where) > _NOTED else ""
    return f"position{'s' if len(where) > 1 else ''} {', '.join(map(str, where[:_NOTED]))}{more}"


def token_strings(tokens: Sequence[int], tokenizer: Any) -> list[str]:
    """Return each token as text, on its own.

    A byte that is not text by itself is written `<0x0A>`, as a byte token's name is, so that different tokens have
    different texts.

    Args:
        tokens: Token ids.
        tokenizer: The tokenizer of `transformers`; None writes every token as `<id>`.
    """
    if tokenizer is None:
        return [f"<{token}>" for token in tokens]
    strings = []
    for token, name in zip(tokens, tokenizer.convert_ids_to_tokens(list(tokens)), strict=True):
        text = tokenizer.decode([token])
        is_byte = name is not None and _BYTE.fullmatch(name) is not None
        # Pieces of a character are decoded to U+FFFD, whichever they are; ids without a token to nothing.
        lost = "\ufffd" in text and name is not None and "\ufffd" not in name
        strings.append(name if is_byte or lost else text if text or name else f"<{token}>")
    return strings


def single_token(text: str, tokenizer: Any) -> int | None:
    """Return the id of the token that a text is as a whole; None where it is several, or none.

    Byte tokens go by their names (`<0x0A>`). A token that the tokenizer itself would never make of its text is found too.

    Args:
        text: The token's text.
        tokenizer: The tokenizer of `transformers`.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) == 1 and not (ids[0] == tokenizer.unk_token_id and text.strip() != tokenizer.unk_token):
        return int(ids[0])
    for name in (text, text.replace(" ", "▁")):
        token = tokenizer.convert_tokens_to_ids(name)
        if token is not None and token != tokenizer.unk_token_id and token_strings([token], tokenizer) == [text]:
            return int(token)
    return None


def variants(text: str, tokenizer: Any) -> dict[str, int]:
    """Return the tokens that differ from a text in a leading space or in case alone, by their texts.

    Args:
        text: A text, a token or not.
        tokenizer: The tokenizer of `transformers`.
    """
    word = text.strip(" ")
    if not word or _BYTE.fullmatch(word):
        return {}
    spellings = dict.fromkeys((word, word[:1].upper() + word[1:], word.lower(), word.upper()))
    found: dict[str, int] = {}
    own = single_token(text, tokenizer)
    for spelling in (space + one for one in spellings for space in (" ", "")):
        token = single_token(spelling, tokenizer)
        # Some tokenizers read a word with and without a space as the same token; its own text names it.
        if token is not None and token != own and token_strings([token], tokenizer) == [spelling]:
            found[spelling] = token
    return found


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
