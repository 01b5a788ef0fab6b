"""A validation as JSON and as plots."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crosstrace.graphs import write_atomically
from crosstrace.graphs.files import check_writable
from crosstrace.graphs.text import short
from crosstrace.tracer.validation.validate import Validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLOTS = (".png", ".svg", ".pdf")


def check_outputs(outputs: Sequence[Path]) -> None:
    """Find what cannot be written before minutes are spent.

    Raises:
        ValueError: A suffix is unknown, or a plot is wanted without matplotlib.
        OSError: A folder does not exist or may not be written to.
    """
    for path in outputs:
        suffix = path.suffix.lower()
        if suffix not in (".json", *_PLOTS):
            raise ValueError(f"unknown suffix {path.suffix!r} in {str(path)!r}: known are .json, {', '.join(_PLOTS)}")
        check_writable(path)
        if suffix in _PLOTS:
            try:
                import matplotlib  # noqa: F401 (only whether it is there)
            except ImportError:
                raise ValueError(
                    f"cannot plot {path}: matplotlib is not installed; pip install 'crosstrace[plot]'"
                ) from None


def write_validation(validation: Validation, path: Path) -> None:
    """Write a validation in the format of the suffix: numbers as `.json`, plots as `.png`, `.svg` or `.pdf`.

    Raises:
        ValueError: The suffix is unknown, or a plot is wanted without matplotlib.
        OSError: The file cannot be written; nothing is left behind.
    """
    check_outputs([path])
    if path.suffix.lower() == ".json":
        content = json.dumps(dataclasses.asdict(validation), indent=1, allow_nan=False)
        write_atomically(path, content.encode())
    else:
        write_atomically(path, _plots(validation, path.suffix.lower().removeprefix(".")))


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
    title = f"Total effects on {_plain(validation.target)}: ρ = {validation.total.influence_correlation}"
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


def _identity(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    if x:
        ends = [min(*x, *y), max(*x, *y)]
        axes.plot(ends, ends, color="0.8", zorder=0)
    axes.scatter(x, y, s=6, alpha=0.5)


def _plain(text: str) -> str:
    """Return text that matplotlib does not read as mathematics."""
    return short(text, 80).replace("$", r"\$")
