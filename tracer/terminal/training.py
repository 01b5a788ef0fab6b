"""A training run in the terminal: a bar with rate, time left and figures while it goes on, then a table of layers.

Where there is no terminal, lines are written instead: a log file shows where the run is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from crosstrace.graphs.numbers import plain, share
from crosstrace.graphs.text import visible
from crosstrace.replacement_model.training.runs.watching import Progress as Place
from crosstrace.replacement_model.training.runs.watching import Watcher
from crosstrace.tracer.terminal.tables import add_numbers, add_row, plain_table

if TYPE_CHECKING:
    from crosstrace.replacement_model.training.runs.record import TrainingRecord

# Where there is no terminal, a line is written this often, and after the first step.
_LINE_SECONDS = 15.0
# Steps whose figures are averaged: single batches jump about.
_SMOOTHED = 0.9


class _Speaking(Watcher):
    """Says what every watcher that is not quiet says, and keeps figures smooth."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked
        self._stage = ""
        self._from: tuple[float, int] = (0.0, 0)
        self._smooth: dict[str, float] = {}

    def began(self, record: TrainingRecord, resumed_at: int | None) -> None:
        s = record.settings
        length = f"{s.minutes:g} minutes" if s.minutes is not None else f"{s.tokens:,} tokens"
        self.say(f"training {s.kind}, {s.features:,} features a layer, L0 {s.l0:g}, for {length}")
        if resumed_at is not None:
            self.say(f"resumed after {resumed_at:,} tokens of this stage")

    def notice(self, line: str) -> None:
        self.say(f"note: {line}")

    def stop_asked(self) -> bool:
        return self.asked()

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def figures(self, place: Place) -> str:
        """The figures of a step in a line."""
        if place.stage != self._stage:
            self._stage, self._from, self._smooth = place.stage, (place.seconds, place.tokens), {}
        began, before = self._from
        parts = [f"{place.tokens:,}" + (f" of {place.wanted_tokens:,}" if place.wanted_tokens else "") + " tokens"]
        if place.seconds > began:
            parts.append(f"{(place.tokens - before) / (place.seconds - began):,.0f}/s")
        for name, key, form in (
            ("loss", "loss", plain),
            ("FVU", "fvu", plain),
            ("weighted", "fvu_weighted", plain),
            ("L0", "l0", plain),
            ("dead", "dead", share),
        ):
            value = getattr(place, key)
            if value is not None:
                value = self._smooth[key] = _SMOOTHED * self._smooth.get(key, value) + (1 - _SMOOTHED) * value
                parts.append(f"{name} {form(value)}")
        return ", ".join(parts)


class _Lines(_Speaking):
    _last = -_LINE_SECONDS

    def filling(self, done: int, total: int) -> None:
        if done < total and time.monotonic() - self._last >= _LINE_SECONDS:
            self._last = time.monotonic()
            self.say(f"reading activations: {done:,} of {total:,} tokens of the buffer")

    def stepped(self, place: Place) -> None:
        line = self.figures(place)
        if time.monotonic() - self._last >= _LINE_SECONDS or place.share >= 1:
            self._last = time.monotonic()
            left = f", about {_duration(place.left_seconds)} left" if place.left_seconds is not None else ""
            self.say(f"{place.stage} {place.share:.0%}: {line}{left}")

    def saved(self, path: Path) -> None:
        self.say(f"checkpoint {path}")


class _Bars(_Speaking):
    def __init__(self, asked: Callable[[], bool], bars: Progress) -> None:
        super().__init__(asked)
        self._bars = bars
        self._task: Any = None

    def say(self, line: str) -> None:
        self._bars.console.print(Text(line))

    def filling(self, done: int, total: int) -> None:
        self._show(f"reading activations {done:,} of {total:,}")

    def stepped(self, place: Place) -> None:
        new = place.stage != self._stage
        line = self.figures(place)
        if self._task is None or new:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(place.stage, total=1.0, left="", said="")
        left = "" if place.left_seconds is None else f"{_duration(place.left_seconds)} left"
        self._bars.update(self._task, completed=place.share, left=left)
        self._show(line)

    def _show(self, line: str) -> None:
        if self._task is None:
            self._task = self._bars.add_task("training", total=1.0, left="", said="")
        self._bars.update(self._task, said=line)


@contextmanager
def training_progress(asked: Callable[[], bool], show: bool | None = None) -> Iterator[Watcher]:
    """Show a run's progress on standard error: bars on a terminal, which disappear at the end, else lines.

    Args:
        asked: Whether the run should stop.
        show: Whether to show it; None: yes.
    """
    if show is False:
        quiet = Watcher()
        quiet.stop_asked = asked  # type: ignore[method-assign]
        yield quiet
    elif not sys.stderr.isatty():
        yield _Lines(asked)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[said]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield _Bars(asked, bars)


def show_training(record: TrainingRecord, console: Console | None = None) -> None:
    """Print what a run came to: a row for each layer, as its last batch had it.

    Args:
        record: The record of a finished run.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    trained = record.run.get("training")
    if not trained:
        return
    settings = record.settings
    table = plain_table(f"{settings.kind} trained in {visible(record.model['name'])}")
    tuned = record.run.get("end to end")
    add_numbers(table, "layer", "FVU", "FVU\nweighted", "L0", "dead")
    layers = range(len(trained["l0"])) if settings.layers is None else settings.layers
    last = tuned or trained
    rows = list(zip(trained["fvu"], trained["fvu_weighted"], last["l0"], last["dead"], strict=True))
    for layer, (fvu, weighted, l0, dead) in zip(layers, rows, strict=True):
        add_row(table, f"L{layer}", plain(fvu), plain(weighted), plain(l0), share(dead))
    if len(rows) > 1:
        table.add_section()
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        add_row(table, "mean", *(plain(value) for value in means[:3]), share(means[3]))
    said = f"last batches; {trained['tokens']:,} tokens, {trained['steps']:,} steps"
    if tuned:
        said += f", then {tuned['tokens']:,} tokens end to end (FVU is from before that)"
    said += f"; {_duration(record.run['seconds'])}"
    table.caption, table.caption_justify = Text(said, style="dim"), "left"
    console.print(table)


def _duration(seconds: float) -> str:
    """A length of time in the two largest units that it has."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
