"""A prompt before and after interventions, in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.text import short, visible
from crosstrace.tracer.interventions.before_after import BeforeAfter, TokenChange


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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for side in ("before", "after"):
        table.add_column(f"top {side}", style="bold", no_wrap=True, overflow="ellipsis")
        for name in ("before", "after", "logit"):
            table.add_column(name, justify="right", no_wrap=True)
        if side == "before":
            table.add_column("│", style="dim")
    for before, after in zip(result.before, result.after, strict=True):
        table.add_row(*_cells(before), "│", *_cells(after))
    parts: list[RenderableType] = [heading, done, table]
    if result.generated_before is not None:
        for name, text in (("before", result.generated_before), ("after", result.generated_after or "")):
            parts.append(Text.assemble((f"{name:>7}  ", "bold"), visible(text) or "(ends at once)"))
    (console or Console()).print(Group(*parts))


def _cells(change: TokenChange) -> list[Text]:
    """Return a token, its probability before and after, and the change of its centred logit."""
    style = "cyan" if change.logit_change >= 0 else "red"
    after, logit = Text(f"{change.after:.3f}", style=style), Text(f"{change.logit_change:+.2f}", style=style)
    return [Text(short(change.string)), Text(f"{change.before:.3f}"), after, logit]
