"""A validation as a table, as JSON, and as plots."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crosstrace.graphs import write_atomically
from crosstrace.graphs.text import short, visible
from crosstrace.tracer.validation.total_effects import RankCorrelation
from crosstrace.tracer.validation.validate import Validation

_PLOTS = (".png", ".svg", ".pdf")


def check_outputs(outputs: Sequence[Path]) -> None:
    """Find what cannot be written before minutes are spent.

    Raises:
        ValueError: an unknown suffix, or a plot without matplotlib. OSError: no such folder.
    """
    for path in outputs:
        suffix = path.suffix.lower()
        if suffix not in (".json", *_PLOTS):
            raise ValueError(f"unknown suffix {path.suffix!r} in {str(path)!r}: known are .json, {', '.join(_PLOTS)}")
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: output folder {path.absolute().parent} does not exist")
        if suffix in _PLOTS:
            try:
                import matplotlib  # noqa: F401 (only whether it is there)
            except ImportError:
                raise ValueError(
                    f"cannot plot {path}: matplotlib is not installed; pip install 'crosstrace[plot]'"
                ) from None


def write_validation(validation: Validation, path: Path) -> None:
    """Write a validation by suffix: numbers as ``.json``, plots as ``.png``, ``.svg`` or ``.pdf``."""
    check_outputs([path])
    if path.suffix.lower() == ".json":
        content = json.dumps(dataclasses.asdict(validation), indent=1, allow_nan=False)
        write_atomically(path, content.encode())
    else:
        write_atomically(path, _plots(validation, path.suffix.lower().removeprefix(".")))


def show_validation(validation: Validation, console: Console) -> None:
    """Print a validation."""
    details = Text(f"{validation.model_name}  ·  {validation.transcoders_name}", style="dim")
    heading = Panel(Text(visible(validation.prompt), style="bold"), subtitle=details, box=box.ROUNDED)
    curves = [_curves(validation)] if validation.curves else []
    console.print(Group(heading, _checks(validation), *curves, _errors(validation)))


def _checks(validation: Validation) -> Table:
    table = _table("Checks")
    table.add_column("check", style="bold")
    table.add_column("result")
    direct, total, quality = validation.direct, validation.total, validation.quality
    target = short(validation.target)
    table.add_row(
        "direct effects",
        f"{direct.n_edges:,} edges of {direct.n_sources:,} sources doubled: relative error {direct.relative_error:.1e}, "
        f"largest {direct.max_error:.1e}",
    )
    n_single = total.is_supernode.count(False)
    table.add_row(
        f"total effects on {target}",
        f"{n_single} features and {len(total.sources) - n_single} supernodes ablated: rank correlation of influence and "
        f"|change| {_correlation(total.influence_correlation)}; of signed paths and change "
        f"{_correlation(total.signed_correlation)}",
    )
    table.add_row(
        "replacement model",
        f"same top token at {quality.same_top_token:.0%} of {quality.n_positions} positions"
        f" ({'also' if quality.same_last_token else 'not'} at the last); KL {quality.kl_mean:.3f} nats on average, "
        f"{quality.kl_last:.3f} at the last",
    )
    return table


def _curves(validation: Validation) -> Table:
    table = _table(f"Logit of {short(validation.target)} recovered (1 the model, 0 no features and no errors)")
    table.add_column("curve", style="bold")
    table.add_column("filled with")
    table.add_column("area", justify="right")
    table.add_column("pruned graph's features", justify="right")
    for curve in validation.curves:
        name = "keep only" if curve.kind == "keep" else "remove only"
        table.add_row(name, curve.fill, f"{curve.area:.3f}", f"{curve.pruned_recovered:.3f} with {curve.pruned_count}")
    return table


def _errors(validation: Validation) -> Table:
    table = _table("Error norm by layer, share of the MLP output's")
    norms = validation.quality.error_norms
    for layer in range(len(norms)):
        table.add_column(f"L{layer}", justify="right")
    table.add_row(*(f"{norm:.2f}" for norm in norms))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _correlation(correlation: RankCorrelation) -> str:
    if correlation.value is None:
        return "undefined (fewer than three, or all alike)"
    return f"{correlation.value:.2f} ({correlation.low:.2f} to {correlation.high:.2f})"


def _plots(validation: Validation, suffix: str) -> bytes:
    # The object-oriented interface: no global state, no display, nothing chosen for the rest of the program.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    direct, total, curves, errors = figure.subplots(2, 2).flat
    _identity(direct, validation.direct.edges, validation.direct.measured)
    direct.set(title="Direct effects", xlabel="edge", ylabel="measured change, source doubled")

    for is_supernode, marker, name in ((False, "o", "features"), (True, "D", "supernodes")):
        chosen = [i for i, kind in enumerate(validation.total.is_supernode) if kind == is_supernode]
        if chosen:
            x = [validation.total.influence[i] for i in chosen]
            y = [abs(validation.total.measured[i]) for i in chosen]
            total.scatter(x, y, s=18, marker=marker, alpha=0.7, label=name)
    if validation.total.sources:
        total.legend(frameon=False)
    title = f"Total effects on {_plain(validation.target)}: ρ = {_correlation(validation.total.influence_correlation)}"
    total.set(title=title, xlabel="influence predicted by the graph", ylabel="|change of the logit|, source ablated")

    for curve in validation.curves:
        style = {"zero": "-", "mean": "--"}[curve.fill]
        color = {"keep": "tab:blue", "remove": "tab:red"}[curve.kind]
        name = f"{curve.kind} only, {curve.fill} (area {curve.area:.2f})"
        curves.plot(curve.counts, curve.recovered, style, color=color, marker=".", label=name)
        curves.plot([curve.pruned_count], [curve.pruned_recovered], "*", color=color, markersize=11)
    if validation.curves:
        curves.legend(frameon=False)
    curves.set(title="Faithfulness (★ the pruned graph)", xlabel="features, by influence", ylabel="logit recovered")

    errors.bar(range(len(validation.quality.error_norms)), validation.quality.error_norms)
    errors.set(title="What the transcoders miss", xlabel="layer", ylabel="‖error‖ / ‖MLP output‖")
    figure.suptitle(_plain(validation.prompt))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=130)
    return buffer.getvalue()


def _identity(axes, x: Sequence[float], y: Sequence[float]) -> None:  # type: ignore[no-untyped-def]
    if x:
        ends = [min(*x, *y), max(*x, *y)]
        axes.plot(ends, ends, color="0.8", zorder=0)
    axes.scatter(x, y, s=6, alpha=0.5)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return short(text, 80).replace("$", r"\$")
