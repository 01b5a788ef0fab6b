"""`curves.svg`: what a training run's steps saw, against the tokens."""

from __future__ import annotations

import io
from pathlib import Path

from crosstrace.graphs.files import write_atomically
from crosstrace.replacement_model.training.runs.curves import Curves

_PANELS = (
    ("loss", "loss", True),
    ("fvu_weighted", "FVU, weighted by dimension", False),
    ("l0", "L0", False),
    ("dead", "dead features", False),
)
_COLOURS = {"training": "#2b6cb0", "end to end": "#c05621"}


def draw_curves(curves: Curves, path: Path) -> None:
    """Draw a run's curves.

    Args:
        curves: The curves; stages follow one another on the axis of tokens.
        path: The `.svg` file, written whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "crosstrace", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(2, 2).flatten()
        stages = list(dict.fromkeys(point["stage"] for point in curves.points))
        for axis, (key, title, logarithmic) in zip(axes, _PANELS, strict=True):
            before = 0
            for stage in stages:
                points = [point for point in curves.points if point["stage"] == stage]
                drawn = [point for point in points if point.get(key) is not None]
                axis.plot(
                    [before + point["tokens"] for point in drawn],
                    [point[key] for point in drawn],
                    color=_COLOURS.get(stage),
                    linewidth=1,
                    label=stage,
                )
                before += points[-1]["tokens"]
            axis.set_title(title, fontsize=9)
            if logarithmic:
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3, linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
        for axis in axes[2:]:
            axis.set_xlabel("tokens")
        if len(stages) > 1:
            axes[0].legend(frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_atomically(path, content.getvalue())
