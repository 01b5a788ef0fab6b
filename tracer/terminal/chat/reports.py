"""Reports on chat models in the terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.text import Text

from crosstrace.graphs.numbers import plain, signed
from crosstrace.graphs.text import short
from crosstrace.tracer.chat.jailbreak import JailbreakReport
from crosstrace.tracer.chat.reasoning import ReasoningReport
from crosstrace.tracer.chat.refusal import RefusalReport
from crosstrace.tracer.chat.statistics import Mean
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, explain_guesses, plain_table

_FEATURES = 12


def show_refusal(report: RefusalReport, console: Console | None = None) -> None:
    """Print what carries a model's refusals: the first line, the curves, the features.

    Args:
        report: The report.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    parts: list[RenderableType] = [Text(report.first_line, style="bold"), Text()]
    for title, curves, what in (
        ("Removed from refused requests: share complied with", report.removed, "complied"),
        ("Added to complied requests: share refused", report.added, "refused"),
    ):
        table = plain_table(title)
        add_numbers(table, "features")
        for by in curves:
            add_numbers(table, f"{by}\nshare", "margin")
        for points in zip(*curves.values(), strict=True):
            cells = [cell for point in points for cell in (_interval(getattr(point, what)), signed(point.margin.value))]
            add_row(table, str(points[0].count), *cells)
        parts.append(table)
    table = plain_table(f"Features, by influence (the first {min(_FEATURES, len(report.features))})")
    add_words(table, "feature", style="dim")
    add_words(table, "label")
    add_numbers(table, "predicted", "in refused", "in complied")
    shown = report.features[:_FEATURES]
    for one in shown:
        add_row(
            table,
            one.feature,
            short(one.label, 32) if one.label else "",
            signed(one.score),
            plain(one.refused),
            plain(one.complied),
        )
    explain_guesses(table, (one.label for one in shown))
    parts.append(table)
    if report.boundary:
        table = plain_table("Nearest to the margin's zero")
        add_numbers(table, "margin")
        add_words(table, "request")
        add_words(table, "answer")
        for row in report.boundary:
            add_row(table, signed(row["margin"]), short(row["text"], 60), short(row["answer"], 40))
        parts.append(table)
    console.print(Group(*parts))


def show_jailbreak(report: JailbreakReport, console: Console | None = None) -> None:
    """Print what a wrapper does to refusals, and how often undoing it brings them back.

    Args:
        report: The report.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    table = plain_table("Held-out wrapped requests: share refused again")
    add_words(table, "undone")
    add_numbers(table, "features", "share", "random", "margin")
    for one in report.restored:
        add_row(
            table, one.group, str(one.count), _interval(one.refused), _interval(one.random), signed(one.margin.value)
        )
    features = plain_table("What the wrapper silences and switches on")
    add_words(features, "feature", style="dim")
    add_words(features, "label")
    add_words(features, "which is")
    add_numbers(features, "predicted", "in plain", "in wrapped")
    shown = [
        one for group in ("silent", "pushing") for one in [f for f in report.features if f.group == group][:_FEATURES]
    ]
    for feature in shown:
        add_row(
            features,
            feature.feature,
            short(feature.label, 32) if feature.label else "",
            feature.group,
            signed(feature.score),
            plain(feature.plain),
            plain(feature.wrapped),
        )
    explain_guesses(features, (feature.label for feature in shown))
    console.print(Group(Text(report.first_line, style="bold"), Text(), table, features))


def show_reasoning(report: ReasoningReport, console: Console | None = None) -> None:
    """Print what answers run through: one line a conversation, or of a single one its steps.

    Args:
        report: The report.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    table = plain_table("Answers: change of log p, in nats, when the steps are …")
    add_words(table, "answer")
    add_numbers(table, "log p", "mass", "removed", "cut", "replaced")
    add_words(table, "runs")
    for one in report.results:
        replaced = "–" if one.replaced is None else signed(one.replaced)
        numbers = (signed(one.log_probability), plain(one.mass), signed(one.removed), signed(one.cut), replaced)
        add_row(table, short(one.answer, 16), *numbers, one.verdict)
    parts: list[RenderableType] = [Text(report.first_line, style="bold"), Text(), table]
    if len(report.results) == 1:
        steps = plain_table("Steps")
        add_words(steps, "step")
        add_numbers(steps, "mass", "removed", "cut", "replaced")
        for step in report.results[0].steps:
            replaced = "–" if step.replaced is None else signed(step.replaced)
            add_row(steps, short(step.text, 48), plain(step.mass), signed(step.removed), signed(step.cut), replaced)
        parts.append(steps)
    lines = [f"mass and effect of steps: rank correlation {report.correlation}"]
    if report.auroc is not None:
        lines.append("AUROC of dependent answers: " + ", ".join(f"{k} {v:.3f}" for k, v in report.auroc.items()))
    console.print(Group(*parts, Text("\n".join(lines))))


def _interval(mean: Mean) -> str:
    return f"{mean.value:.0%} ({100 * mean.low:.0f}–{100 * mean.high:.0f})"
