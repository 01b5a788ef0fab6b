"""Turns of a conversation found again in a prompt that a chat template wrote.

What the template writes around a message is learnt by rendering one, so nothing here knows any model's tokens.
"""

from __future__ import annotations

from typing import Any

from crosstrace.replacement_model.conversations import ROLES, Message, turn_marks


def without_bos(prompt: str, tokenizer: Any) -> str:
    """Return a prompt without the `<bos>` in front, which a model puts there itself."""
    bos = getattr(tokenizer, "bos_token", None)
    return prompt.removeprefix(bos) if bos else prompt


def turns_in(prompt: str, tokenizer: Any) -> list[Message] | None:
    """Return the messages of a prompt that a chat template wrote; None if it wrote none of it.

    A last turn that is empty is where the assistant is to speak.

    Args:
        prompt: The text, with or without `<bos>`.
        tokenizer: The tokenizer of `transformers`, or None.

    Example:
        >>> turns_in("<start_of_turn>user\\nHi<end_of_turn>\\n<start_of_turn>model\\n", tokenizer)
        [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': ''}]
    """
    marks = turn_marks(tokenizer)
    text = without_bos(prompt, tokenizer)
    return _turns(text, marks, list(text)) or _turns_by_token(text, marks, tokenizer)


def _turns_by_token(text: str, marks: dict[str, tuple[str, str]], tokenizer: Any) -> list[Message] | None:
    """Find turns where a tokenizer reads a text as it reads the template's, though it is spaced otherwise."""
    if not marks or not tokenizer.is_fast:
        return None

    def tokens(part: str) -> str:
        return "".join(map(_sign, tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]))

    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # As signs of a text of their own, tokens can be looked for in the same way.
    signs = "".join(map(_sign, read["input_ids"]))
    signed = {role: (tokens(before), tokens(after)) for role, (before, after) in marks.items()}
    offsets = list(read["offset_mapping"])
    return _turns(signs, signed, [text[start:stop] for start, stop in offsets], text, offsets)


def _sign(token: int) -> str:
    return chr(token + 0x10000)


def _turns(
    signs: str,
    marks: dict[str, tuple[str, str]],
    parts: list[str],
    text: str | None = None,
    offsets: list[tuple[int, int]] | None = None,
) -> list[Message] | None:
    """Find turns in a row of signs.

    Args:
        signs: The text, or a sign for each of its tokens.
        marks: What stands before and after a turn of each role, in the same signs.
        parts: What each sign stands for.
        text: The text, where signs are tokens.
        offsets: Where in it each token stands.
    """
    found: list[tuple[int, str]] = []
    for role in ROLES:
        opening = marks.get(role, ("", ""))[0]
        place = signs.find(opening) if opening else -1
        while place >= 0:
            found.append((place, role))
            place = signs.find(opening, place + len(opening))
    if not found:
        return None
    found.sort()
    messages: list[Message] = []
    for number, (place, role) in enumerate(found):
        opening, closing = marks[role]
        start, stop = place + len(opening), found[number + 1][0] if number + 1 < len(found) else len(signs)
        for ending in (closing, closing.rstrip()):
            if ending and signs[start:stop].endswith(ending):
                stop -= len(ending)
                break
        content = "".join(parts[start:stop])
        if text is not None and offsets is not None and start < stop:
            content = text[offsets[start][0] : offsets[stop - 1][1]]
        messages.append({"role": role, "content": content})
    return messages
