"""An evaluation in the terminal: a line for each layer (Gemma 3 has up to 62), and all of them replaced at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.numbers import count, plain, share, signed
from crosstrace.graphs.text import visible
from crosstrace.tracer.evaluation.report import EvaluationReport, LayerQuality
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, is_narrow, plain_table


@dataclass(frozen=True)
class _Column:
    """A column of the layers' table.

    Attributes:
        name: Its heading.
        of: The layer's number; None leaves the cell empty.
        write: The number as text.
        averaged: Whether the mean over layers says something.
        needed: Whether it is shown in a narrow terminal.
    """

    name: str
    of: Callable[[LayerQuality], float | None]
    write: Callable[[float], str]
    averaged: bool = True
    needed: bool = True

    def cell(self, value: float | None) -> str:
        return "" if value is None else self.write(value)


_COLUMNS = (
    _Column("FVU", lambda layer: layer.fvu, plain),
    _Column("FVU\nweighted", lambda layer: layer.fvu_weighted, plain, needed=False),
    _Column("L0", lambda layer: layer.l0, plain),
    _Column("L0 in\nconfig", lambda layer: layer.l0_config, plain, needed=False),
    _Column("dead", lambda layer: layer.dead, share),
    _Column("frequent", lambda layer: layer.frequent, share, needed=False),
    _Column("ΔCE", lambda layer: layer.ce_delta, signed),
    _Column("±", lambda layer: layer.ce_delta_error, plain, averaged=False, needed=False),
)


def show_evaluation(report: EvaluationReport, console: Console | None = None) -> None:
    """Print an evaluation: a row for each layer and their means, then what all of them cost together.

    Args:
        report: The evaluation.
        console: Where to print; None for standard output.
    """
    console = console or Console()
    heading = Text.assemble(
        (visible(report.dictionary_name), "bold"), f" in {visible(report.model_name)}, at {report.writes}"
    )
    console.print(heading, _layers(report, console), _layers_note(report), _all(report), _all_note(report), sep="\n")


def _layers(report: EvaluationReport, console: Console) -> Table:
    table = plain_table("")
    columns = [
        column
        for column in _COLUMNS
        if (column.needed or not is_narrow(console)) and any(column.of(layer) is not None for layer in report.layers)
    ]
    add_numbers(table, "layer", *(column.name for column in columns))
    for layer in report.layers:
        add_row(table, f"L{layer.layer}", *(column.cell(column.of(layer)) for column in columns))
    if len(report.layers) > 1:
        table.add_section()
        means = [column.cell(_mean(report, column) if column.averaged else None) for column in columns]
        add_row(table, *(Text(cell, style="bold") for cell in ["mean", *means]))
    return table


def _mean(report: EvaluationReport, column: _Column) -> float | None:
    found = [value for value in map(column.of, report.layers) if value is not None]
    return fmean(found) if found else None


def _layers_note(report: EvaluationReport) -> Text:
    said = f"{count(report.tokens, 'token')}, in contexts of {report.context_length}"
    if report.layer_predictions:
        said += f"; ΔCE in nats, that layer alone replaced, over {count(report.layer_predictions, 'token')}"
    return Text(f"{said}.\n", style="dim")


def _all(report: EvaluationReport) -> Table:
    found, many = report.all, len(report.layers) > 1
    table = plain_table("All layers replaced" if many else "The layer replaced")
    add_words(table, "", style="bold")
    add_numbers(table, "loss\n(nats)", "more than\nthe model")
    add_row(table, "the model", plain(found.ce_model), "")
    for name, loss in (("replaced", found.ce_replaced), ("zeroed", found.ce_zero)):
        add_row(table, name, plain(loss), signed(loss - found.ce_model))
    return table


def _all_note(report: EvaluationReport) -> Text:
    found = report.all
    said = (
        f"{share(found.ce_score)} of the loss recovered; KL divergence {plain(found.kl)} nats; same top token at "
        f"{share(found.top1)} of {count(report.predictions, 'token')}."
    )
    return Text(said, style="dim")
