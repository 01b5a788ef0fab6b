"""Progress bars with rate and time left, on standard error; silent when asked or not on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Shorter work is done before a bar could be read.
_WORTH_SHOWING = 64


@contextmanager
def row_progress(total: int, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(rows)``; the bar is gone when the block ends.

    Args:
        total: rows to compute.
        show: None shows it on a terminal only.
    """
    if show is None:
        show = sys.stderr.isatty() and total >= _WORTH_SHOWING
    if not show:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} rows/s")

    columns = (TextColumn("tracing"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tracing", total=total)
        yield lambda rows: bar.advance(task, rows)


@contextmanager
def corpus_progress(total: int, show: bool | None = None) -> Iterator[Callable[[int, int, str], None]]:
    """Yields ``at(bytes read, tokens run, what is being done)``; the bar is gone when the block ends.

    Args:
        total: bytes of the corpus.
        show: None shows it on a terminal only.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda read, tokens, doing: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[tokens]:,} tokens, {task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading the corpus", total=max(total, 1), tokens=0, rate=0.0)
        first: list[tuple[float, int]] = []  # when the first batch was done: a resumed run does not count what was read

        def at(read: int, tokens: int, doing: str) -> None:
            now = time.monotonic()
            first[:] = first or [(now, tokens)]
            began, before = first[0]
            rate = (tokens - before) / (now - began) if now > began and tokens > before else 0.0
            if doing != "reading the corpus":
                rate = bar.tasks[0].fields["rate"]
            bar.update(task, completed=read, description=doing, tokens=tokens, rate=rate)

        yield at
