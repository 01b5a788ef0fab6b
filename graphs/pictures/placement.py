"""Where everything stands in a picture: one row per layer, tokens at the bottom, targets on top, columns by position.

Graphviz's own layered layout keeps the rows but not the columns, and took 5 s at 160 nodes instead of half a second. So
places are computed here, and Graphviz draws. A cell (row, position) with many nodes wraps into several lines of nodes.
Within a column, each group (supernode) has its own lane over the rows that it spans, so that the frame around it holds
its members alone; a group that spans several positions has a frame at each. Without groups, columns are bent a little:
in a straight one all edges between its rows would fall on one line.
Units are points (1/72 inch), y upwards.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field, replace

from crosstrace.graphs.pictures.drawing import FONT_SIZE, Drawing, DrawnNode
from crosstrace.graphs.text import short

_ERROR_SIZE = 10.0
_BEND = 0.18  # share of a picture's height by which the middle of a column stands to the right of its ends
_IN_LINE = 3  # nodes of a story side by side: there, edges run between neighbouring layers of one position
_FRAME, _FRAME_TITLE, _LANE_GAP = 5.0, 10.0, 8.0


@dataclass(frozen=True)
class _Gaps:
    """Space between boxes, lines of boxes and columns, and the least and most between rows."""

    box: float
    line: float
    column: float
    rows: tuple[float, float]


_ROOMY = _Gaps(box=8.0, line=8.0, column=20.0, rows=(30.0, 110.0))
# A large graph is shown smaller: less space between nodes makes larger letters.
_DENSE = _Gaps(box=4.0, line=5.0, column=8.0, rows=(22.0, 60.0))
_LARGE = 120


@dataclass(frozen=True)
class Box:
    """A node's centre and size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Frame:
    """A rectangle around the members of a group at one position, with room for the group's name."""

    group: int
    left: float
    bottom: float
    right: float
    top: float


@dataclass(frozen=True)
class Row:
    """A band of the picture: the name at its left, and its vertical extent."""

    name: str
    bottom: float
    top: float


@dataclass(frozen=True)
class Picture:
    """Where everything stands."""

    boxes: dict[str, Box]
    """By node name."""
    rows: list[Row]
    frames: list[Frame]
    width: float
    height: float


@dataclass
class _Lane:
    """Part of a column: the nodes of each row, side by side in `across` slots, then in further lines."""

    cells: dict[int, list[DrawnNode]]
    gap: float
    framed: bool
    in_line: bool = False
    """A few nodes stand side by side rather than in several lines."""
    left: float = 0.0
    names: list[str] = field(default_factory=list)
    """Of the groups in it: there is room for each on its frame."""

    @property
    def slot(self) -> float:
        """Width for one node."""
        return max((size_of(node)[0] for cell in self.cells.values() for node in cell), default=0.0) + self.gap

    @property
    def across(self) -> int:
        """Number of slots side by side."""
        if self.in_line:
            return max(min(max(map(len, self.cells.values()), default=1), _IN_LINE), 1)
        # Boxes are wider than tall: this makes a full cell about square.
        return max((math.ceil(math.sqrt(len(cell) * 0.4)) for cell in self.cells.values()), default=0) or 1

    @property
    def width(self) -> float:
        room = self.across * self.slot if self.cells else 0.0
        return max([room, *(_frame_room(name) for name in self.names)])

    def lines(self, row: int) -> int:
        """Number of lines of nodes in a row."""
        return math.ceil(len(self.cells.get(row, ())) / self.across)


@dataclass
class _Column:
    """One position: errors in a strip at the left, where they are out of the way; then the lanes."""

    errors: dict[int, DrawnNode]
    lanes: list[_Lane]
    gap: float
    left: float = 0.0

    @property
    def strip(self) -> float:
        """Width of the errors' strip."""
        return _ERROR_SIZE + self.gap if self.errors else 0.0

    @property
    def inner(self) -> float:
        """Where the lanes begin."""
        return self.left + self.strip

    @property
    def room(self) -> float:
        """Width of all lanes."""
        return max(sum(lane.width for lane in self.lanes) + _LANE_GAP * (len(self.lanes) - 1), 0.0)

    def alone(self, lane: _Lane, row: int) -> bool:
        """Whether a lane has the row to itself: nothing in it is in a group, and no frame passes through it."""
        return not lane.framed and not any(
            min(other.cells) <= row <= max(other.cells) for other in self.lanes if other is not lane
        )


def arrange(drawing: Drawing) -> Picture:
    """Return the places of a drawing's nodes and frames; rows and columns without nodes take no room."""
    gaps = _ROOMY if len(drawing.nodes) <= _LARGE else _DENSE
    positions = sorted({node.position for node in drawing.nodes})
    columns = [_column([node for node in drawing.nodes if node.position == p], gaps.box, drawing) for p in positions]
    x = 0.0
    for column in columns:
        column.left = x
        inner = column.inner
        for lane in column.lanes:
            lane.left = inner
            inner += lane.width + _LANE_GAP
        x += column.strip + column.room + gaps.column
    width = max(x - gaps.column, 0.0)

    lanes = [lane for column in columns for lane in column.lanes]
    rows = sorted({node.row for node in drawing.nodes})
    heights = {
        row: max((size_of(n)[1] for lane in lanes for n in lane.cells.get(row, ())), default=_ERROR_SIZE)
        for row in rows
    }
    bands = {
        row: max((lane.lines(row) for lane in lanes), default=1) * (heights[row] + gaps.line) - gaps.line
        for row in rows
    }
    bands = {row: max(band, _ERROR_SIZE) for row, band in bands.items()}
    # A wide picture has more room between its rows: flat edges are hard to tell apart.
    spare = 0.45 * width - sum(bands.values())
    row_gap = min(max(spare / max(len(rows) - 1, 1), gaps.rows[0]), gaps.rows[1])

    boxes: dict[str, Box] = {}
    named_rows: list[Row] = []
    y = 0.0
    for row in rows:
        middle = y + bands[row] / 2
        for column in columns:
            if row in column.errors:
                boxes[column.errors[row].name] = Box(column.left + _ERROR_SIZE / 2, middle, _ERROR_SIZE, _ERROR_SIZE)
            for lane in column.lanes:
                left, width = (column.inner, column.room) if column.alone(lane, row) else (lane.left, lane.width)
                boxes |= _boxes(lane, row, left + width / 2, middle, heights[row] + gaps.line)
        named_rows.append(Row(row_name(drawing, row), y, y + bands[row]))
        y += bands[row] + row_gap
    frames, height = _frames(drawing, boxes), max(y - row_gap, 0.0)
    if not frames:
        narrowest = min((column.strip + column.room for column in columns), default=0.0)
        boxes = _bent(drawing, boxes, height, narrowest)
    right = [box.x + box.width / 2 for box in boxes.values()] + [frame.right for frame in frames]
    return Picture(boxes, named_rows, frames, max(right, default=0.0), height)


