"""The story of a graph: some forty nodes that say where one answer comes from.

Features are grouped by position × a few layers × what they do (`supernodes.py`). What carries most of the influence on the
target is a node of its own, a group or a single feature; the small remainders of a cell (position × band of layers) are one
quiet node. Edges between nodes are the sums of their members' edges; of each node's input the fewest that make 80 % of
what comes from other nodes of the story are kept, and the rest is counted. Everything that is not shown is counted, too.

Letters: n nodes, S nodes of the story.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crosstrace.graphs.analysis.flow import Flow, flow_to, places
from crosstrace.graphs.analysis.pruning import prune
from crosstrace.graphs.analysis.similarity import Cards
from crosstrace.graphs.analysis.supernodes import most_layers, name_groups, suggest_supernodes
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.numbers import count, share
from crosstrace.graphs.sparse_rows import Floats, rows_of

MOST_NODES = 40
INPUT_SHOWN = 0.8
"""Share of a node's input from other nodes of the story that the drawn edges make."""
_LEAST_SHARE = 0.006  # of the influence: what carries less is not a node of its own
_LEAST_TOKEN, _MOST_TOKENS = 0.01, 12
_LEAST_QUIET = 0.015
_MOST_QUIET = 10
_LEAST_EDGE = 0.003  # of the influence

StoryKind = Literal["token", "feature", "group", "rest", "error", "target"]


@dataclass(frozen=True)
class StoryNode:
    """A node of a story.

    Attributes:
        kind: `rest` are the small remainders of a cell, `error` the errors of a position.
        name: What to call it; "" for a feature of which nothing is known.
        members: Its nodes in the graph, ascending.
        position: Where it is.
        layers: First and last layer of its members; -1 for tokens, L for the target.
        layer: The middle of its members' layers, by influence.
        influence: Share of the target's influence that passes through it, 0 to 1.
    """

    kind: StoryKind
    name: str
    members: tuple[int, ...]
    position: int
    layers: tuple[int, int]
    layer: float
    influence: float

    @property
    def is_quiet(self) -> bool:
        """Whether it is drawn so that it does not distract."""
        return self.kind in ("rest", "error")


@dataclass(frozen=True)
class StoryEdge:
    """What one node of a story adds to another.

    Attributes:
        source: Number of a node of the story.
        target: Number of another.
        weight: Sum of the edges between their members.
        share: Of the target node's whole absolute input, 0 to 1.
    """

    source: int
    target: int
    weight: float
    share: float


@dataclass(frozen=True)
class Story:
    """What leads to one target.

    Attributes:
        graph: The graph.
        flow: The influence on the target.
        nodes: By position, then layer; the target is the last.
        edges: Weakest first.
        cut_edges: How many edges between the nodes are not among them.
        left_out: How many features that have any influence are in none of the nodes.
        covered: Share of all features' influence that the nodes' features have.
    """

    graph: AttributionGraph
    flow: Flow
    nodes: list[StoryNode]
    edges: list[StoryEdge]
    cut_edges: int
    left_out: int
    covered: float

    @property
    def target(self) -> int:
        """The target, as a node of the graph."""
        return self.flow.target

    def sentences(self) -> list[str]:
        """Return what the picture says in words, and what it leaves out.

        Example:
            >>> story_of(graph).sentences()[0]
            'Of the influence on Paris 20.7% enters at Eiffel, 7.70% at city; 43.5% is unexplained (errors).'
        """
        graph, flow = self.graph, self.flow
        goal = graph.target_name(graph.layout.logit_of(self.target))
        order = np.argsort(-flow.entering, kind="stable")[:3].tolist()
        tokens = [f"{share(flow.entering[p])} at {graph.token_name(p, 16)}" for p in order if flow.entering[p] > 0]
        tokens[:1] = [first.replace("%", "% enters", 1) for first in tokens[:1]]
        entered = f"{', '.join(tokens)}; " if tokens else ""
        lost = "errors and features not traced" if flow.omitted > 0 else "errors"
        held = "" if graph.json_origin is None else ", as far as pruning kept it,"
        said = [f"Of the influence on {goal}{held} {entered}{share(flow.unexplained)} is unexplained ({lost})."]
        moves = [
            f"{graph.token_name(move.source, 16)} → {graph.token_name(move.target, 16)} {share(move.share)} "
            f"({layer_range(move.layers, graph.n_layers)})"
            for move in flow.moves(most=3, least=0.02)
        ]
        if moves:
            said.append(f"It moves {', '.join(moves)}.")
        quiet = sum(len(node.members) for node in self.nodes if node.kind == "rest")
        shown = sum(len(node.members) for node in self.nodes if node.kind in ("feature", "group"))
        kept = f"Drawn: {count(shown, 'feature')} by name, {count(quiet)} in grey remainders"
        said.append(
            f"{kept}, {share(self.covered)} of all features' influence; "
            f"left out: {count(self.left_out, 'weaker feature')} and {count(self.cut_edges, 'weaker edge')} between the nodes."
        )
        return said


