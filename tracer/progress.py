"""Progress on standard error with rate and remaining time: a bar on a terminal, lines elsewhere; silent on request."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Watcher = Callable[[str, int, int], None]
"""Told what is done, how much of it, and out of how much. What it raises ends the work."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)

# Shorter work is finished before a bar could be read.
_WORTH_SHOWING = 64
# Where there is no terminal, a line is written this often; what takes less is silent there.
_LINE_SECONDS = 10.0


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell a function of the progress of rows and steps inside the block, in place of what is shown on standard error.

    Args:
        watcher: Called often, in the thread that does the work; an exception from it ends the work.

    Example:
        >>> with watched(lambda what, done, total: print(what, done, total)):
        ...     trace(model, prompt)
    """
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


@contextmanager
def row_progress(total: int, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar for the rows of a trace and yield `advance(rows)`; the bar disappears when the block ends.

    Args:
        total: Rows to compute.
        show: Whether to show the bar; None shows it on a terminal only.
    """
    if (watcher := _watcher.get()) is not None:
        done = 0

        def tell(rows: int) -> None:
            nonlocal done
            done += rows
            watcher("tracing", done, total)

        watcher("tracing", 0, total)
        yield tell
        return
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
    """Progress of a run over a corpus: first bytes read, then features whose logits are known. This one shows nothing."""

    def begin_reading(self, tokens: int) -> None:
        """Report how many tokens an earlier run has read, which do not count for the speed."""

    def reading(self, read: int, tokens: int) -> None:
        """Report how many bytes of the corpus have been read and how many tokens run so far."""

    def features(self, done: int) -> None:
        """Report how many more features' logits are known."""

    def begin_features(self, total: int) -> None:
        """Report that the corpus has been read, and how many features follow."""


class _CorpusLines(CorpusBar):
    """Progress of a run over a corpus, a line now and then: what a log file or a pipe can show."""

    def __init__(self, total: int) -> None:
        self._total, self._features, self._done = total, 0, 0
        self._began = self._said = time.monotonic()
        self._before = 0

    def begin_reading(self, tokens: int) -> None:
        self._began, self._before = time.monotonic(), tokens

    def reading(self, read: int, tokens: int) -> None:
        if passed := self._due():
            to_read = tokens * (self._total - read) / max(read, 1)
            rate = f"{(tokens - self._before) / passed:,.0f} tokens/s"
            left = _left(passed, tokens - self._before, to_read)
            _say(f"reading the corpus: {read / self._total:.0%}, {tokens:,} tokens, {rate}{left}")

    def begin_features(self, total: int) -> None:
        self._features, self._began = total, time.monotonic()

    def features(self, done: int) -> None:
        self._done += done
        if passed := self._due():
            left = _left(passed, self._done, self._features - self._done)
            _say(f"promoted tokens: {self._done:,} of {self._features:,} features{left}")

    def _due(self) -> float:
        """Seconds since this part began, if it is time for a line; otherwise 0."""
        now = time.monotonic()
        if now - self._said < _LINE_SECONDS:
            return 0.0
        self._said = now
        return now - self._began


def _left(passed: float, done: float, to_do: float) -> str:
    return f", {_minutes(passed * to_do / done)} left" if done > 0 else ""


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def corpus_progress(total: int, show: bool | None = None) -> Iterator[CorpusBar]:
    """Show a progress bar for a run over a corpus and yield it; the bar disappears when the block ends.

    Args:
        total: Bytes of the corpus.
        show: Whether to show the bar; None shows it on a terminal, and elsewhere a line now and then.
    """
    if show is None and not sys.stderr.isatty():
        yield _CorpusLines(max(total, 1))
        return
    if show is False:
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
            began, before = time.monotonic(), 0

            def begin_reading(self, tokens: int) -> None:
                self.began, self.before = time.monotonic(), tokens

            def reading(self, read: int, tokens: int) -> None:
                rate = (tokens - self.before) / max(time.monotonic() - self.began, 1e-9)
                bar.update(corpus, completed=read, said=f"{tokens:,} tokens, {rate:,.0f} tokens/s")

            def begin_features(self, total: int) -> None:
                bar.update(corpus, visible=False)
                self.logits = bar.add_task("promoted tokens", total=max(total, 1), said=f"of {total:,} features")

            def features(self, done: int) -> None:
                bar.advance(self.logits, done)

        yield Shown()


