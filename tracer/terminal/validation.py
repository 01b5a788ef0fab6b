"""A validation in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.text import short, visible
from crosstrace.tracer.terminal.graph import plain_table
from crosstrace.tracer.validation.validate import Validation


def show_validation(validation: Validation, console: Console | None = None) -> None:
    """Print a validation: the checks, the faithfulness curves, the errors by layer.

    Args:
        validation: The checks of one graph.
        console: Where to print; None for standard output.
    """
    details = Text(f"{validation.model_name}  ·  {validation.transcoders_name}", style="dim")
    heading = Panel(Text(visible(validation.prompt), style="bold"), subtitle=details, box=box.ROUNDED)
    curves = [_curves(validation)] if validation.curves else []
    (console or Console()).print(Group(heading, _checks(validation), *curves, _errors(validation)))


def _checks(validation: Validation) -> Table:
    table = plain_table("Checks")
    table.add_column("check", style="bold")
    table.add_column("result")
    direct, total, quality = validation.direct, validation.total, validation.quality
    target = short(validation.target)
    table.add_row(
        "direct effects",
        f"{direct.n_sources:,} sources doubled, {direct.n_edges:,} edges: relative error {direct.relative_error:.1e}, "
        f"largest error {direct.max_error:.1e}",
    )
    n_single = total.is_supernode.count(False)
    table.add_row(
        f"total effects on {target}",
        f"{n_single} features and {len(total.sources) - n_single} supernodes ablated: rank correlation of influence with "
        f"|change| {total.influence_correlation}, of signed paths with change "
        f"{total.signed_correlation}",
    )
    table.add_row(
        "replacement model",
        f"same top token as the model at {quality.same_top_token:.0%} of {quality.n_positions} positions, "
        f"{'also' if quality.same_last_token else 'but not'} at the last; KL divergence {quality.kl_mean:.3f} nats on average, "
        f"{quality.kl_last:.3f} at the last",
    )
    return table


def _curves(validation: Validation) -> Table:
    table = plain_table(f"Logit of {short(validation.target)} recovered (1: the model; 0: no features and no errors)")
    table.add_column("curve", style="bold")
    table.add_column("filled with")
    table.add_column("area", justify="right")
    table.add_column("pruned graph", justify="right")
    for curve in validation.curves:
        name = "keep only" if curve.kind == "keep" else "remove only"
        table.add_row(
            name, curve.fill, f"{curve.area:.3f}", f"{curve.pruned_recovered:.3f} with {curve.pruned_count} features"
        )
    return table


def _errors(validation: Validation) -> Table:
    table = plain_table("Error norm by layer, as a share of the MLP output's norm")
    norms = validation.quality.error_norms
    for layer in range(len(norms)):
        table.add_column(f"L{layer}", justify="right")
    table.add_row(*(f"{norm:.2f}" for norm in norms))
    return table
