"""Token strings, labels and prompts as one line of text that can be shown anywhere."""

from __future__ import annotations

import unicodedata

# Right-to-left text itself is fine; the invisible marks that reverse the text after them are not.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NAMED = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u2028": "↵", "\u2029": "↵", "\x7f": "␡"}


def visible(text: str) -> str:
    """Return text with line breaks, control characters, direction marks and lone surrogates as visible signs.

    The result is valid in XML and UTF-8; every other character, emoji and all scripts included, stays as it is.

    Example:
        >>> visible("a\\nb\\x00\\ud800")
        'a↵b␀⟨D800⟩'
    """
    return "".join(map(_sign, text))


def short(text: str, limit: int = 24) -> str:
    """Return `visible` text without surrounding blanks (unless there is nothing else), cut to `limit` characters.

    Example:
        >>> short(" Dallas"), short("  "), short("")
        ('Dallas', '␣␣', '∅')
    """
    shown = visible(text.strip(" ")) or ("␣" * len(text) if text else "∅")
    return shown if len(shown) <= limit else shown[: limit - 1].rstrip() + "…"


def _sign(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    hidden = unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTION_MARKS
    # Noncharacters (U+FFFE and the like) are not allowed in XML.
    if hidden or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
        return f"⟨{code:04X}⟩"
    return character