def _bent(drawing: Drawing, boxes: dict[str, Box], height: float, narrowest: float) -> dict[str, Box]:
    """Columns as arcs, so that edges of one column do not all run along one line.

    They are bent by less than half the width of the narrowest column, so that a node stands above its own token. The last
    one, which has most of the nodes, may be bent more: there is no column to its right.
    """
    last = max((node.position for node in drawing.nodes), default=0)
    bent = {}
    for node in drawing.nodes:
        box = boxes[node.name]
        along = box.y / height if height else 0.0
        bend = _BEND * height if node.position == last else min(_BEND * height, 0.4 * narrowest)
        bent[node.name] = replace(box, x=box.x + 4 * bend * along * (1 - along))
    return bent


def _column(nodes: list[DrawnNode], gap: float, drawing: Drawing) -> _Column:
    """A column whose first lane holds what is in no group; groups share a lane where their rows do not overlap."""
    errors = {node.row: node for node in nodes if node.kind == "error" and node.group < 0}
    single: dict[int, list[DrawnNode]] = defaultdict(list)
    groups: dict[int, dict[int, list[DrawnNode]]] = defaultdict(lambda: defaultdict(list))
    for node in nodes:
        if errors.get(node.row) is not node:
            (single if node.group < 0 else groups[node.group])[node.row].append(node)
    lanes = [_Lane(single, gap, framed=False, in_line=drawing.rows is not None)] if single else []
    shared: list[_Lane] = []
    for group, cells in sorted(groups.items(), key=lambda item: (min(item[1]), max(item[1]))):
        free = next((lane for lane in shared if max(lane.cells) < min(cells)), None)
        if free is None:
            free = _Lane({}, gap, framed=True)
            shared.append(free)
        free.cells |= cells
        free.names.append(drawing.groups[group])
    return _Column(errors, lanes + shared, gap)


def _boxes(lane: _Lane, row: int, centre: float, middle: float, pitch: float) -> dict[str, Box]:
    cell, slot, across = lane.cells.get(row, []), lane.slot, lane.across
    boxes = {}
    for i, node in enumerate(cell):
        line, place = divmod(i, across)
        in_line = min(across, len(cell) - line * across)
        x = centre + (place - (in_line - 1) / 2) * slot
        y = middle + ((lane.lines(row) - 1) / 2 - line) * pitch
        boxes[node.name] = Box(x, y, *size_of(node))
    return boxes


def _frames(drawing: Drawing, boxes: dict[str, Box]) -> list[Frame]:
    members: dict[tuple[int, int], list[Box]] = defaultdict(list)
    for node in drawing.nodes:
        if node.group >= 0:
            members[node.group, node.position].append(boxes[node.name])
    frames = []
    for (group, _), own in members.items():
        left = min(box.x - box.width / 2 for box in own) - _FRAME
        right = max(box.x + box.width / 2 for box in own) + _FRAME
        spare = max(_frame_room(drawing.groups[group]) - (right - left), 0.0) / 2
        bottom = min(box.y - box.height / 2 for box in own) - _FRAME
        top = max(box.y + box.height / 2 for box in own) + _FRAME + _FRAME_TITLE
        frames.append(Frame(group, left - spare, bottom, right + spare, top))
    return frames


def _frame_room(name: str) -> float:
    """Width that a frame needs for its name."""
    return text_width(frame_label(name), 8) + 6


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """Return the rough width of a text in points: Graphviz knows it better, but only after the layout.

    Args:
        text: One line.
        size: Of the font, in points.
    """
    # Parts of emoji (flags, families) count as wide, although Unicode does not call each of them so.
    wide = sum(unicodedata.east_asian_width(character) in "WF" or character >= "\U0001f000" for character in text)
    return size * (0.6 * (len(text) - wide) + 1.25 * wide)


def size_of(node: DrawnNode) -> tuple[float, float]:
    """Return width and height of a node's box, in points."""
    if node.kind == "error":
        return _ERROR_SIZE, _ERROR_SIZE
    width = max((text_width(line.text, line.size) for line in node.lines), default=0.0) + 12
    return max(width, 28.0), 8 + sum(1.2 * line.size for line in node.lines)


def frame_label(name: str) -> str:
    """Return what stands on a frame."""
    return short(name, 32)


def row_name(drawing: Drawing, row: int) -> str:
    """Return what to call a row: its layers, -1 for the tokens, L for the targets."""
    if row == drawing.n_layers:
        return "output"
    if drawing.rows is not None:
        return drawing.rows[row]
    return "tokens" if row < 0 else f"layer {row}"
