"""Labelled texts for a probe: one file of those that have a property, one of those that lack it.

A `.txt` file has one text a line; a `.jsonl` file one JSON object a line, with the text under one key and, where the file
has it, the group under another. Texts of one group are never both trained and tested on, so that paraphrases do not leak.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Example:
    """A text, with what stands beside it.

    Attributes:
        text: The text.
        group: Which other texts say the same; its own text where none is given.
        says: What the text, or an answer to it, claims; None if that is not asked for.
        place: The file and line that it is from, for messages.
    """

    text: str
    group: str
    says: bool | None = None
    place: str = ""


def read_examples(
    path: str | os.PathLike[str], text_field: str = "text", group_field: str = "group", says_field: str | None = None
) -> list[Example]:
    """Read the texts of a file; empty lines are left out.

    Args:
        path: A `.txt` or `.jsonl` file.
        text_field: The key that holds the text.
        group_field: The key that holds the group; a line without it is a group of its own.
        says_field: The key that holds what the text claims, true or false; None if that is not asked for.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has another suffix or no texts, a line is not what it should be, or `says_field` is asked of `.txt`.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: unknown suffix {path.suffix!r}; labelled texts are read from {' and '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if says_field is not None and path.suffix.lower() == ".txt":
        raise ValueError(f"{path}: a .txt file has no key {says_field!r}; give a .jsonl file")
    found = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not UTF-8 at byte {problem.start + 1}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        if path.suffix.lower() == ".txt":
            found.append(Example(line, line, None, place))
            continue
        given = _object(line, place, text_field)
        text = given[text_field]
        group = given.get(group_field, text)
        if not isinstance(group, str | int) or isinstance(group, bool):
            raise ValueError(f"{place}: {group_field!r} is {group!r}; expected a text or a number")
        found.append(Example(text, str(group), _says(given, says_field, place), place))
    if not found:
        raise ValueError(f"{path}: holds no texts")
    return found


def check_apart(positive: Iterable[Example], negative: Iterable[Example]) -> None:
    """Refuse a text that is in both files.

    Raises:
        ValueError: One is; both places are named.
    """
    places = {example.text: example.place for example in positive}
    for example in negative:
        if example.text in places:
            raise ValueError(f"{example.place}: the text is in {places[example.text]} too; a text cannot be both")


def _object(line: str, place: str, text_field: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{place}: not JSON: {' '.join(str(problem).split())}") from None
    if not isinstance(given, dict) or not isinstance(given.get(text_field), str) or not given[text_field].strip():
        raise ValueError(
            f"{place}: expected a JSON object with a text under {text_field!r}; --text-field names another key"
        )
    return given


def _says(given: dict[str, Any], says_field: str | None, place: str) -> bool | None:
    if says_field is None:
        return None
    if not isinstance(given.get(says_field), bool):
        raise ValueError(f"{place}: {says_field!r} is {given.get(says_field)!r}; expected true or false")
    return bool(given[says_field])


def group_numbers(groups: Sequence[str]) -> list[int]:
    """Return each group as a number, in the order in which they first come."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]
