"""A validation in the terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.numbers import count, error, plain, share
from crosstrace.graphs.text import short, visible
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, plain_table
from crosstrace.tracer.validation.validate import Validation

_BAR = 40


def show_validation(validation: Validation, console: Console | None = None) -> None:
    """Print a validation: the checks, the faithfulness curves, the errors by layer.

    Args:
        validation: The checks of one graph.
        console: Where to print; None for standard output.
    """
    details = Text(f"{validation.model_name}  ·  {validation.transcoders_name}", style="dim")
    heading = Panel(Text(visible(validation.prompt), style="bold"), subtitle=details, box=box.ROUNDED)
    curves = [_curves(validation)] if validation.curves else []
    console = console or Console()
    console.print(Group(heading, _checks(validation), *curves, _errors(validation, console.width)))


def _checks(validation: Validation) -> Table:
    table = plain_table("Checks")
    add_words(table, "check", style="bold")
    add_words(table, "result")
    direct, total, quality = validation.direct, validation.total, validation.quality
    target = short(validation.target)
    add_row(
        table,
        "direct effects",
        f"{count(direct.n_sources, 'source')} doubled, {count(direct.n_edges, 'edge')}: "
        f"relative error {error(direct.relative_error)}, largest error {error(direct.max_error)}",
    )
    heads = validation.heads
    if heads.heads:
        add_row(
            table,
            "head loadings",
            f"{count(len(heads.heads), 'head')} taken out, {count(heads.n_targets, 'target')}, {count(heads.n_edges, 'edge')}: "
            f"relative error {error(heads.relative_error)}; with norms free targets lose {share(heads.free_difference)} "
            "more or less",
        )
    n_single = total.is_supernode.count(False)
    ablated = f"{count(n_single, 'feature')} and {count(len(total.sources) - n_single, 'supernode')} ablated"
    add_row(
        table,
        f"total effects on {target}",
        f"{ablated}: rank correlation of influence with |change| {total.influence_correlation}, of signed paths with "
        f"change {total.signed_correlation}, with frozen norms {total.frozen_correlation}",
    )
    add_row(
        table,
        "replacement model",
        f"same top token as the model at {round(quality.same_top_token * quality.n_positions)} of "
        f"{count(quality.n_positions, 'position')}, {'also' if quality.same_last_token else 'but not'} at the last; "
        f"KL divergence {plain(quality.kl_mean)} nats on average, {plain(quality.kl_last)} at the last",
    )
    return table


def _curves(validation: Validation) -> Table:
    table = plain_table(f"Logit of {short(validation.target)} recovered (1: the model; 0: no features and no errors)")
    add_words(table, "curve", style="bold")
    add_words(table, "filled with")
    add_numbers(table, "area", "pruned\ngraph", "its\nfeatures")
    for curve in validation.curves:
        name = "keep only" if curve.kind == "keep" else "remove only"
        numbers = (plain(curve.area), plain(curve.pruned_recovered), count(curve.pruned_count))
        add_row(table, name, curve.fill, *numbers)
    return table


def _errors(validation: Validation, width: int) -> Table:
    """A line per layer: Gemma 3 has up to 62."""
    table = plain_table("Error norm by layer, as a share of the MLP output's norm")
    norms = validation.quality.error_norms
    bar = min(_BAR, width - 24)
    add_numbers(table, "layer", "error norm")
    add_words(table)
    most = max(norms, default=0.0)
    for layer, norm in enumerate(norms):
        length = round(bar * norm / most) if most > 0 and math.isfinite(most) else 0
        add_row(table, f"L{layer}", share(norm), Text("█" * length, style="cyan"))
    return table
