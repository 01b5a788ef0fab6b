"""Global weights in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.cards.weights import WeightLink
from crosstrace.graphs.numbers import count, signed
from crosstrace.graphs.text import short, visible
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, coloured, plain_table
from crosstrace.tracer.virtual_weights.compute import FEWEST_FIRED, GlobalWeights, Key


def show_weights(weights: GlobalWeights, names: Mapping[Key, str], console: Console | None = None) -> None:
    """Print the strongest inputs and outputs of features.

    Args:
        weights: The links.
        names: What features are called.
        console: Where to print.
    """
    console = console or Console()
    for key in weights.features:
        title = Text.assemble((f"L{key[0]}/{key[1]} ", "bold"), (visible(names.get(key, "")), "bold cyan"))
        if weights.positions:
            title.append(f"  active at {weights.fired[key[0]][key[1]]:,} of {weights.positions:,} positions", "dim")
        console.print(title)
        for side, links in (("inputs", weights.strongest_inputs(key)), ("outputs", weights.strongest_outputs(key))):
            if not links:
                console.print(Text(f"{side}: none", "bold"))
                continue
            console.print(
                _table(side, links, names, bool(weights.positions) and not weights.heads, bool(weights.heads))
            )
    if weights.heads:
        console.print(Text("weight: the same through a head, per unit of attention, with typical norms", "dim"))
    elif weights.positions:
        console.print(
            Text(
                "weight: what a unit of the earlier feature adds to the later one, with typical norms; expected: that, as it "
                "is on average where the later one is active; together: positions where both are; interference: never "
                f"together, although each is active at {FEWEST_FIRED} positions or more",
                "dim",
            )
        )


def _table(side: str, links: Sequence[WeightLink], names: Mapping[Key, str], sampled: bool, heads: bool) -> Table:
    table = plain_table(side)
    table.add_column("feature", style="dim", no_wrap=True)
    add_words(table, "label")
    if heads:
        add_words(table, "through")
    add_numbers(table, "weight")
    if sampled:
        add_numbers(table, "expected", "together")
        add_words(table, "")
    for link in links:
        cells: list[str | Text] = [f"L{link.feature[0]}/{link.feature[1]}", short(names.get(link.feature, ""), 32)]
        if heads:
            cells.append("" if link.head is None else f"head {link.head[0]}.{link.head[1]}")
        cells.append(coloured(signed(link.weight), link.weight))
        if sampled:
            cells.append("" if link.expected is None else signed(link.expected))
            cells.append("" if link.together is None else f"{link.together:,}")
            cells.append(Text("interference", "yellow") if link.interference else "")
        add_row(table, *cells)
    return table


def said_of(weights: GlobalWeights) -> str:
    """Return one line that says how much is interference among the links of many features."""
    links = [
        link
        for key in weights.features
        for link in (*weights.strongest_inputs(key), *weights.strongest_outputs(key))
        if link.interference is not None
    ]
    if not links:
        return f"{count(len(weights.features), 'feature')}"
    never = sum(bool(link.interference) for link in links)
    return (
        f"{count(len(weights.features), 'feature')}; of {len(links):,} links whose ends are both often active, "
        f"{never / len(links):.0%} are interference"
    )
