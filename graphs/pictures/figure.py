"""What a picture of a graph shows: nodes with their lines of text, edges, groups. `placement.py` says where it all stands.

A `Figure` says what to draw of a graph; `drawing_of` makes a `Drawing` of it, in which only names, words and numbers are
left, so that a merged supernode is a node like any other.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from crosstrace.graphs.analysis.paths import along_strongest_paths
from crosstrace.graphs.analysis.pruning import cumulative_influence
from crosstrace.graphs.analysis.subgraphs import restricted
from crosstrace.graphs.cards.labels import is_automatic
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.numbers import count, plain, probability, share, signed
from crosstrace.graphs.text import short
from crosstrace.graphs.viewer_ids import node_ids

FONT_SIZE, SMALL_FONT_SIZE = 10.0, 7.5
_LABEL_LINE, _LABEL_LINES = 13, 2

Layout = Literal["positions", "layers", "force"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Figure:
    """What to draw of a graph, and how.

    Raises:
        ValueError: The layout is unknown, `top_paths` is below 1, or a node is in two supernodes.

    Example:
        >>> write_dot(pruned, "paper.dot", Figure(top_paths=10, supernodes=suggest_supernodes(pruned), merged=True))
    """

    supernodes: Sequence[tuple[str, Sequence[int]]] = ()
    """(name, nodes) pairs, as `suggest_supernodes` and `read_state` return them: a frame is drawn around each."""
    merged: bool = False
    """Draw each supernode as one node; its edges are the sums of its members'."""
    only: Collection[int] | None = None
    """Draw only those of these nodes that pruning kept."""
    top_paths: int | None = None
    """Draw only this many of the strongest paths to the first target."""
    layout: Layout = "positions"
    """`positions`: layers by tokens of the prompt. `layers`: one rank per layer, order and columns chosen by Graphviz so
    that few edges cross. `force`: connected nodes near each other, without layers and positions."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}: known are {', '.join(LAYOUTS)}")
        if self.top_paths is not None and self.top_paths < 1:
            raise ValueError(f"top_paths must be at least 1, not {self.top_paths}")
        times_in = Counter(node for _, nodes in self.supernodes for node in set(nodes))
        if twice := [node for node, times in times_in.items() if times > 1]:
            raise ValueError(f"node {twice[0]} is in two supernodes; it can be in one only")

    def part_of(self, graph: AttributionGraph) -> AttributionGraph:
        """Return the graph with masks that keep what is drawn of it.

        Raises:
            ValueError: The graph does not have a node of `only`.
        """
        if self.only is not None:
            graph = restricted(graph, nodes=self.only)
        return graph if self.top_paths is None else along_strongest_paths(graph, self.top_paths)


@dataclass(frozen=True)
class Line:
    """A line of a node's label."""

    text: str
    small: bool = False

    @property
    def size(self) -> float:
        """Of the font, in points."""
        return SMALL_FONT_SIZE if self.small else FONT_SIZE


@dataclass(frozen=True)
class DrawnNode:
    """A node of a picture."""

    name: str
    """Unique: the id of the JSON export, or `supernode-0`."""
    kind: str
    """Feature, error, token, logit, or supernode, in lower case."""
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


def drawing_of(graph: AttributionGraph, figure: Figure) -> Drawing:
    """Return what `figure` shows of what the graph's masks keep (all of a raw graph).

    Raises:
        ValueError: The graph does not have a node that the figure names.
    """
    graph = figure.part_of(graph)
    kept = set(graph.kept_nodes())
    supernodes = [(name, [node for node in nodes if node in kept]) for name, nodes in figure.supernodes]
    supernodes = [(name, nodes) for name, nodes in supernodes if nodes]
    group_of = {node: i for i, (_, nodes) in enumerate(supernodes) for node in nodes}
    ids, influence = node_ids(graph), cumulative_influence(graph).tolist()

    names = {node: ids[node] for node in kept}
    nodes = []
    for node in sorted(kept):
        group = group_of.get(node, -1)
        if figure.merged and group >= 0:
            names[node] = f"supernode-{group}"
        else:
            nodes.append(_single(graph, node, ids[node], influence[node], group))
    if figure.merged:
        nodes += [_merged(graph, f"supernode-{i}", name, members) for i, (name, members) in enumerate(supernodes)]
    return Drawing(
        title=graph.prompt,
        n_layers=graph.n_layers,
        nodes=nodes,
        edges=_edges(graph, names, {node.name: node for node in nodes}),
        groups=[] if figure.merged else [name for name, _ in supernodes],
    )


