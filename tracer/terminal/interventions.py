"""A prompt before and after interventions, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.numbers import count, probability, signed
from crosstrace.graphs.text import distinct, visible
from crosstrace.tracer.interventions.before_after import AnswerToken, BeforeAfter, TokenChange
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, at, coloured, is_narrow, plain_table

CHANGE = "Δ log p"
"""The heading of the column that holds changes: they are not values."""


def show_before_after(result: BeforeAfter, console: Console | None = None) -> None:
    """Print the top tokens before and after side by side, and what was generated.

    Args:
        result: A prompt before and after interventions.
        console: Where to print; None for standard output.
    """
    subtitle = Text(f"{result.freeze}, errors {result.errors}", style="dim")
    heading = Panel(Text(visible(result.prompt), style="bold"), subtitle=subtitle, box=box.ROUNDED)
    done = Text()
    for line, found in zip(result.interventions, result.found, strict=True):
        done.append(f"· {visible(line)}").append(f"  {visible(found)}\n" if found else "\n", style="dim")
    if result.became_active or result.became_inactive:
        flips = f"{count(result.became_active, 'other feature')} became active, {result.became_inactive:,} inactive"
        done.append(f"  {flips}, by what reached them\n", style="dim")
    console = console or Console()
    tables = [_side_by_side(result)]
    without_limit = console.options.update(width=10 * console.width)
    if is_narrow(console) or console.measure(tables[0], options=without_limit).maximum > console.width:
        tables = _stacked(result)  # rather than words broken in the middle
    legend = Text(f"{CHANGE}: change of the log-probability, in nats; -0.69 halves the probability", style="dim")
    parts: list[RenderableType] = [heading, done, *tables, legend]
    if result.answer:
        parts.append(_answer(result.answer))
    if result.generated_before is not None:
        for name, text in (("before", result.generated_before), ("after", result.generated_after or "")):
            parts.append(Text.assemble((f"{name:>7}  ", "bold"), visible(text) or "(ends at once)"))
    console.print(Group(*parts))


def _answer(answer: Sequence[AnswerToken]) -> Table:
    table = plain_table("Answer")
    add_words(table, "token", style="bold")
    add_numbers(table, "log p\nbefore", "log p\nafter", CHANGE)
    total = AnswerToken("all", -1, sum(one.before for one in answer), sum(one.after for one in answer))
    for one in (*answer, total):
        name = "all of it" if one is total else at(one.string, one.position)
        change = one.after - one.before
        add_row(table, name, signed(one.before), signed(one.after), coloured(signed(change), change))
    return table


def _side_by_side(result: BeforeAfter) -> Table:
    names = _names(result)
    table = plain_table("")
    _add_columns(table, "before")
    table.add_column("│", style="dim", no_wrap=True)
    _add_columns(table, "after")
    for before, after in zip(result.before, result.after, strict=True):
        table.add_row(*_cells(before, names), "│", *_cells(after, names))
    return table


def _stacked(result: BeforeAfter) -> list[Table]:
    names, tables = _names(result), []
    for side, changes in (("before", result.before), ("after", result.after)):
        table = plain_table("")
        _add_columns(table, side)
        for change in changes:
            table.add_row(*_cells(change, names))
        tables.append(table)
    return tables


def _add_columns(table: Table, side: str) -> None:
    add_words(table, f"top {side}", style="bold")
    add_numbers(table, "before", "after", CHANGE)


def _names(result: BeforeAfter) -> dict[int, str]:
    """Return what to show for each token, so that no two of them are shown alike."""
    strings = {change.token: change.string for change in (*result.before, *result.after)}
    return dict(zip(strings, distinct(list(strings.values()), list(strings)), strict=True))


def _cells(change: TokenChange, names: dict[int, str]) -> list[Text]:
    """Return a token, its probability before and after, and the change of its log-probability."""
    difference = change.log_probability_change
    return [
        Text(names[change.token]),
        Text(probability(change.before)),
        Text(probability(change.after)),
        coloured(signed(difference), difference),
    ]
