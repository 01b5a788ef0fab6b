"""What of a graph a picture shows. `drawing.py` holds what is left of it then, `placement.py` says where it all stands.

Unless something else is asked for, that is the graph's story (`analysis/story.py`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from crosstrace.graphs.analysis.paths import along_strongest_paths
from crosstrace.graphs.analysis.pruning import cumulative_influence
from crosstrace.graphs.analysis.story import Story, story_of
from crosstrace.graphs.analysis.subgraphs import restricted
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.numbers import count, plain, probability, share, signed
from crosstrace.graphs.pictures.drawing import Drawing, DrawnEdge, DrawnNode, Line, wrapped
from crosstrace.graphs.pictures.story import story_drawing, title_of
from crosstrace.graphs.sparse_rows import row_sums
from crosstrace.graphs.text import short
from crosstrace.graphs.viewer_ids import node_ids

MOST_EDGES = 3000
"""What Graphviz routes in seconds; a picture of more would be black anyway."""

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
    everything: bool = False
    """Draw all that pruning kept rather than the story of it; of more than 3,000 edges the strongest."""
    story: Story | None = None
    """The story to draw where nothing else is asked for; `story_of` tells it if None."""
    notes: Sequence[str] = ()
    """Sentences under the picture of a story, such as what interventions on its groups did."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}: known are {', '.join(LAYOUTS)}")
        if self.top_paths is not None and self.top_paths < 1:
            raise ValueError(f"top_paths must be at least 1, not {self.top_paths}")
        times_in = Counter(node for _, nodes in self.supernodes for node in set(nodes))
        if twice := [node for node, times in times_in.items() if times > 1]:
            raise ValueError(f"node {twice[0]} is in two supernodes; it can be in one only")

    @property
    def tells_story(self) -> bool:
        """Whether nothing else is asked for."""
        asked = self.everything or self.merged or self.supernodes or self.top_paths is not None
        return not asked and self.only is None

    def part_of(self, graph: AttributionGraph) -> AttributionGraph:
        """Return the graph with masks that keep what is drawn of it.

        Raises:
            ValueError: The graph does not have a node of `only`, or no path lies within these nodes.
        """
        if self.only is not None:
            graph = restricted(graph, nodes=self.only)
        if self.top_paths is None:
            return graph
        along = along_strongest_paths(graph, self.top_paths)
        if self.only is not None and not along.kept_nodes():
            raise ValueError(
                "nothing to draw: no path from a token to the first target lies within what is pinned; pin a whole path, or "
                "leave out --top-paths"
            )
        return along


def drawing_of(graph: AttributionGraph, figure: Figure) -> Drawing:
    """Return what `figure` shows of what the graph's masks keep (all of a raw graph).

    Raises:
        ValueError: The graph does not have a node that the figure names.
    """
    if figure.tells_story and graph.layout.n_logits:
        return story_drawing(figure.story or story_of(graph), figure.notes)
    graph = figure.part_of(graph)
    kept = set(graph.kept_nodes())
    supernodes = [(name, [node for node in nodes if node in kept]) for name, nodes in figure.supernodes]
    supernodes = [(name, nodes) for name, nodes in supernodes if nodes]
    merged = {i for i, (_, nodes) in enumerate(supernodes) if figure.merged and len(nodes) > 1}
    group_of = {node: i for i, (_, nodes) in enumerate(supernodes) for node in nodes}
    ids, influence = node_ids(graph), cumulative_influence(graph).tolist()

    names = {node: ids[node] for node in kept}
    nodes = []
    for node in sorted(kept):
        group = group_of.get(node, -1)
        if group in merged:
            names[node] = f"supernode-{group}"
        else:
            nodes.append(_single(graph, node, ids[node], influence[node], -1 if figure.merged else group))
    nodes += [_merged(graph, f"supernode-{i}", *supernodes[i]) for i in sorted(merged)]
    edges, cut = _edges(graph, names, {node.name: node for node in nodes})
    caption = []
    if cut:
        caption.append(
            f"Drawn: the {count(len(edges))} edges that make most of what their targets receive; "
            f"{count(cut, 'weaker edge')} left out. -o FILE.graphml and .json hold all of them."
        )
    return Drawing(
        title=title_of(graph),
        n_layers=graph.n_layers,
        nodes=nodes,
        edges=edges,
        groups=[] if figure.merged else [name for name, _ in supernodes],
        caption=caption,
    )


def _edges(graph: AttributionGraph, names: dict[int, str], drawn: dict[str, DrawnNode]) -> tuple[list[DrawnEdge], int]:
    """Sums of the kept edges between nodes that are drawn apart, weakest first; and how many of them are left out.

    An edge's width says how much of its target's row it is. Of more than `MOST_EDGES`, those with the largest shares stay.
    """
    edges = graph.kept_edges().tocoo()
    inputs = row_sums(graph.edges, absolute=True)
    sums: dict[tuple[str, str], float] = defaultdict(float)
    totals: dict[str, float] = defaultdict(float)
    for node, name in names.items():
        totals[name] += inputs[node]
    for source, target, weight in zip(edges.col.tolist(), edges.row.tolist(), edges.data.tolist(), strict=True):
        if names[source] != names[target]:
            sums[names[source], names[target]] += weight
    shares = {ends: abs(weight) / totals[ends[1]] for ends, weight in sums.items() if weight}
    ordered = sorted(shares, key=lambda ends: (shares[ends], abs(sums[ends])))
    shown = ordered[-MOST_EDGES:]

    def called(name: str) -> str:
        return drawn[name].about.split("\n")[0]

    return [
        DrawnEdge(
            source,
            target,
            sums[source, target],
            f"{called(source)} → {called(target)}: {signed(sums[source, target])}",
            min(shares[source, target], 1.0),
        )
        for source, target in shown
    ], len(ordered) - len(shown)


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
    return DrawnNode(name, "supernode", row, position, (*wrapped(words), Line(size, small=True)), about)


def _lines(graph: AttributionGraph, node: int) -> tuple[Line, ...]:
    layout = graph.layout
    match layout.kind(node):
        case "feature":
            layer, _, feature = graph.feature_of(node)
            name = f"L{layer}/{feature}"
            label = graph.name_of(node)
            return (*wrapped(label), Line(name, small=True)) if label.strip() else (Line(name),)
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