def _edges(graph: AttributionGraph, names: dict[int, str], drawn: dict[str, DrawnNode]) -> list[DrawnEdge]:
    """Sums of the kept edges between nodes that are drawn apart."""
    edges = graph.kept_edges().tocoo()
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for source, target, weight in zip(edges.col.tolist(), edges.row.tolist(), edges.data.tolist(), strict=True):
        if names[source] != names[target]:
            sums[names[source], names[target]] += weight
    ordered = sorted(((ends, weight) for ends, weight in sums.items() if weight), key=lambda item: abs(item[1]))

    def called(name: str) -> str:
        return drawn[name].about.split("\n")[0]

    return [
        DrawnEdge(source, target, weight, f"{called(source)} → {called(target)}: {signed(weight)}")
        for (source, target), weight in ordered
    ]


def _single(graph: AttributionGraph, node: int, name: str, influence: float, group: int) -> DrawnNode:
    kind = graph.layout.kind(node)
    layer, position = graph.place_of(node)
    about = f"id {name}, enters at {share(influence)} of influence"
    if kind == "feature":
        index = int(graph.selected_features[graph.layout.feature_of(node)])
        about += f", activation {plain(float(graph.activations[index]))}"
    return DrawnNode(
        name,
        kind,
        graph.n_layers if kind == "logit" else layer,
        position,
        _lines(graph, node),
        f"{graph.describe(node)}\n{about}",
        group,
    )


def _merged(graph: AttributionGraph, name: str, words: str, members: list[int]) -> DrawnNode:
    """A supernode as one node, in the middle layer of its members, at the position where most of them are."""
    places = [graph.place_of(node) for node in members]
    layers = [layer for layer, _ in places]
    position, _ = Counter(position for _, position in places).most_common(1)[0]
    span = f"L{min(layers)}" if min(layers) == max(layers) else f"L{min(layers)}–{max(layers)}"
    size = f"{count(len(members), 'node')} · {span}"
    about = f"{short(words, 60)} ({size})\n{', '.join(graph.describe(node) for node in members[:12])}"
    row = math.floor(sum(layers) / len(layers) + 0.5)
    return DrawnNode(name, "supernode", row, position, (*_wrapped(words), Line(size, small=True)), about)


def _lines(graph: AttributionGraph, node: int) -> tuple[Line, ...]:
    layout = graph.layout
    match layout.kind(node):
        case "feature":
            layer, _, feature = graph.feature_of(node)
            name = f"L{layer}/{feature}"
            label = graph.name_of(node)
            return (*_wrapped(label), Line(name, small=True)) if label.strip() else (Line(name),)
        case "error":
            return ()
        case "token":
            return (Line(graph.token_name(layout.token_of(node))),)
        case _:
            i = layout.logit_of(node)
            words = Line(graph.target_name(i))
            if int(graph.logit_tokens[i]) < 0:  # a contrast, a vector, a feature: its weight is not a probability
                return (words,)
            return words, Line(f"p = {probability(graph.probability_of(i) or 0.0)}", small=True)


def _wrapped(label: str) -> list[Line]:
    mark = label.find(" ") + 1 if is_automatic(label) else 0
    width = _LABEL_LINE + mark  # the mark does not stand on a line of its own
    text = short(label, width * _LABEL_LINES)
    lines = textwrap.wrap(text, width) or [text]
    if len(lines) > _LABEL_LINES:
        lines = [*lines[: _LABEL_LINES - 1], lines[_LABEL_LINES - 1][: width - 1].rstrip(" ,…") + "…"]
    return [Line(line) for line in lines]
