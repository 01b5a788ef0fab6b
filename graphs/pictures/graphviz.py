"""Pictures through Graphviz: the machine's own `dot` where there is one, otherwise the package `graphviz-pure`.

`graphviz-pure` is a port of Graphviz in one program, which pip installs beside crosstrace. It has no PDF. It knows how
wide letters of Helvetica are, but not how wide those outside ASCII are, so its SVG is centred again here; and its PNG can
only show the letters of its own font, so others are named in a warning.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.pictures.dot import to_pydot
from crosstrace.graphs.pictures.figure import Figure

if TYPE_CHECKING:
    import pydot

PICTURES = (".svg", ".pdf", ".png")
"""Suffixes of pictures."""
PROGRAMS = ("dot", "graphviz-pure")
"""What draws them: the first that is installed and knows the format."""
_PURE_PICTURES = (".svg", ".png")
TIME_LIMIT = 120
"""After so many seconds Graphviz is stopped where it looks for places (in `layers` that can take hours), not where it draws."""
_PLACED = re.compile(r"^layout=nop;$", re.MULTILINE)
_INSTALL = "apt install graphviz, brew install graphviz, or conda install graphviz"

# What graphviz-pure's sans serif (Arimo) has of the characters that labels are likely to hold.
_IN_FONT = re.compile(
    "[\n\r -~\xa0-\u052f\u0591-\u05f4\u1d00-\u1fff\u2000-\u20be\u2100-\u214f\u2190-\u2195\u2202\u2206\u220f\u2211\u2212"
    "\u2215\u2219\u221a\u221e\u2248\u2260\u2261\u2264\u2265\u25a0\u25a1\u25cf\u25e6\u2640\u2642\u2660\u2663\u2665\u2666]*"
)
_TOOLTIP = re.compile(r'tooltip="(?:\\.|[^"\\])*"', re.DOTALL)  # a .png has none
# Signs of `visible` and `short` that it lacks, and what stands for them.
_STAND_INS = str.maketrans({"↵": "¶", "␍": "¶", "⇥": "»", "␣": "·", "∅": "Ø", "⟨": "‹", "⟩": "›"})


class LettersMissing(UserWarning):
    """A picture was drawn with boxes in the place of letters that the program's font lacks."""


class GraphvizMissing(RuntimeError):  # noqa: N818 (reads as what it says)
    """No program on this machine draws a picture; the `.dot` file has been written in its place.

    Attributes:
        dot_file: Where the `.dot` file is.
    """

    def __init__(self, path: Path, dot_file: Path) -> None:
        self.dot_file = dot_file
        suffix = path.suffix.lower()
        needed = "Graphviz's `dot` is not installed"
        if suffix not in _PURE_PICTURES:
            needed = f"{suffix} needs Graphviz's own `dot`, which is not installed"
        super().__init__(f"cannot draw {path}: {needed} ({_INSTALL}); wrote {dot_file} instead")


