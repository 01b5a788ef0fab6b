"""The comparison of two graphs in the terminal."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.text import Text

from crosstrace.graphs.analysis.comparison import ComparedFeature, GraphComparison
from crosstrace.graphs.text import short, visible
from crosstrace.tracer.terminal.graph import add_row, plain_table


def show_comparison(comparison: GraphComparison, top: int = 10, console: Console | None = None) -> None:
    """Print a comparison.

    Args:
        comparison: Two graphs, compared.
        top: How many features of each kind to list.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    for part in comparison_tables(comparison, top):
        console.print(part)


def comparison_tables(comparison: GraphComparison, top: int) -> list[RenderableType]:
    """Return the prompts with their first targets, then a table each of shared features and of those in one graph alone."""
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