def layer_range(layers: tuple[int, int], n_layers: int) -> str:
    """Return layers in words: `L3`, `L3–6`, `the output`.

    Example:
        >>> layer_range((3, 6), 18), layer_range((18, 18), 18)
        ('L3–6', 'the output')
    """
    low, high = layers
    if low >= n_layers:
        return "the output"
    if low == high:
        return f"L{low}"
    return f"L{low}–{'output' if high >= n_layers else high}"


def story_of(
    graph: AttributionGraph,
    cards: Cards | None = None,
    target: int | None = None,
    groups: Sequence[tuple[str, Sequence[int]]] | None = None,
    most_nodes: int = MOST_NODES,
) -> Story:
    """Return the story of one target.

    Args:
        graph: Pruned; a raw graph is first pruned with the default thresholds. Shares are of the whole graph; of one that
            was read from JSON, of what the file holds.
        cards: For (layer, feature), what is known of it, as for `suggest_supernodes`.
        target: A target node; the one with the most weight if None.
        groups: (name, nodes) pairs to use; `suggest_supernodes` finds them if None.
        most_nodes: How many nodes at most.

    Raises:
        ValueError: The graph has no target, or `target` is not one.

    Example:
        >>> [node.name for node in story_of(prune(graph)).nodes if node.kind == "group"]
        ['token: Eiffel', '→ Philadelphia, Toronto, Italy']
    """
    pruned = graph if graph.node_mask is not None else prune(graph)
    flow = flow_to(pruned, target)
    if groups is None:
        groups = suggest_supernodes(pruned, cards)
    return _Teller(pruned, flow, cards, groups, most_nodes).story()


