"""Labels in the terminal: those of a run with their scores, and what two sets do not agree on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from crosstrace.graphs.numbers import count
from crosstrace.graphs.text import short
from crosstrace.tracer.labels.label_set import Key, Label, LabelDifference
from crosstrace.tracer.labels.labelling import LabelRun
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, plain_table


def show_labels(run: LabelRun, rows: int, console: Console | None = None) -> None:
    """Print a run's labels, the best first, and what they are worth.

    Args:
        run: The run.
        rows: How many labels to print.
        console: Where to print.
    """
    console = console or Console()
    ranked = sorted(run.labels.items(), key=lambda item: (-(item[1].score or 0.0), item[0]))
    tested = any(label.score is not None for _, label in ranked)
    table = plain_table(f"{count(len(ranked), 'label')}{f', the first {rows}' if len(ranked) > rows else ''}")
    table.add_column("feature", style="dim", no_wrap=True)
    add_words(table, "label")
    if tested:
        add_numbers(table, "score", "detection", "fuzzing", "another's")
    for key, label in ranked[:rows]:
        scores = (label.score, label.detection, label.fuzzing, label.shuffled)
        add_row(table, _feature(key), short(label.text, 60), *(map(_score, scores) if tested else ()))
    console.print(table)
    console.print(Text(said_of(run), "dim"))


def said_of(run: LabelRun) -> str:
    """Return what a run's labels are worth, in one line."""
    parts = [f"{run.tested:,} of {count(len(run.labels), 'label')} tested on held-out contexts"]
    if run.mean_score is not None and run.mean_shuffled is not None:
        parts.append(
            f"mean score {run.mean_score:.2f}, another feature's label on the same contexts {run.mean_shuffled:.2f} "
            "(0.5 is chance, 1 the best)"
        )
    if run.nonsense:
        parts.append(f"no usable label for {count(len(run.nonsense), 'feature')}")
    if run.requests:
        parts.append(count(run.requests, "request"))
    return "; ".join(parts)


def show_differences(
    differences: Sequence[LabelDifference], names: tuple[str, str], both: int, rows: int, console: Console | None = None
) -> None:
    """Print what two sets of labels do not agree on.

    Args:
        differences: What `label_differences` found.
        names: What the sets are called.
        both: How many features have a label in both.
        rows: How many to print.
        console: Where to print.
    """
    console = console or Console()
    other = sum(one.first is not None and one.second is not None for one in differences)
    only = [sum(getattr(one, side) is None for one in differences) for side in ("second", "first")]
    title = (
        f"{count(both, 'feature')} in both, {other:,} called otherwise; {only[0]:,} only in {names[0]}, "
        f"{only[1]:,} only in {names[1]}"
    )
    if not differences:
        console.print(Text(title))
        return
    table = plain_table(title)
    table.add_column("feature", style="dim", no_wrap=True)
    for name in names:
        add_words(table, short(name, 40))
    # Those that both name come first: they are what the sets disagree on.
    ranked = sorted(differences, key=lambda one: (one.first is None or one.second is None, one.feature))
    for one in ranked[:rows]:
        add_row(table, _feature(one.feature), _shown(one.first), _shown(one.second))
    console.print(table)


def _feature(key: Key) -> str:
    return f"L{key[0]}/{key[1]}"


def _shown(label: Label | None) -> str:
    return "" if label is None else short(label.shown, 60)


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"
