"""The graph in Graphviz's DOT language, as a `Figure` says.

In the layout `positions` the engine named in the file is `nop`: every node has its place (see `placement.py`) and only
the edges are routed, so that plain `dot -Tsvg graph.dot` draws it. The other layouts leave the places to Graphviz:
`layers` to `dot`, one rank per layer; `force` to `sfdp`, or to `fdp` where there are frames, which `sfdp` cannot draw.

Colours are those of Okabe & Ito 2008, which colour-blind readers can tell apart; every node type also has its own shape.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from crosstrace.graphs.cards.labels import GUESS_LEGEND, is_weak_guess
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.pictures.drawing import FONT_SIZE, Drawing, DrawnEdge, DrawnNode, Line
from crosstrace.graphs.pictures.figure import Figure, drawing_of
from crosstrace.graphs.pictures.placement import Picture, arrange, frame_label, row_name, size_of, text_width
from crosstrace.graphs.text import short, visible

if TYPE_CHECKING:
    import pydot

FONT = "Helvetica"  # one name and not a list: graphviz-pure knows its measures, browsers and Graphviz what is like it
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"
_FEATURE = {"style": "rounded,filled", "fillcolor": "#DCEEF9", "color": "#56B4E9"}
STYLES = {
    "feature": {"shape": "box"} | _FEATURE,
    "supernode": {"shape": "box", "peripheries": "2"} | _FEATURE,
    "rest": {"shape": "box", "style": "rounded,dashed", "color": "#8A97A3", "fontcolor": "#555555"},
    "unexplained": {"shape": "box", "style": "dashed", "color": "#999999", "fontcolor": "#555555"},
    "error": {"shape": "diamond", "style": "filled", "fillcolor": "#CCCCCC", "color": "#999999"},
    "token": {"shape": "box", "style": "filled", "fillcolor": "#FBE6BF", "color": "#E69F00"},
    "logit": {"shape": "octagon", "style": "filled", "fillcolor": "#C5E8DC", "color": "#009E73"},
}
_NAMES = {
    "feature": "feature",
    "supernode": "group of features",
    "rest": "small remainder",
    "unexplained": "errors of a position",
    "error": "error",
    "token": "token",
    "logit": "output",
}
_HTML_SIGNS = {
    "\\": "\\\\",
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    # Graphviz hands its XML parser one piece of text at a time: a last "]" might begin "]]>", and is an error there.
    "]": "&#93;",
}
_CAPTION_SIZE = 9
_FRAME = {"style": "rounded,filled", "fillcolor": "#F4F6F8", "color": "#8A97A3", "fontcolor": "#333333"}


def write_dot(graph: AttributionGraph, path: str | os.PathLike[str], figure: Figure | None = None) -> None:
    """Write what the masks keep (all of a raw graph), or what `figure` shows of it, as `.dot`.

    Args:
        graph: Raw or pruned.
        path: The file.
        figure: What of it is drawn, and how; all that the masks keep if None.

    Raises:
        OSError: The file cannot be written; nothing is left behind.

    Example:
        >>> write_dot(prune(graph), "dallas.dot")    # dot -Tsvg dallas.dot -o dallas.svg
    """
    write_atomically(path, to_pydot(graph, figure).to_string().encode("utf-8"))


def to_pydot(graph: AttributionGraph, figure: Figure | None = None) -> pydot.Dot:
    """Return what `write_dot` writes. Nodes are named by the ids of the JSON export, merged ones `supernode-0` and so on.

    Example:
        >>> to_pydot(prune(graph)).get_type()
        'digraph'
    """
    figure = figure or Figure()
    return dot_of_drawing(drawing_of(graph, figure), figure)


def dot_of_drawing(drawing: Drawing, figure: Figure | None = None) -> pydot.Dot:
    """Return a drawing in DOT.

    Args:
        drawing: What is drawn.
        figure: How; only its layout counts.
    """
    figure = figure or Figure()
    dot = _empty(figure, drawing)
    if figure.layout == "positions":
        picture = arrange(drawing)
        _add_nodes(dot, drawing, figure, picture)
        _add_frames(dot, drawing, picture)
        _add_edges(dot, drawing)
        _add_edge_labels(dot, drawing, picture)
        _add_margins(dot, drawing, picture)
    else:
        _add_nodes(dot, drawing, figure, None)
        _add_clusters(dot, drawing)
        _add_edges(dot, drawing)
    return dot


def quoted(text: str) -> str:
    """Return a DOT string that Graphviz shows as `text`, for attributes in which it expands escapes (labels).

    Backslashes are doubled (`\\N` would become the node's name) and `&` is written as an entity (`&amp;` would become
    `&`). pydot leaves a string that is already quoted alone; its own quoting does neither.
    """
    text = visible(text).replace("\\", "\\\\").replace("&", "&amp;").replace('"', '\\"')
    return f'"{text}"'


def tooltip(text: str) -> str:
    """Return the same as `quoted`, for tooltips: versions of Graphviz expand their escapes once or twice, so none are left."""
    return quoted(text.replace("\\", "∖"))


def html(lines: tuple[Line, ...], bold: bool = True) -> str:
    """Return an HTML-like label, one line of text under the other."""
    shown = []
    for line in lines:
        text = _html_text(line.text)
        if line.small:
            text = f'<font point-size="{line.size:.3g}" color="#555555">{text}</font>'
        elif line.scale != 1:
            text = f'<font point-size="{line.size:.3g}">{text}</font>'
        shown.append(f"<b>{text}</b>" if bold and not line.small else text)
    return f"<{'<br/>'.join(shown)}>"


def _html_text(text: str) -> str:
    # Graphviz expands backslash escapes in HTML-like labels too.
    return "".join(_HTML_SIGNS.get(character, character) for character in visible(text))


def _empty(figure: Figure, drawing: Drawing) -> pydot.Dot:
    """The graph's own attributes; where Graphviz chooses the places, prompt and legend are the graph's label."""
    import pydot

    attributes: dict[str, Any] = {
        "positions": {"layout": "nop", "rankdir": "BT", "splines": "line"},
        "layers": {"layout": "dot", "rankdir": "BT", "splines": "line", "nodesep": "0.15", "ranksep": "0.6"}
        # Without these bounds the search for good places takes minutes at 300 nodes.
        | {"nslimit": "2", "nslimit1": "2", "mclimit": "0.5"},
        "force": {"layout": "fdp" if drawing.groups else "sfdp", "overlap": "prism", "splines": "line", "K": "0.9"},
    }[figure.layout]
    if figure.layout != "positions":
        attributes |= {"label": _caption(drawing), "labelloc": "t"}
    dot = pydot.Dot(
        "attribution_graph",
        graph_type="digraph",
        newrank="true",
        outputorder="edgesfirst",
        bgcolor=quoted("white"),
        fontname=quoted(FONT),
        pad="0.3",
        **attributes,
    )
    dot.set_node_defaults(fontname=quoted(FONT), fontsize=f"{FONT_SIZE:g}", fixedsize="true", penwidth="1.2")
    dot.set_edge_defaults(arrowsize="0.5", fontname=quoted(FONT))
    return dot


def _add_nodes(dot: pydot.Dot, drawing: Drawing, figure: Figure, picture: Picture | None) -> None:
    """The nodes, in one `rank=same` group per layer unless layers are left out."""
    rows: dict[int, list[DrawnNode]] = defaultdict(list)
    for node in drawing.nodes:
        rows[node.row].append(node)
    for row in sorted(rows):
        part = dot if figure.layout == "force" else _rank(dot, row)
        for node in rows[row]:
            part.add_node(_node(node, picture))
        if figure.layout == "layers":  # nodes without edges between their layers would share a rank
            part.add_node(_note(_anchor(row), (60, 12), quoted(row_name(drawing, row)), fontsize="9"))
    if figure.layout == "layers":
        for lower, upper in pairwise(sorted(rows)):
            dot.add_edge(_edge(_anchor(lower), _anchor(upper), style="invis", weight="9"))
        # Graphviz chooses the order within a rank, but the prompt should read as it was written.
        tokens = sorted((node for node in drawing.nodes if node.kind == "token"), key=lambda node: node.position)
        for left, right in pairwise(tokens):
            dot.add_edge(_edge(left.name, right.name, style="invis"))


def _anchor(row: int) -> str:
    return f"note_rank_{row + 2}"


def _rank(dot: pydot.Dot, row: int) -> pydot.Subgraph:
    import pydot

    part = pydot.Subgraph(f"layer_{row + 2}", rank="same")
    dot.add_subgraph(part)
    return part


def _node(node: DrawnNode, picture: Picture | None) -> pydot.Node:
    import pydot

    width, height = size_of(node)
    attributes: dict[str, Any] = {}
    if picture is not None:
        box = picture.boxes[node.name]
        attributes["pos"] = _pos(box.x, box.y)
    return pydot.Node(
        quoted(node.name),
        label=html(node.lines, bold=node.kind != "token") if node.lines else quoted(""),
        tooltip=tooltip(", ".join(node.about.split("\n"))),
        **attributes,
        **_size(width, height),
        **_quoted_values(STYLES[node.kind]),
    )


def _edge(source: str, target: str, **attributes: Any) -> pydot.Edge:
    import pydot

    return pydot.Edge(quoted(source), quoted(target), **attributes)


def _add_edges(dot: pydot.Dot, drawing: Drawing) -> None:
    strongest = max((edge.share for edge in drawing.edges), default=0.0)
    for edge in drawing.edges:
        strength = math.sqrt(edge.share / strongest)
        opacity = round(255 * (0.15 + 0.75 * strength))
        dot.add_edge(
            _edge(
                edge.source,
                edge.target,
                penwidth=f"{0.3 + 4 * strength:.3f}",
                arrowsize=f"{0.25 + 0.35 * strength:.3f}",
                color=quoted(f"{POSITIVE if edge.weight > 0 else NEGATIVE}{opacity:02X}"),
                # Greyscale shows the sign, too.
                **({} if edge.weight > 0 else {"style": "dashed"}),
                tooltip=tooltip(edge.about),
            )
        )


def _add_frames(dot: pydot.Dot, drawing: Drawing, picture: Picture) -> None:
    """A cluster with its place for each frame: one per group and position."""
    inside: dict[tuple[int, int], list[str]] = defaultdict(list)
    for node in drawing.nodes:
        if node.group >= 0:
            inside[node.group, node.position].append(node.name)
    for i, (frame, ((group, _), names)) in enumerate(zip(picture.frames, inside.items(), strict=True)):
        label = frame_label(drawing.groups[group])
        bounds = ",".join(f"{value:.2f}" for value in (frame.left, frame.bottom, frame.right, frame.top))
        middle = f"{(frame.left + frame.right) / 2:.2f},{frame.top - 7:.2f}"
        _add_cluster(dot, i, label, names, bb=quoted(bounds), lp=quoted(middle))


def _add_clusters(dot: pydot.Dot, drawing: Drawing) -> None:
    inside: dict[int, list[str]] = defaultdict(list)
    for node in drawing.nodes:
        if node.group >= 0:
            inside[node.group].append(node.name)
    for group, names in inside.items():
        _add_cluster(dot, group, frame_label(drawing.groups[group]), names)


def _add_cluster(dot: pydot.Dot, i: int, label: str, names: list[str], **attributes: str) -> None:
    import pydot

    style: dict[str, Any] = _quoted_values(_FRAME) | attributes
    cluster: Any = pydot.Cluster(f"{i}", label=quoted(label), fontsize="8", **style)
    for name in names:
        cluster.add_node(pydot.Node(quoted(name)))
    dot.add_subgraph(cluster)


def _add_margins(dot: pydot.Dot, drawing: Drawing, picture: Picture) -> None:
    """Row names at the left, the prompt above, legend and caption below: as nodes named `note_…`."""
    for i, row in enumerate(picture.rows):
        place = (-50.0, (row.bottom + row.top) / 2)
        dot.add_node(_note(f"note_row_{i}", (60, 20), quoted(row.name), place))
    title = short(drawing.title, max(60, int(picture.width / 8)))
    style = {"fontname": quoted(f"{FONT}-Bold"), "fontsize": "13", "fontcolor": quoted("#000000"), "margin": "0"}
    _add_left_aligned(dot, "note_title", title, 13, picture.height + 36, style)
    x, y = -60.0, -38.0
    for kind in _kinds(drawing):
        dot.add_node(_note(f"note_{kind}", (10, 10), quoted(""), (x, y), **_quoted_values(STYLES[kind])))
        room = text_width(_NAMES[kind], 9)
        name = quoted(_NAMES[kind])
        dot.add_node(_note(f"note_{kind}_name", (room, 12), name, (x + 10 + room / 2, y), fontsize="9"))
        x += 34 + room
    for sign, colour, bars in (("raises", POSITIVE, ((5, 20),)), ("lowers", NEGATIVE, ((-1, 6), (9, 6)))):
        for k, (along, width) in enumerate(bars):
            bar = {"shape": "box", "style": "filled", "fillcolor": colour, "color": colour, "penwidth": "0"}
            name = f"note_{sign}_{k}"
            dot.add_node(_note(name, (width, 3), quoted(""), (x + along, y), **_quoted_values(bar)))
        dot.add_node(_note(f"note_{sign}_name", (40, 12), quoted(sign), (x + 37, y), fontsize="9"))
        x += 76
    if _has_weak_guesses(drawing):
        room = text_width(GUESS_LEGEND, 9)
        dot.add_node(_note("note_guess", (room, 12), quoted(GUESS_LEGEND), (x + room / 2, y), fontsize="9"))
        x += room
    letters = max(int((max(picture.width, x) + 60) / text_width("n", _CAPTION_SIZE)), 60)
    for i, line in enumerate(line for text in drawing.caption for line in textwrap.wrap(visible(text), letters)):
        style = {"fontsize": f"{_CAPTION_SIZE}", "margin": "0", "fontcolor": quoted("#333333")}
        _add_left_aligned(dot, f"note_caption_{i}", line, _CAPTION_SIZE, y - 20 - 13 * i, style)


def _add_left_aligned(dot: pydot.Dot, name: str, text: str, size: float, y: float, style: dict[str, Any]) -> None:
    width = text_width(text, size)
    dot.add_node(
        _note(name, (width, 1.8 * size), quoted(text).removesuffix('"') + '\\l"', (width / 2 - 68, y), **style)
    )


def _add_edge_labels(dot: pydot.Dot, drawing: Drawing, picture: Picture) -> None:
    """Figures on lines: notes with a ground, nearer to the target, where lines of one source have parted."""
    for i, edge in enumerate(edge for edge in drawing.edges if edge.label):
        if (place := _free_place(picture, edge)) is None:
            continue
        ground = _quoted_values({"style": "filled", "fillcolor": "#FFFFFFD0", "fontcolor": "#333333"})
        size = (text_width(edge.label, 7) + 1, 9)
        dot.add_node(_note(f"note_edge_{i}", size, quoted(edge.label), place, fontsize="7", margin="0", **ground))


def _free_place(picture: Picture, edge: DrawnEdge) -> tuple[float, float] | None:
    """A point on a line that is on no node; None if there is none."""
    a, b = picture.boxes[edge.source], picture.boxes[edge.target]
    for part in (0.6, 0.5, 0.7, 0.4, 0.3):
        x, y = a.x + part * (b.x - a.x), a.y + part * (b.y - a.y)
        boxes = picture.boxes.values()
        if not any(abs(box.x - x) < box.width / 2 + 8 and abs(box.y - y) < box.height / 2 + 4 for box in boxes):
            return x, y
    return None


def _kinds(drawing: Drawing) -> list[str]:
    """Kinds in the legend: groups and remainders only where there are some."""
    there = {node.kind for node in drawing.nodes}
    always = set() if drawing.caption and "unexplained" in there else {"feature", "error", "token", "logit"}
    return [kind for kind in STYLES if kind in there | always]


def _has_weak_guesses(drawing: Drawing) -> bool:
    named = (node for node in drawing.nodes if node.kind in ("feature", "supernode"))
    return any(is_weak_guess(line.text.replace("\xa0", " ")) for node in named for line in node.lines)


def _caption(drawing: Drawing) -> str:
    """The prompt over the legend, as an HTML-like label."""
    swatches = [(STYLES[kind].get("fillcolor", "#F0F0F0"), _NAMES[kind]) for kind in _kinds(drawing)]
    swatches += [(POSITIVE, "raises"), (NEGATIVE, "lowers (dashed)")]
    cells = "".join(
        f'<td width="14" height="8" fixedsize="true" bgcolor="{colour}"></td><td><font point-size="9">{name} </font></td>'
        for colour, name in swatches
    )
    if _has_weak_guesses(drawing):
        cells += f'<td><font point-size="9">{_html_text(GUESS_LEGEND)}</font></td>'
    title = f'<font point-size="13"><b>{_html_text(short(drawing.title, 90))}</b></font>'
    lines = [line for text in drawing.caption for line in textwrap.wrap(visible(text), 120)]
    said = "".join(f'<tr><td align="left"><font point-size="9">{_html_text(line)}</font></td></tr>' for line in lines)
    legend = f'<tr><td><table border="0"><tr>{cells}</tr></table></td></tr>'
    return f'<<table border="0"><tr><td>{title}</td></tr>{legend}{said}</table>>'


def _note(
    name: str, size: tuple[float, float], label: str, place: tuple[float, float] | None = None, **style: Any
) -> pydot.Node:
    import pydot

    # Text may be wider than its place where it is drawn in another font than it was measured in; "shape" allows that.
    attributes: dict[str, Any] = {"shape": "plaintext", "fontcolor": quoted("#555555"), "fixedsize": "shape"} | style
    if place is not None:
        attributes["pos"] = _pos(*place)
    return pydot.Node(name, label=label, **_size(*size), **attributes)


def _quoted_values(attributes: dict[str, str]) -> dict[str, Any]:
    return {name: quoted(value) for name, value in attributes.items()}


def _size(width: float, height: float) -> dict[str, Any]:
    # Graphviz has places in points and sizes in inches.
    return {"width": f"{width / 72:.4f}", "height": f"{height / 72:.4f}"}


def _pos(x: float, y: float) -> str:
    # "!" pins the place for engines that would move it.
    return f'"{x:.2f},{y:.2f}!"'
