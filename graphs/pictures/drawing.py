"""A picture before anything has its place: nodes with their lines of text, edges, frames, a caption.

Only names, words and numbers are left of the graph, so that a group is a node like any other.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from crosstrace.graphs.cards.labels import is_automatic
from crosstrace.graphs.text import short

FONT_SIZE, SMALL_FONT_SIZE = 10.0, 7.5
LABEL_WIDTH, LABEL_LINES = 13, 2


@dataclass(frozen=True)
class Line:
    """A line of a node's label."""

    text: str
    small: bool = False
    scale: float = 1.0

    @property
    def size(self) -> float:
        """Of the font, in points."""
        return self.scale * (SMALL_FONT_SIZE if self.small else FONT_SIZE)


@dataclass(frozen=True)
class DrawnNode:
    """A node of a picture."""

    name: str
    """Unique: the id of the JSON export, or `supernode-0`."""
    kind: str
    """Feature, error, token, logit, supernode, rest or unexplained, in lower case."""
    row: int
    """Its layer; -1 for tokens, L for targets."""
    position: int
    lines: tuple[Line, ...]
    about: str
    """What the tooltip says: a line that describes it, and a line of details."""
    group: int = -1
    """The frame it is in, an index into `Drawing.groups`; -1 for none."""


@dataclass(frozen=True)
class DrawnEdge:
    """An edge of a picture, between names of nodes."""

    source: str
    target: str
    weight: float
    about: str
    """What the tooltip says."""
    share: float = 1.0
    """Of its target's absolute input, 0 to 1: the width of its line."""
    label: str = ""
    """Stands on the line."""


@dataclass(frozen=True)
class Drawing:
    """A picture before anything has its place."""

    title: str
    n_layers: int
    nodes: list[DrawnNode]
    edges: list[DrawnEdge]
    """Weakest first, so that strong ones are drawn over weak ones."""
    groups: list[str]
    """Names of the frames."""
    rows: dict[int, str] | None = None
    """Names of the rows where they are not single layers."""
    caption: list[str] = field(default_factory=list)
    """Sentences under the picture."""


def wrapped(label: str, scale: float = 1.0, width: int = LABEL_WIDTH, most: int = LABEL_LINES) -> list[Line]:
    """Return a label as a few lines; what does not fit ends in "…".

    Args:
        label: Any text.
        scale: Of the letters.
        width: Letters in a line.
        most: How many lines.
    """
    if is_automatic(label):  # the mark does not stand on a line of its own
        label, width = label.replace(" ", "\xa0", 1), width + label.find(" ") + 1
    text = short(label, width * most)
    # Nor does the ellipsis: textwrap breaks at plain blanks only.
    lines = [line.replace("\xa0…", " …") for line in textwrap.wrap(text.replace(" …", "\xa0…"), width)] or [text]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: width - 1].rstrip(" ,…") + "…"]
    return [Line(line, scale=scale) for line in lines]