def render(
    graph: AttributionGraph | pydot.Dot | str,
    path: str | os.PathLike[str],
    figure: Figure | None = None,
    programs: Sequence[str] = PROGRAMS,
) -> str:
    """Draw a graph, or DOT already made from one, as `.svg`, `.pdf` or `.png`.

    Args:
        graph: A graph (what its masks keep is drawn), a `pydot.Dot`, or DOT text.
        path: The picture; its suffix names the format.
        figure: What of a graph to draw, and how; ignored for DOT.
        programs: Which programs may draw it, best first.

    Returns:
        What drew it, such as "dot 2.43.0" or "graphviz-pure 0.2.2".

    Raises:
        GraphvizMissing: Nothing on this machine draws this format; the `.dot` has been written beside the picture's path.
        TimeoutError: Graphviz looked for places longer than `TIME_LIMIT`; nothing is left behind.
        OSError: Graphviz failed, or the file cannot be written; nothing is left behind.
        ValueError: Unknown suffix.

    Example:
        >>> render(prune(graph), "dallas.svg")
        'dot 2.43.0'
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in PICTURES:
        raise ValueError(f"unknown picture suffix {path.suffix!r} of {path}: known are {', '.join(PICTURES)}")
    if isinstance(graph, AttributionGraph):
        graph = to_pydot(graph, figure)
    text = graph if isinstance(graph, str) else graph.to_string()
    for name in programs:
        if (name == "dot" or suffix in _PURE_PICTURES) and (program := _find(name)) is not None:
            write_atomically(path, (_run if name == "dot" else _run_pure)(program, text, path))
            return _name_of(program)
    dot_file = path.with_suffix(".dot")
    write_atomically(dot_file, text.encode("utf-8"))
    raise GraphvizMissing(path, dot_file)


def graphviz_program() -> str | None:
    """Return what draws pictures on this machine, such as "dot 2.43.0" or "graphviz-pure 0.2.2"; None if nothing does."""
    found = (program for name in PROGRAMS if (program := _find(name)) is not None)
    return next(map(_name_of, found), None)


def _find(name: str) -> str | None:
    if name == "dot":
        return shutil.which("dot")
    # Installed beside crosstrace, it is on the path only while the environment is activated.
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


@cache
def _name_of(program: str) -> str:
    done = subprocess.run([program, "-V"], capture_output=True, text=True, errors="replace", check=False)
    found = re.search(r"version (\d[\w.~-]*)", done.stderr + done.stdout)
    return f"{Path(program).stem} {found[1] if found else 'of unknown version'}"


def _run(program: str, text: str, path: Path) -> bytes:
    suffix = path.suffix.lower()
    resolution = ["-Gdpi=120"] if suffix == ".png" else []
    command = [program, f"-T{suffix[1:]}", *resolution]
    limit = None if _PLACED.search(text) else TIME_LIMIT
    try:
        done = subprocess.run(command, input=text.encode("utf-8"), capture_output=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        n_edges = text.count('" -> "')
        raise TimeoutError(
            f"cannot draw {path}: Graphviz was not done with {n_edges:,} edges after {limit} s; prune more, draw the "
            f"strongest paths alone (--top-paths), or take --layout positions; that has no time limit, nor has dot on a .dot"
        ) from None
    if done.returncode != 0 or not done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"]
        raise OSError(f"cannot draw {path}: Graphviz failed: {said[0]}")
    return done.stdout


def _run_pure(program: str, text: str, path: Path) -> bytes:
    if path.suffix.lower() == ".svg":
        return _centred(_run(program, text, path).decode("utf-8")).encode("utf-8")
    drawn = text.translate(_STAND_INS)
    if lacking := sorted(set(_IN_FONT.sub("", _TOOLTIP.sub("", drawn)))):
        warnings.warn(
            f"{path}: {_name_of(program)} has no letters for {' '.join(lacking[:8])}{' …' if len(lacking) > 8 else ''} and "
            f"draws boxes; write .svg instead, or install Graphviz ({_INSTALL})",
            LettersMissing,
            stacklevel=3,
        )
    return _run(program, drawn, path)


_SVG_NODE = re.compile(r'<g id="[^"]*" class="node">.*?\n</g>\n(?=<|$)', re.DOTALL)
_SVG_SHAPE = re.compile(r' (?:points|d)="([^"]*)"')
_SVG_START = re.compile(r'text-anchor="start" x="[^"]*"')


def _centred(svg: str) -> str:
    """Lines of a node's label are placed by their estimated width: where that is wrong, they are off the centre."""

    def centre(node: re.Match[str]) -> str:
        if (shape := _SVG_SHAPE.search(node[0])) is None:
            return node[0]
        across = [float(x) for x in re.findall(r"(-?[\d.]+),", shape[1])]
        middle = f"{(min(across) + max(across)) / 2:.2f}"
        return _SVG_START.sub(f'text-anchor="middle" x="{middle}"', node[0])

    return _SVG_NODE.sub(centre, svg)
