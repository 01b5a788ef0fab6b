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


class CorpusBar:
    """How far a corpus has been read, then how many features' logits are known; this one shows nothing."""

    def reading(self, read: int, tokens: int) -> None:
        """So many bytes of the corpus have been read, so many tokens run."""

    def features(self, done: int) -> None:
        """So many more features' logits are known."""

    def begin_features(self, total: int) -> None:
        """The corpus has been read; so many features are to come."""


@contextmanager
def corpus_progress(total: int, show: bool | None = None) -> Iterator[CorpusBar]:
    """A bar for a run over a corpus; it is gone when the block ends.

    Args:
        total: bytes of the corpus.
        show: None shows it on a terminal only.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield CorpusBar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        corpus = bar.add_task("reading the corpus", total=max(total, 1), said="")

        class Shown(CorpusBar):
            first: tuple[float, int] | None = None  # a resumed run's speed does not count what was read before

            def reading(self, read: int, tokens: int) -> None:
                now = time.monotonic()
                self.first = self.first or (now, tokens)
                began, before = self.first
                rate = f", {(tokens - before) / (now - began):,.0f} tokens/s" if tokens > before else ""
                bar.update(corpus, completed=read, said=f"{tokens:,} tokens{rate}")

            def begin_features(self, total: int) -> None:
                bar.update(corpus, visible=False)
                self.logits = bar.add_task("promoted tokens", total=max(total, 1), said=f"of {total:,} features")

            def features(self, done: int) -> None:
                bar.advance(self.logits, done)

        yield Shown()
