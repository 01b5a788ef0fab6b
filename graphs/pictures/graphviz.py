"""Pictures through Graphviz's `dot` program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.pictures.dot import to_pydot
from crosstrace.graphs.pictures.figure import Figure

if TYPE_CHECKING:
    import pydot

PICTURES = (".svg", ".pdf", ".png")


class GraphvizMissing(RuntimeError):  # noqa: N818 (reads as what it says)
    """Graphviz's `dot` is not installed; the `.dot` file has been written, `dot_file` says where."""

    def __init__(self, path: Path, dot_file: Path) -> None:
        self.dot_file = dot_file
        super().__init__(
            f"cannot draw {path}: Graphviz's `dot` is not installed (apt install graphviz, brew install graphviz, or"
            f" conda install graphviz); wrote {dot_file} instead"
        )


def render(
    graph: AttributionGraph | pydot.Dot | str, path: str | os.PathLike[str], figure: Figure | None = None
) -> None:
    """Draws a graph, or DOT already made from one, as `.svg`, `.pdf` or `.png`.

    Args:
        graph: A graph (what its masks keep is drawn), a `pydot.Dot`, or DOT text.
        path: The picture; its suffix says the format.
        figure: What of a graph to draw, and how; not for DOT.

    Raises:
        GraphvizMissing: `dot` is not on the path; the `.dot` has been written beside the wanted file.
        OSError: Graphviz failed, or the file cannot be written; nothing is left behind.
        ValueError: Unknown suffix.

    Example:
        >>> render(prune(graph), "dallas.svg")
    """
    path = Path(path)
    if (suffix := path.suffix.lower()) not in PICTURES:
        raise ValueError(f"unknown picture suffix {path.suffix!r} of {path}: known are {', '.join(PICTURES)}")
    if isinstance(graph, AttributionGraph):
        graph = to_pydot(graph, figure)
    text = (graph if isinstance(graph, str) else graph.to_string()).encode("utf-8")
    program = shutil.which("dot")
    if program is None:
        dot_file = path.with_suffix(".dot")
        write_atomically(dot_file, text)
        raise GraphvizMissing(path, dot_file)
    resolution = ["-Gdpi=120"] if suffix == ".png" else []
    done = subprocess.run([program, f"-T{suffix[1:]}", *resolution], input=text, capture_output=True, check=False)
    if done.returncode != 0 or not done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"]
        raise OSError(f"cannot draw {path}: Graphviz failed: {said[0]}")
    write_atomically(path, done.stdout)
