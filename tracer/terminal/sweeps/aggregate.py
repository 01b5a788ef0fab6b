"""An aggregate in the terminal: what matters in most prompts, the strongest edges, how stable it is, how groups differ."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from crosstrace.graphs.aggregates.circuit import Aggregate
from crosstrace.graphs.aggregates.groups import Comparison
from crosstrace.graphs.numbers import count, plain, probability, share, signed
from crosstrace.graphs.pictures.aggregate import called, default_title
from crosstrace.graphs.text import short
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, is_narrow, plain_table

ROWS = 20
_GROUPS = 4


def show_aggregate(
    aggregate: Aggregate, comparison: Comparison | None = None, rows: int = ROWS, console: Console | None = None
) -> None:
    """Print an aggregate: nodes by their mean influence, edges by what passes along them.

    Args:
        aggregate: The aggregate.
        comparison: Groups of its prompts.
        rows: Rows of each table.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    narrow = is_narrow(console)
    console.print(Text(default_title(aggregate), style="bold"))
    nodes, edges = aggregate.circuit(aggregate.settings["min_share"], aggregate.settings["min_influence"])
    ordered = sorted(
        (aggregate.nodes[i] for i in nodes if aggregate.nodes[i].key.kind != "target"), key=lambda node: -node.influence
    )
    table = plain_table(f"The circuit's {count(len(ordered), 'node')}")
    add_words(table, "node")
    add_numbers(table, "in", "influence", *(() if narrow else ("95 %", "spread")))
    for node in ordered[:rows]:
        low, high = (share(end) for end in node.influence_interval)
        details = [] if narrow else [f"{low} to {high}", share(node.spread)]
        add_row(table, short(called(node), 60), share(node.share), share(node.influence), *details)
    console.print(table)
    table = plain_table(f"Its {count(len(edges), 'edge')}, the strongest first")
    add_words(table, "edge")
    add_numbers(table, "in", "weight", *(() if narrow else ("95 %",)), "influence")
    for edge in edges[::-1][:rows]:
        low, high = (signed(end) for end in edge.weight_interval)
        details = [] if narrow else [f"{low} to {high}"]
        ends = f"{short(called(aggregate.nodes[edge.source]), 40)} → {short(called(aggregate.nodes[edge.target]), 40)}"
        add_row(table, ends, share(edge.share), signed(edge.weight), *details, share(edge.influence))
    console.print(table)
    if (stable := aggregate.stability) is not None:
        console.print(
            f"Random halves of the prompts: influence of features correlates with {probability(stable.nodes)}, weights of "
            f"edges with {probability(stable.edges)}; {share(stable.overlap)} of the features are in both circuits.",
            highlight=False,
        )
    if comparison is not None:
        _show_comparison(aggregate, comparison, rows, console)


def _show_comparison(aggregate: Aggregate, comparison: Comparison, rows: int, console: Console) -> None:
    groups = ", ".join(
        f"{short(group, 20)} ({size:,})" for group, size in zip(comparison.groups, comparison.sizes, strict=True)
    )
    console.print()
    console.print(
        Text(
            f"By {comparison.key}: {groups}. {count(len(comparison.nodes))} of {count(comparison.tested, 'node')} differ "
            f"(false discovery rate {share(comparison.rate)})."
        )
    )
    if not comparison.nodes:
        return
    table = plain_table("What differs most")
    add_words(table, "node")
    add_numbers(table, *(short(group, 14) for group in comparison.groups[:_GROUPS]), "q")
    for one in comparison.nodes[:rows]:
        means = [share(mean) for mean in one.means[:_GROUPS]]
        add_row(table, short(called(aggregate.nodes[one.node]), 50), *means, plain(one.q))
    console.print(table)
