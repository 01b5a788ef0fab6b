"""What a model is asked, and what is made of its answers.

Instructions are in the system message alone, from files in `prompts/` or one of the user's. All that comes from a corpus is in
the user message, as JSON between two marker lines: line breaks are escaped, so that no text can make a line of its own, and
the marker holds a digest of the data, so that no text can hold it. Answers are data too: a label is one short line of printable
characters, a judgement an array of the right length; anything else is no answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from crosstrace.tracer.labels.excerpts import Excerpt
from crosstrace.tracer.labels.scoring import Marked

LONGEST_LABEL = 80
_OPEN, _CLOSE = "«", "»"
_NAMES = ("label", "detection", "fuzzing")


def read_prompt_file(name: str, given: Path | None = None) -> str:
    """Return the instructions for a task.

    Args:
        name: `label`, `detection` or `fuzzing`.
        given: A file to use in place of the one that comes with the package.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is empty or not text.
    """
    assert name in _NAMES
    path = given if given is not None else Path(str(files("crosstrace.tracer.labels"))) / "prompts" / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"{path}: the prompt is empty")
    return text.strip()


def delimited(data: Mapping[str, Any]) -> str:
    """Return data as JSON between two marker lines that the data cannot hold."""
    written = json.dumps(data, ensure_ascii=False, indent=1)
    # JSON leaves some line breaks as they are (U+2028), and characters that turn the direction of a text.
    text = "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in written)
    marker = f"data-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    assert marker not in text
    return f"<{marker}>\n{text}\n</{marker}>"


def label_message(
    excerpts: Sequence[Excerpt],
    promoted: Sequence[str],
    suppressed: Sequence[str],
    fed_by: Sequence[str] = (),
    feeds: Sequence[str] = (),
) -> str:
    """Return the user message that asks for a label.

    Args:
        excerpts: Where the feature is active, strongest first.
        promoted: Tokens that it promotes.
        suppressed: Tokens that it suppresses.
        fed_by: Names of features that feed it.
        feeds: Names of features that it feeds.
    """
    most = max((max(excerpt.activations) for excerpt in excerpts), default=1.0)
    data: dict[str, Any] = {"examples": [_with_strengths(excerpt, most) for excerpt in excerpts]}
    for name, values in (("promotes", promoted), ("suppresses", suppressed), ("fed_by", fed_by), ("feeds", feeds)):
        if values:
            data[name] = list(values)
    return delimited(data)


def detection_message(label: str, excerpts: Sequence[Excerpt]) -> str:
    """Return the user message that asks in which excerpts a feature with a label is active."""
    return delimited({"label": label, "texts": [_joined(excerpt.tokens) for excerpt in excerpts]})


def fuzzing_message(label: str, items: Sequence[Marked]) -> str:
    """Return the user message that asks in which excerpts the marks are right."""
    texts = []
    for item in items:
        tokens = [
            f"{_OPEN}{_plain(token)}{_CLOSE}" if marked else _plain(token)
            for token, marked in zip(item.tokens, item.marked, strict=True)
        ]
        texts.append(_joined(tokens))
    return delimited({"label": label, "texts": texts})


def parse_label(answer: str) -> str | None:
    """Return the label in an answer: of a JSON object, or an answer that is one short line; None if it is nonsense."""
    text = _without_thoughts(answer)
    if found := re.search(r"\{.*?\}", text, re.DOTALL):
        try:
            given = json.loads(found[0])
            text = given.get("label", "") if isinstance(given, dict) else ""
        except ValueError:
            return None
        if not isinstance(text, str):
            return None
    text = text.strip().strip("`\"'").strip()
    if not text or len(text) > LONGEST_LABEL or not text.isprintable() or not re.search(r"\w", text):
        return None
    return " ".join(text.removeprefix("~").split()) or None


def parse_judgements(answer: str, count: int) -> list[bool] | None:
    """Return the judgements in an answer, or None if it is not an array of so many ones and zeros."""
    for found in reversed(re.findall(r"\[[^\[\]]*\]", _without_thoughts(answer))):
        try:
            given = json.loads(found)
        except ValueError:
            continue
        if len(given) == count and all(value in (0, 1) and not isinstance(value, str) for value in given):
            return [bool(value) for value in given]
    return None


def _without_thoughts(answer: str) -> str:
    """An answer without what a model thought aloud before it."""
    return re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL).strip()


def _with_strengths(excerpt: Excerpt, most: float) -> str:
    tokens = [
        f"{_OPEN}{_plain(token)}{_CLOSE}{max(1, round(10 * value / most))}" if value > 0 else _plain(token)
        for token, value in zip(excerpt.tokens, excerpt.activations, strict=True)
    ]
    return _joined(tokens)


def _joined(tokens: Sequence[str]) -> str:
    """Tokens as one text; those of a tokenizer of whole words do not hold the blanks between them."""
    bare = [token.strip(_OPEN + _CLOSE + "0123456789") for token in tokens]
    words = len(tokens) > 1 and not any(token[:1].isspace() or token[-1:].isspace() for token in bare)
    return (" " if words else "").join(tokens)


def _plain(token: str) -> str:
    """A token without the characters that mark others."""
    return token.replace(_OPEN, "<").replace(_CLOSE, ">")