class _Teller:
    """Chooses the nodes of a story, then its edges."""

    def __init__(
        self,
        graph: AttributionGraph,
        flow: Flow,
        cards: Cards | None,
        groups: Sequence[tuple[str, Sequence[int]]],
        most_nodes: int,
    ) -> None:
        self.graph, self.flow, self.cards, self.most_nodes = graph, flow, cards, most_nodes
        self.layers, self.positions = places(graph)
        self.readers, self.sources = rows_of(graph.edges), graph.edges.indices
        kept = {node for node in graph.kept_nodes() if node < graph.layout.features.stop and flow.through[node] > 0}
        self.groups = [(name, [node for node in nodes if node in kept]) for name, nodes in groups]
        in_group = {node for _, nodes in self.groups for node in nodes}
        self.single = sorted(kept - in_group)

    def story(self) -> Story:
        layout = self.graph.layout
        nodes = [*self._tokens(), *self._errors()]
        nodes += self._telling(self.most_nodes - len(nodes) - 1)
        nodes.append(self._node("target", "", [self.flow.target], 1.0))
        nodes.sort(key=lambda node: (node.kind == "target", node.position, node.layer, node.members))
        edges, cut = self._edges(nodes)
        used = {end for edge in edges for end in (edge.source, edge.target)}
        kept = [i for i, node in enumerate(nodes) if i in used or node.kind == "target"]
        number = {i: new for new, i in enumerate(kept)}
        edges = [StoryEdge(number[e.source], number[e.target], e.weight, e.share) for e in edges]
        nodes = [nodes[i] for i in kept]
        through = self.flow.through[layout.features]
        shown = [member for node in nodes if node.kind in ("feature", "group", "rest") for member in node.members]
        total = float(through.sum())
        covered = float(through[shown].sum()) / total if total else 0.0
        return Story(self.graph, self.flow, nodes, edges, cut, int((through > 0).sum()) - len(shown), covered)

    def _node(self, kind: StoryKind, name: str, members: Sequence[int], influence: float) -> StoryNode:
        own = np.asarray(members)
        layers, weights = self.layers[own], self.flow.through[own]
        if kind == "token":
            low, high, middle = -1, -1, -1.0
        else:
            low, high = int(layers.min()), int(layers.max())
            middle = float(np.average(layers, weights=weights)) if weights.sum() else float(layers.mean())
        position = int(self.positions[own[0]])
        return StoryNode(kind, name, tuple(sorted(members)), position, (low, high), middle, influence)

    def _tokens(self) -> list[StoryNode]:
        layout, entering = self.graph.layout, self.flow.entering
        order = np.argsort(-entering, kind="stable")[:_MOST_TOKENS]
        chosen = [int(p) for p in order if entering[p] >= _LEAST_TOKEN]
        return [
            self._node("token", self.graph.token_name(p), [layout.token_index(p)], float(entering[p])) for p in chosen
        ]

    def _errors(self) -> list[StoryNode]:
        layout, lost = self.graph.layout, self.flow.unexplained_at
        order = [int(p) for p in np.argsort(-lost, kind="stable")[:_MOST_TOKENS] if lost[p] >= _LEAST_QUIET]
        found = []
        for p in order:
            own = [layout.error_index(layer, p) for layer in range(layout.n_layers)]
            found.append(
                self._node("error", "unexplained", [e for e in own if self.flow.through[e] > 0], float(lost[p]))
            )
        return found

    def _telling(self, room: int) -> list[StoryNode]:
        """Groups and single features, the most influential, and what remains of each cell."""
        units: list[tuple[str, list[int]]] = [(name, nodes) for name, nodes in self.groups if nodes]
        units += [("", [node]) for node in self.single]
        passing = self._passing([nodes for _, nodes in units])
        order = sorted(range(len(units)), key=lambda i: (-passing[i], units[i][1]))
        own = [i for i in order if passing[i] >= _LEAST_SHARE][: max(room - min(_MOST_QUIET, room // 4), 1)]
        rest: dict[tuple[int, int], list[int]] = {}
        band = most_layers(self.graph.n_layers)
        for i in set(range(len(units))) - set(own):
            for node in units[i][1]:
                rest.setdefault((int(self.positions[node]), int(self.layers[node]) // band), []).append(node)
        cells = [sorted(nodes) for _, nodes in sorted(rest.items())]
        remaining = self._passing(cells)
        quiet = sorted(range(len(cells)), key=lambda i: (-remaining[i], cells[i]))
        quiet = [i for i in quiet if remaining[i] >= _LEAST_QUIET][: min(_MOST_QUIET, room - len(own))]
        return [
            *(self._unit(*units[i], passing[i]) for i in own),
            *(self._node("rest", count(len(cells[i]), "other"), cells[i], remaining[i]) for i in quiet),
        ]

    def _unit(self, name: str, nodes: list[int], influence: float) -> StoryNode:
        if len(nodes) == 1:
            return self._node("feature", self.graph.name_of(nodes[0]), nodes, influence)
        if not name:
            weights = {node: float(self.flow.through[node]) for node in nodes}
            ((name, _),) = name_groups(self.graph, [nodes], weights, self.cards)
        return self._node("group", name, nodes, influence)

    def _passing(self, groups: Sequence[Sequence[int]]) -> list[float]:
        """The influence that passes through each group: its members' without what goes from one to another of them."""
        owner = self._owners(groups)
        through = np.bincount(owner[owner >= 0], weights=self.flow.through[owner >= 0], minlength=len(groups))
        ends = owner[self.readers]
        inner = (ends >= 0) & (ends == owner[self.sources])
        through -= np.bincount(ends[inner], weights=self.flow.edges[inner], minlength=len(groups))
        return [min(max(float(value), 0.0), 1.0) for value in through]

    def _owners(self, groups: Sequence[Sequence[int]]) -> np.ndarray:
        owner = np.full(self.graph.n, -1, dtype=np.int64)
        for i, nodes in enumerate(groups):
            owner[list(nodes)] = i
        return owner

    def _edges(self, nodes: list[StoryNode]) -> tuple[list[StoryEdge], int]:
        S = len(nodes)
        owner = self._owners([node.members for node in nodes])
        to, came = owner[self.readers], owner[self.sources]
        into = np.bincount(to[to >= 0], weights=self.flow.edges[to >= 0], minlength=S)
        between = (to >= 0) & (came >= 0) & (to != came)
        inner = (to >= 0) & (to == came)
        into -= np.bincount(to[inner], weights=self.flow.edges[inner], minlength=S)
        pairs = to[between] * S + came[between]
        flows = np.bincount(pairs, weights=self.flow.edges[between], minlength=S * S).reshape(S, S)
        weights = np.bincount(
            pairs, weights=self.graph.edges.data[between].astype(np.float64), minlength=S * S
        ).reshape(S, S)
        found = []
        for target in range(S):
            for source in _fewest(flows[target], INPUT_SHOWN):
                if flows[target, source] >= _LEAST_EDGE:
                    share_of_input = float(flows[target, source] / into[target])
                    found.append(StoryEdge(source, target, float(weights[target, source]), share_of_input))
        found.sort(key=lambda edge: (flows[edge.target, edge.source], edge.target, edge.source))
        return found, int((flows > 0).sum()) - len(found)


def _fewest(values: Floats, part: float) -> list[int]:
    """The fewest of the values that make a part of their sum, largest first."""
    total = float(values.sum())
    if total <= 0:
        return []
    order = np.argsort(-values, kind="stable")
    stop = int(np.searchsorted(np.cumsum(values[order]), part * total * (1 - 1e-12))) + 1
    return [int(i) for i in order[:stop] if values[i] > 0]
