"""How objects show themselves in a notebook: small tables, and for a graph what the package registers for it.

A graph shows its interactive page, but pages are made from graphs: `graph.py` must not import them. So it asks here, and
`crosstrace/graphs/__init__.py`, which knows both, says what to make. Every text is escaped: nothing in a graph, and no
token of a prompt, can act as markup.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from crosstrace.graphs.numbers import plain
from crosstrace.graphs.text import visible

_makers: dict[str, Callable[[Any], str]] = {}

_CELL = "padding:2px 10px 2px 0;text-align:{};vertical-align:top"
_NOTE = "opacity:.65;margin:4px 0"


def register_html(class_name: str, make: Callable[[Any], str]) -> None:
    """Say what makes the HTML of a class's objects.

    Args:
        class_name: The name of the class.
        make: Given an object, returns its HTML.
    """
    _makers[class_name] = make


def as_html(value: object) -> str:
    """Return the HTML that was registered for an object's class, otherwise its `repr`, escaped."""
    for base in type(value).__mro__:
        if base.__name__ in _makers:
            return _makers[base.__name__](value)
    return f"<pre>{text(repr(value))}</pre>"


def text(value: object) -> str:
    """Return a value as HTML text; control characters and direction marks become visible signs."""
    return html.escape(visible(str(value)))


def note(words: str) -> str:
    """Return a paragraph in a quieter colour."""
    return f'<p style="{_NOTE}">{text(words)}</p>'


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table.

    Args:
        title: Stands above it; "" for none.
        columns: Their names.
        rows: Their cells; numbers are aligned to the right.

    Example:
        >>> table("", ["label"], [["<b>"]]).count("&lt;b&gt;")
        1
    """
    head = "".join(f'<th style="{_CELL.format("left")}">{text(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    above = f"<p><strong>{text(title)}</strong></p>" if title else ""
    return f"{above}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    shown = plain(value) if isinstance(value, float) else str(value)
    return f'<td style="{_CELL.format("right" if is_number else "left")}">{text(shown)}</td>'
