"""An evaluation in the terminal: a line for each layer (Gemma 3 has up to 62), and all of them replaced at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.numbers import count, plain, share, signed
from crosstrace.graphs.text import visible
from crosstrace.tracer.evaluation.report import EvaluationReport, LayerQuality
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, plain_table


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
    console.print(Group(heading, _layers(report), _layers_note(report), _all(report), _all_note(report)))


def _layers(report: EvaluationReport) -> Table:
    table = plain_table("")
    expected = any(layer.l0_config is not None for layer in report.layers)
    deltas = any(layer.ce_delta is not None for layer in report.layers)
    add_numbers(table, "layer", "FVU", "FVU\nweighted", "L0", *(["L0 in\nconfig"] if expected else []))
    add_numbers(table, "dead", "frequent", *(["ΔCE", "±"] if deltas else []))
    for layer in report.layers:
        add_row(table, f"L{layer.layer}", *_cells(layer, expected, deltas))
    if len(report.layers) > 1:
        table.add_section()
        table.add_row(
            Text("mean", style="bold"), *(Text(cell, style="bold") for cell in _means(report, expected, deltas))
        )
    return table


def _layers_note(report: EvaluationReport) -> Text:
    said = f"{count(report.tokens, 'token')}, in contexts of {report.context_length}"
    if report.layer_predictions:
        said += f"; ΔCE in nats, that layer alone replaced, over {count(report.layer_predictions, 'token')}"
    return Text(f"{said}.\n", style="dim")


def _cells(layer: LayerQuality, expected: bool, deltas: bool) -> list[str]:
    cells = [plain(layer.fvu), plain(layer.fvu_weighted), plain(layer.l0)]
    if expected:
        cells.append("" if layer.l0_config is None else plain(layer.l0_config))
    cells += [share(layer.dead), share(layer.frequent)]
    if deltas and layer.ce_delta is not None and layer.ce_delta_error is not None:
        cells += [signed(layer.ce_delta), plain(layer.ce_delta_error)]
    return cells


def _means(report: EvaluationReport, expected: bool, deltas: bool) -> list[str]:
    def mean(of: Callable[[LayerQuality], float | None]) -> float | None:
        found = [value for value in map(of, report.layers) if value is not None]
        return fmean(found) if found else None

    columns: Sequence[tuple[Callable[[LayerQuality], float | None], Callable[[float], str]]] = [
        (lambda layer: layer.fvu, plain),
        (lambda layer: layer.fvu_weighted, plain),
        (lambda layer: layer.l0, plain),
        *([(lambda layer: layer.l0_config, plain)] if expected else []),
        (lambda layer: layer.dead, share),
        (lambda layer: layer.frequent, share),
        *([(lambda layer: layer.ce_delta, signed)] if deltas else []),
    ]
    found = [(mean(of), write) for of, write in columns]
    return ["" if value is None else write(value) for value, write in found] + ([""] if deltas else [])


def _all(report: EvaluationReport) -> Table:
    found, many = report.all, len(report.layers) > 1
    table = plain_table("All layers replaced, no errors added back" if many else "The layer replaced")
    add_words(table, "", style="bold")
    add_numbers(table, "loss\n(nats)", "more than\nthe model")
    for name, loss in (("the model", found.ce_model), ("replaced", found.ce_replaced), ("zeroed", found.ce_zero)):
        add_row(table, name, plain(loss), "" if name == "the model" else signed(loss - found.ce_model))
    return table


def _all_note(report: EvaluationReport) -> Text:
    found = report.all
    said = (
        f"{share(found.ce_score)} of the loss recovered; KL divergence {plain(found.kl)} nats; same top token at "
        f"{share(found.top1)} of {count(report.predictions, 'token')}"
    )
    return Text(f"{said}.", style="dim")