@contextmanager
def token_progress(what: str, tokens: int, cost: float, show: bool | None = None) -> Iterator[Callable[[float], None]]:
    """Show progress for work on tokens, with rate and time left, and yield `advance(cost)`.

    On a terminal it is a bar, which disappears when the block ends; elsewhere a line every few seconds.

    Args:
        what: What is done.
        tokens: The number of tokens, at most.
        cost: The cost of all of them, in any unit.
        show: Whether to show it; None: yes.
    """
    if show is False:
        yield lambda more: None
        return
    began, paid = time.monotonic(), 0.0

    def rate() -> str:
        """Tokens per second, had all that is paid for been spent on whole tokens."""
        return f"{tokens * paid / cost / max(time.monotonic() - began, 1e-9):,.0f} tokens/s"

    if not sys.stderr.isatty():
        last = began

        def line(more: float) -> None:
            nonlocal paid, last
            paid, now = paid + more, time.monotonic()
            if now - last >= _LINE_SECONDS and paid < cost:
                last, left = now, (now - began) * (cost - paid) / paid
                said = f"{what}: {paid / cost:.0%} of {tokens:,} tokens, {rate()}, about {left:,.0f} s left"
                print(said, file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=max(cost, 1), said="")

        def advance(more: float) -> None:
            nonlocal paid
            paid += more
            bar.update(task, completed=paid, said=f"of {tokens:,} tokens, {rate()}")

        yield advance


@contextmanager
def step_progress(show: bool | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Show progress for work in several parts and yield `report(what, done, total)`; see `token_progress`.

    Args:
        show: Whether to show it; None: yes.
    """
    if (watcher := _watcher.get()) is not None:
        yield watcher
        return
    if show is False:
        yield lambda what, done, total: None
        return
    if not sys.stderr.isatty():
        said = time.monotonic()

        def line(what: str, done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said >= _LINE_SECONDS and done < total:
                said = time.monotonic()
                _say(f"{what}: {done:,} of {total:,}")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=max(total, 1))
            bar.update(tasks[what], completed=done)

        yield report


@contextmanager
def generation_progress(what: str, total: int, show: bool | None = None) -> Iterator[list[Callable[[Any, Any], Any]]]:
    """Show progress of a generation, a step for each token, and yield what `generate` takes as `stopping_criteria`.

    They stop nothing; a watcher may, by an exception.

    Args:
        what: What is generated.
        total: The largest number of tokens.
        show: Whether to show it; None: yes.
    """
    with step_progress(show) as report:
        done = 0

        def told(tokens_rt: Any, logits_rv: Any) -> Any:
            nonlocal done
            done += 1
            report(what, min(done, total), total)
            return tokens_rt[:, -1] != tokens_rt[:, -1]  # of no row is it the end

        report(what, 0, total)
        yield [told]


@contextmanager
def prompt_progress(total: int, show: bool | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show progress for work on many prompts, with rate, time left and failures, and yield `report(done, failed)`.

    Args:
        total: The number of prompts.
        show: Whether to show it; None: yes.
    """
    if show is False:
        yield lambda done, failed: None
        return
    began = time.monotonic()

    def said(done: int, failed: int) -> str:
        passed = max(time.monotonic() - began, 1e-9)
        rate = f"{done / passed:.3g} prompts/s{_left(passed, done, total - done)}"
        return rate + (f", {failed:,} failed" if failed else "")

    if not sys.stderr.isatty():
        last = began

        def line(done: int, failed: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_SECONDS and done < total:
                last = time.monotonic()
                _say(f"sweep: {done:,} of {total:,} prompts, {said(done, failed)}")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sweep", total=max(total, 1), said="")
        yield lambda done, failed: bar.update(task, completed=done, said=said(done, failed))
