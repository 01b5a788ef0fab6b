"""Tables that stay whole in a narrow terminal: words wrap or are cut with an ellipsis, numbers are never cut."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.cards.labels import GUESS_LEGEND, is_automatic, is_weak_guess
from crosstrace.graphs.text import short

NARROW = 72
"""Terminals with fewer columns get tables with fewer columns: words that stand side by side stand below one another."""
_TOKEN_CELLS = 16
_GAP = 3


def plain_table(title: str) -> Table:
    """Return an empty table with a title."""
    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def add_words(table: Table, name: str = "", style: str = "", min_width: int | None = None) -> None:
    """Add a column of words, which wrap where there is no room."""
    table.add_column(Text(name), style=style, min_width=min_width, overflow="fold")


def add_numbers(table: Table, *names: str) -> None:
    """Add columns of numbers, which are never wrapped and never cut; a name may hold line breaks."""
    for name in names:
        table.add_column(Text(name, justify="right"), justify="right", no_wrap=True)


def add_row(table: Table, *cells: str | Text) -> None:
    """Add a row of data, in which square brackets are text and not markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def is_narrow(console: Console) -> bool:
    """Whether a terminal has little room."""
    return console.width < NARROW


def fitted(text: str, cells: int) -> str:
    """Cut one line of text to a number of terminal cells, of which a Chinese character takes two.

    Example:
        >>> fitted("中文字符", 5), fitted("Dallas", 6)
        ('中文…', 'Dallas')
    """
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1).rstrip() + "…"


def at(token: str, position: int | str, cells: int = _TOKEN_CELLS) -> str:
    """Return a token and its position, of which the position is never cut.

    Example:
        >>> at(" Dallas", 6)
        'Dallas (6)'
    """
    return f"{fitted(short(token), cells)} ({position})"


def add_feature_columns(table: Table, console: Console) -> None:
    """Add the columns of `feature_cells`."""
    if is_narrow(console):
        add_words(table, "feature")
        return
    add_words(table, "label")
    table.add_column("feature", style="dim", no_wrap=True)
    add_words(table, "at")


def feature_cells(console: Console, label: str, name: str, place: str) -> list[Text]:
    """Return a feature's label, its name such as `L3/417`, and where it is: in three cells, or below one another in one."""
    # Given labels are bold, automatic ones and guesses are not.
    shown = Text(short(label, 32) if label.strip() else "", style="" if is_automatic(label) else "bold")
    if is_narrow(console):
        lines = [shown] if shown else []
        return [Text("\n").join([*lines, Text(name, style="dim"), Text(place)])]
    return [shown, Text(name), Text(place)]


def beside(title: str, pieces: Iterable[Text], width: int) -> Table:
    """Return a title and, beside it, pieces with gaps between them; none is broken where a line ends unless it is longer.

    Args:
        title: What stands at the left, of the first line alone.
        pieces: What stands at the right, one after the other.
        width: Terminal cells for both.
    """
    room = width - cell_len(title)
    text, used = Text(), 0
    for piece in pieces:
        gap = _GAP if used else 0
        if gap and used + gap + piece.cell_len > room:
            text.append("\n")
            used = gap = 0
        text.append(" " * gap).append_text(piece)
        used += gap + piece.cell_len
    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(title, style="dim"), text)
    return table


def explain_guesses(table: Table, labels: Iterable[str]) -> None:
    """Say below a table what weak guesses are, if there are some among the labels that it shows."""
    if any(map(is_weak_guess, labels)):
        table.caption, table.caption_justify, table.caption_style = Text(f"{GUESS_LEGEND}\n"), "left", "dim"


def coloured(text: str, value: float) -> Text:
    """Return a signed number in the colour of its sign."""
    return Text(text, style="cyan" if value >= 0 else "red")
