"""The comparison of two graphs in the terminal."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.text import Text

from crosstrace.graphs.analysis.comparison import LISTS, TITLES, ComparedFeature, GraphComparison, numbers_of
from crosstrace.graphs.numbers import probability
from crosstrace.graphs.text import visible
from crosstrace.tracer.terminal.tables import (
    add_feature_columns,
    add_numbers,
    add_row,
    add_words,
    at,
    coloured,
    explain_guesses,
    feature_cells,
    is_narrow,
    plain_table,
)


def show_comparison(comparison: GraphComparison, top: int = 10, console: Console | None = None) -> None:
    """Print a comparison.

    Args:
        comparison: Two graphs, compared.
        top: How many features of each kind to list.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    for part in comparison_tables(comparison, top, console):
        console.print(part)


def comparison_tables(comparison: GraphComparison, top: int, console: Console) -> list[RenderableType]:
    """Return the prompts with their first targets, how many features are of each kind, and a table of each kind."""
    parts: list[RenderableType] = []
    sides = zip("AB", comparison.prompts, comparison.targets, comparison.target_names, strict=True)
    for name, prompt, targets, shown in sides:
        # A contrast or a feature has a weight, which is no probability.
        answers = ", ".join(
            target if value is None else f"{target} ({probability(value)})"
            for target, (_, value) in zip(shown[:3], targets, strict=False)
        )
        parts.append(Text.assemble((f"{name}  ", "bold"), visible(prompt), ("  →  ", "dim"), answers))
    parts.append(Text(f"\n{comparison.summary}\n"))
    for title, name in zip(TITLES, LISTS, strict=True):
        items = getattr(comparison, name)
        if items and top:
            parts.append(_table(f"{title} (of {len(items):,})", items[:top], console))
    return parts


def _table(title: str, items: list[ComparedFeature], console: Console) -> RenderableType:
    table = plain_table(title)
    add_feature_columns(table, console)
    if any(item.elsewhere for item in items):
        missing = "B" if items[0].b is None else "A"
        add_words(table, f"fires in {missing} at")
    add_numbers(table, *(("A", "B") if is_narrow(console) else ("influence\nin A", "in B")), "change")
    for item in items:
        places = [str(side.position) for side in (item.a, item.b) if side is not None]
        place = at(item.place, " / ".join(dict.fromkeys(places)))
        elsewhere = [_positions(item.elsewhere)] if any(one.elsewhere for one in items) else []
        before, after, change = numbers_of(item)
        name = f"L{item.layer}/{item.feature}"
        cells = feature_cells(console, item.label, name, place)
        add_row(table, *cells, *elsewhere, before, after, coloured(change, item.change or 0.0))
    explain_guesses(table, (item.label for item in items))
    return table


def _positions(positions: tuple[int, ...], most: int = 3) -> str:
    more = f" and {len(positions) - most} more" if len(positions) > most else ""
    return ", ".join(map(str, positions[:most])) + more
