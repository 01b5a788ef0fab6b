"""Docstrings as the house writes them, brought to what the API reference's parser knows."""

from __future__ import annotations

import re
from typing import Any

import griffe

# `first, second: what both are`, with the lines that go on below it.
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)


class DocstringSections(griffe.Extension):
    """Reads `Example:` as a section of examples, and an entry for several names as one entry for each."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring before it is parsed."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _SHARED.sub(_split, text)


def _split(match: re.Match[str]) -> str:
    indent, names, said = match.groups()
    return "\n".join(f"{indent}{name}: {said}" for name in names.split(", "))
