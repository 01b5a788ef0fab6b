"""``crosstrace compare``: two graphs of the same model side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.tracer.commands.options import (
    PAGES,
    CardsOption,
    Debug,
    OpenIt,
    Quiet,
    note,
    one_line_errors,
    open_page,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from crosstrace.graphs import GraphComparison
    from crosstrace.graphs.analysis.comparison import ComparedFeature


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A .safetensors graph.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another graph of the same model.")],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the comparison as .json, or .html: a page of both. Repeatable.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="How many features of each kind to list.")] = 10,
    cards: CardsOption = None,
    open_it: OpenIt = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two graphs: the features they share, those of only one, and what became more or less important.

    Example: crosstrace compare dallas.safetensors oakland.safetensors -o both.html --open
    """
    with one_line_errors(debug):
        for path in output or []:
            if path.suffix.lower() not in (".json", *PAGES):
                said = f"unknown suffix {path.suffix!r}" if path.suffix else "no suffix"
                raise ValueError(f"{said} in {str(path)!r}: a comparison is written as .json or .html")
        pages = [path for path in output or [] if path.suffix.lower() in PAGES]
        if open_it and not pages:
            raise ValueError("--open opens the page of a comparison: name it with -o PAGE.html")
        from crosstrace.graphs import compare as compare_graphs
        from crosstrace.graphs import read_graph, with_card_labels, write_comparison, write_comparison_html
        from crosstrace.tracer.cards.lookup import cards_of

        graph_a, graph_b = read_graph(a), read_graph(b)
        found = cards_of(graph_a, cards, note)
        graph_a, graph_b = with_card_labels(graph_a, found), with_card_labels(graph_b, found)
        comparison = compare_graphs(graph_a, graph_b)
        for path in output or []:
            if path in pages:
                write_comparison_html(graph_a, graph_b, path, cards=found)
            else:
                write_comparison(comparison, path)
        if not quiet:
            from rich.console import Console

            console = Console()
            for part in comparison_tables(comparison, top):
                console.print(part)
            for path in output or []:
                console.print(f"wrote {path}", highlight=False, markup=False)
        if open_it:
            open_page(pages[0])


def comparison_tables(comparison: GraphComparison, top: int) -> list[RenderableType]:
    """The prompts with their first targets, then a table each for features shared and of one graph alone."""
    from rich.text import Text

    from crosstrace.graphs.text import short, visible

    parts: list[RenderableType] = []
    for name, prompt, targets in zip("AB", comparison.prompts, comparison.targets, strict=True):
        # A contrast or a feature has a weight, which is no probability.
        answers = ", ".join(
            short(string) if probability is None else f"{short(string)} ({probability:.3f})"
            for string, probability in targets[:3]
        )
        parts.append(Text.assemble((f"{name}  ", "bold"), visible(prompt), ("  →  ", "dim"), answers))
    shared, only_a, only_b = comparison.shared, comparison.only_a, comparison.only_b
    parts.append(Text(f"\n{len(shared)} features shared, {len(only_a)} only in A, {len(only_b)} only in B\n"))
    for title, items in (("Changed most", shared), ("Only in A", only_a), ("Only in B", only_b)):
        if items and top:
            parts.append(_table(f"{title} (of {len(items)})", items[:top]))
    return parts


def _table(title: str, items: list[ComparedFeature]) -> RenderableType:
    from rich.text import Text

    from crosstrace.graphs.text import short
    from crosstrace.tracer.terminal.graph import add_row, plain_table

    table = plain_table(title)
    table.add_column("label", style="bold")
    table.add_column("feature", style="dim", no_wrap=True)
    table.add_column("at", no_wrap=True)
    for column in ("influence in A", "in B", "change"):
        table.add_column(column, justify="right")
    for item in items:
        places = [str(side.position) for side in (item.a, item.b) if side is not None]
        add_row(
            table,
            short(item.label, 32) if item.label else "",
            f"L{item.layer}/{item.feature}",
            f"{short(item.token)} ({' / '.join(dict.fromkeys(places))})",
            f"{item.a.influence:.1%}" if item.a else "–",
            f"{item.b.influence:.1%}" if item.b else "–",
            Text(f"{item.change:+.1%}", style="cyan" if item.change >= 0 else "red"),
        )
    return table
