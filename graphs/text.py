"""Token strings, labels and prompts as one line of text that can be shown anywhere."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence

# Right-to-left text itself is fine; the invisible marks that reverse the text after them are not.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Letters and marks by category that nevertheless have no shape: joiners, fillers, a blank Braille pattern.
_WITHOUT_SHAPE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
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


def marked(name: str) -> str:
    """Return what is shown of a token that a chat template adds.

    Example:
        >>> marked("user")
        '‹user›'
    """
    return f"‹{name}›"


def distinct(texts: Sequence[str], ids: Sequence[int] | None = None, limit: int = 24, raw: bool = False) -> list[str]:
    """Return what to show for tokens that stand in one list, so that no two of them are shown alike.

    A token is shown as `short` shows it where that tells it from all others of the list. Where it does not, blanks and
    invisible characters are shown (`␣Austin` beside `Austin`); then every character that is not plain ASCII by its code
    (`⟨000A⟩`); and where the text is the same, the id too (`A #65`).

    Args:
        texts: The tokens' texts.
        ids: What tells tokens apart; None: their texts do.
        limit: The most characters of a token that is shown as `short` shows it; more where that tells tokens apart.
        raw: Show a token as its text, whole and unchanged, where that tells it from all others.

    Example:
        >>> distinct([" Dallas", "Austin", " Austin"])
        ['Dallas', 'Austin', '␣Austin']
        >>> distinct(["\\n", "\\n", "↵"], ids=[107, 248, 9])
        ['⟨000A⟩ #107', '⟨000A⟩ #248', '⟨21B5⟩']
    """
    tokens = list(zip(texts, [-1] * len(texts) if ids is None else ids, strict=True))
    first: Callable[[str], str] = str if raw else lambda text: short(text, limit)
    forms = (first, _with_blanks, _spelled)
    level = dict.fromkeys(tokens, 0)
    shown = {token: first(token[0]) if raw else _cleared(first(token[0]), token[0]) for token in level}
    while alike := _alike(shown, blanks=raw):
        for token in alike:
            level[token] += 1
            text, number = token
            form = forms[min(level[token], len(forms) - 1)](text)
            shown[token] = form if level[token] < len(forms) or number < 0 else f"{form} #{number}"
        if all(level[token] >= len(forms) for token in alike):
            break
    return [shown[token] for token in tokens]


def _alike(shown: dict[tuple[str, int], str], blanks: bool) -> list[tuple[str, int]]:
    """The tokens that are shown as another one is, or look the same; `blanks` says that blanks can be seen."""
    groups = defaultdict(list)
    for token, form in shown.items():
        groups[_look(form, blanks)].append(token)
    return [token for group in groups.values() if len(group) > 1 for token in group]


def _look(text: str, blanks: bool = False) -> str:
    """What a reader sees of a text: composed characters, without what has no shape and, unless kept, without blanks."""
    plain = text if text.isascii() else unicodedata.normalize("NFC", "".join(c for c in text if not _is_hidden(c)))
    return plain if blanks else " ".join(plain.split())


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or character in _WITHOUT_SHAPE or 0xFE00 <= ord(character) <= 0xFE0F


def _cleared(form: str, text: str) -> str:
    """The form, or where nothing in it can be seen, the text with its invisible characters shown."""
    return form if _look(form) else _with_blanks(text)


def _with_blanks(text: str) -> str:
    """Blanks at the ends as ␣, and every other blank and invisible character by its code."""
    core = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if core else len(text)
    after = len(text) - before - len(core)
    inner = "".join(
        f"⟨{ord(c):04X}⟩" if _is_hidden(c) or (c != " " and unicodedata.category(c) == "Zs") else _sign(c) for c in core
    )
    return ("␣" * before + inner + "␣" * after) or "∅"


def _spelled(text: str) -> str:
    """The text with every character that is not plain ASCII, or not alone a sign, by its code."""
    return "".join("␣" if c == " " else c if "!" <= c <= "~" else f"⟨{ord(c):04X}⟩" for c in text) or "∅"


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
