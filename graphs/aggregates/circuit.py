"""The aggregate circuit of many prompts: which nodes matter in how many of them and how much, and the edges between these.

A prompt in which a node is not kept counts as one where it has no influence: means are over all prompts. Intervals are of a
bootstrap over prompts (Efron 1979): percentiles of the mean over prompts drawn with replacement. Prompts that are much alike,
such as cities of one state, are not independent, and then intervals are too narrow.

Letters: N prompts, M nodes, E edges, B resamples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse

from crosstrace.graphs.aggregates.observed import NodeKey, Observation
from crosstrace.graphs.aggregates.values import its
from crosstrace.graphs.sparse_rows import Floats

MIN_SHARE, MIN_INFLUENCE, MIN_EDGE = 0.25, 0.01, 0.005
"""What the circuit's nodes and edges have at least: share of the prompts, mean influence, mean share of the influence."""
RESAMPLES, SPLITS = 1000, 100
MOST_NODES, MOST_EDGES = 1000, 5000
"""How many an aggregate keeps, the most influential ones."""
_MOST_TARGETS, _EXAMPLES = 8, 200
_BLOCK = 256  # nodes or edges whose resamples are held at a time

Interval = tuple[float, float]


@dataclass(frozen=True)
class AggregateNode:
    """A node in all prompts.

    Attributes:
        key: What it is.
        label: What to call it: of a feature its label, of a named node its name, of a token that of its role.
        layers: First and last layer of its features; -1 for tokens, L for targets.
        layer: The mean, by influence.
        position: Where its role is, 0 for the first column.
        share: Of the prompts, how many it is kept in.
        share_interval: 95 %.
        influence: Mean share of the influence on the targets that passes through it.
        influence_interval: 95 %.
        spread: The standard deviation of that over the prompts.
        activation: Mean where it is active; 0 for what is not a feature.
        features: The features that it is made of, by how many prompts they are in, at most 8.
        targets: Of its mean influence what is on each target, by the target's text, at most 8.
        selected: Share of the resamples in which it is in the circuit.
        prompts: (number of the prompt, influence), strongest first, at most 200.
    """

    key: NodeKey
    label: str
    layers: tuple[int, int]
    layer: float
    position: int
    share: float
    share_interval: Interval
    influence: float
    influence_interval: Interval
    spread: float
    activation: float
    features: list[tuple[int, int, int]]
    targets: dict[str, float]
    selected: float
    prompts: list[tuple[int, float]]

    @property
    def shown(self) -> str:
        """Its label as people say it."""
        return its(self.label) if self.key.kind in ("named", "target") else self.label


@dataclass(frozen=True)
class AggregateEdge:
    """An edge in all prompts.

    Attributes:
        source: Number of a node.
        target: Number of another.
        share: Of the prompts, how many it is kept in.
        weight: Mean direct effect, 0 where it is not kept.
        weight_interval: 95 %.
        spread: The standard deviation of that over the prompts.
        influence: Mean share of the influence on the targets that passes along it.
    """

    source: int
    target: int
    share: float
    weight: float
    weight_interval: Interval
    spread: float
    influence: float


@dataclass(frozen=True)
class Stability:
    """How far the circuit depends on which prompts there are: over random halves of the prompts.

    Attributes:
        nodes: Mean correlation of the features' mean influence in one half and in the other, tokens and targets aside.
        edges: The same of all edges' mean weights.
        overlap: Mean share of the features of both halves' circuits that are in both (Jaccard).
        splits: How many splits.
    """

    nodes: float
    edges: float
    overlap: float
    splits: int


@dataclass(frozen=True)
class Aggregate:
    """What holds across prompts.

    Attributes:
        prompts: The prompts: name of the graph, text, tokens, targets, roles, metadata.
        left_out: Names of the graphs of no pattern.
        n_layers: L.
        roles: The roles, in the order of the prompts.
        nodes: By position, then layer.
        edges: Weakest first.
        stability: Over halves of the prompts; None for fewer than 4 prompts.
        model_name: The model.
        transcoders_name: Its transcoders.
        settings: Thresholds, seed, and how prompts were aligned.
        influence_nm: (N, M) float64, the influence of every node in every prompt.
    """

    prompts: list[dict[str, Any]]
    left_out: list[str]
    n_layers: int
    roles: list[str]
    nodes: list[AggregateNode]
    edges: list[AggregateEdge]
    stability: Stability | None
    model_name: str
    transcoders_name: str
    settings: dict[str, Any]
    influence_nm: scipy.sparse.csc_array = field(repr=False)

    def circuit(
        self, min_share: float = MIN_SHARE, min_influence: float = MIN_INFLUENCE, min_edge: float = MIN_EDGE
    ) -> tuple[list[int], list[AggregateEdge]]:
        """Return the numbers of the circuit's nodes, and the edges between them.

        A node that no path of the circuit's edges leads from to a target is left out.

        Args:
            min_share: Share of the prompts that nodes and edges are in, at least.
            min_influence: Mean influence of a node, at least.
            min_edge: Mean share of the influence that passes along an edge, at least.

        Example:
            >>> nodes, edges = found.circuit(min_share=0.5)
        """
        strong = {
            i
            for i, node in enumerate(self.nodes)
            if node.key.kind == "target" or (node.share >= min_share and node.influence >= min_influence)
        }
        edges = [
            edge
            for edge in self.edges
            if edge.source in strong
            and edge.target in strong
            and edge.share >= min_share
            and edge.influence >= min_edge
        ]
        reached = {i for i in strong if self.nodes[i].key.kind == "target"}
        into: dict[int, list[int]] = defaultdict(list)
        for edge in edges:
            into[edge.target].append(edge.source)
        waiting = list(reached)
        while waiting:
            for source in into[waiting.pop()]:
                if source not in reached:
                    reached.add(source)
                    waiting.append(source)
        edges = [edge for edge in edges if edge.target in reached]
        used = {end for edge in edges for end in (edge.source, edge.target)}
        return sorted(used), edges


class Collector:
    """Takes prompts one at a time, then says what holds across them."""

    def __init__(self, model_name: str = "", transcoders_name: str = "") -> None:
        self._names = model_name, transcoders_name
        self._prompts: list[dict[str, Any]] = []
        self._left_out: list[str] = []
        self._nodes: dict[NodeKey, int] = {}
        self._edges: dict[tuple[int, int], int] = {}
        self._node_rows: list[tuple[int, int, float, float]] = []
        self._edge_rows: list[tuple[int, int, float, float]] = []
        self._on: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._features: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
        self._labels: dict[tuple[int, int], str] = {}
        self._places: dict[str, list[float]] = defaultdict(list)
        self._tokens: dict[str, set[str]] = defaultdict(set)
        self._n_layers = 0

    def leave_out(self, name: str) -> None:
        """Take down a graph whose prompt is of no pattern."""
        self._left_out.append(name)

    def add(self, seen: Observation) -> None:
        """Take a prompt.

        Args:
            seen: The prompt.

        Raises:
            ValueError: Its graph has another number of layers than the others.
        """
        number = len(self._prompts)
        if self._prompts and seen.n_layers != self._n_layers:
            raise ValueError(f"graph {seen.name} has {seen.n_layers} layers and the others have {self._n_layers}")
        self._n_layers = seen.n_layers
        self._prompts.append(
            {
                "graph": seen.name,
                "prompt": seen.prompt,
                "tokens": seen.tokens,
                "targets": [[text, weight] for text, weight in seen.targets],
                "roles": seen.roles,
                "metadata": dict(seen.metadata),
            }
        )
        P = len(seen.roles)
        for position, role in enumerate(seen.roles):
            self._places[role].append(position - P)
            self._tokens[role].add(seen.tokens[position])
        self._labels |= seen.labels
        for key, one in seen.nodes.items():
            i = self._nodes.setdefault(key, len(self._nodes))
            self._node_rows.append((number, i, one.influence, one.activation))
            for target, part in one.on.items():
                self._on[i][target] += part
            self._features[i].update(set(one.features))
        for between, (weight, share) in seen.edges.items():
            ends = self._nodes[between[0]], self._nodes[between[1]]
            self._edge_rows.append((number, self._edges.setdefault(ends, len(self._edges)), weight, share))

    def result(
        self,
        min_share: float = MIN_SHARE,
        min_influence: float = MIN_INFLUENCE,
        resamples: int = RESAMPLES,
        splits: int = SPLITS,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> Aggregate:
        """Return what holds across the prompts.

        Args:
            min_share: Of the circuit whose stability is asked for.
            min_influence: Likewise.
            resamples: B.
            splits: How many random halves.
            seed: Of both.
            about: What else the aggregate's settings say, such as its patterns.

        Raises:
            ValueError: There are no prompts.
        """
        N = len(self._prompts)
        if not N:
            raise ValueError(
                f"no graph is of the pattern: {len(self._left_out):,} are of none"
                if self._left_out
                else "there are no graphs"
            )
        keys = list(self._nodes)
        influence, activation, there = self._matrices(self._node_rows, len(keys))
        weight, flow, edge_there = self._matrices(self._edge_rows, len(self._edges))
        order = self._chosen(keys, influence, there)
        number = {old: new for new, old in enumerate(order)}
        influence, activation, there = influence[:, order], activation[:, order], there[:, order]
        ends = list(self._edges)
        inner = [i for i, (source, target) in enumerate(ends) if source in number and target in number]
        mean_flow = np.asarray(flow.sum(axis=0)).ravel() / N
        inner = sorted(sorted(inner, key=lambda i: -mean_flow[i])[:MOST_EDGES], key=lambda i: (mean_flow[i], i))
        weight, flow, edge_there = weight[:, inner], flow[:, inner], edge_there[:, inner]
        random = np.random.default_rng(seed)
        counts_bn = random.multinomial(N, np.full(N, 1 / N), size=resamples).astype(np.float64)
        share_intervals, share_bm = _intervals(there, counts_bn)
        influence_intervals, influence_bm = _intervals(influence, counts_bn)
        selected = ((share_bm >= min_share) & (influence_bm >= min_influence)).mean(axis=0)
        weight_intervals, _ = _intervals(weight, counts_bn, keep=False)
        roles = sorted(self._places, key=lambda role: (float(np.mean(self._places[role])), role))
        nodes = [
            self._node(
                keys[old],
                old,
                roles,
                _column(influence, new),
                _column(activation, new),
                float(there[:, [new]].sum()) / N,
                share_intervals[new],
                influence_intervals[new],
                float(selected[new]),
            )
            for new, old in enumerate(order)
        ]
        edges = [
            AggregateEdge(
                number[ends[old][0]],
                number[ends[old][1]],
                float(edge_there[:, [new]].sum()) / N,
                float((values := _column(weight, new)).mean()),
                weight_intervals[new],
                float(values.std()),
                float(_column(flow, new).mean()),
            )
            for new, old in enumerate(inner)
        ]
        own = [i for i, node in enumerate(nodes) if node.key.kind in ("feature", "named")]
        stability = None
        if N >= 4:
            matrices = influence[:, own], there[:, own], weight
            stability = _stability(*matrices, min_share, min_influence, splits, random)
        settings = {
            "min_share": min_share,
            "min_influence": min_influence,
            "resamples": resamples,
            "splits": splits,
            "seed": seed,
            **(about or {}),
        }
        return Aggregate(
            self._prompts,
            self._left_out,
            self._n_layers,
            roles,
            nodes,
            edges,
            stability,
            *self._names,
            settings,
            influence.tocsc(),
        )

    def _matrices(self, rows: Sequence[tuple[int, int, float, float]], width: int) -> list[scipy.sparse.csc_array]:
        """Two (N, width) matrices of the values, and one that is 1 wherever there is a row."""
        shape = (len(self._prompts), width)
        at, where, first, second = (
            (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 4
        )
        places = at.astype(np.int64), where.astype(np.int64)
        return [
            scipy.sparse.csc_array((values.astype(np.float64), places), shape=shape)
            for values in (first, second, np.ones(len(first)))
        ]

    def _chosen(self, keys: Sequence[NodeKey], influence: Any, there: Any) -> list[int]:
        """The nodes to keep: in two prompts at least, the most influential; by position, then layer."""
        N = len(self._prompts)
        times = np.asarray(there.sum(axis=0)).ravel()
        mean = np.asarray(influence.sum(axis=0)).ravel() / N
        often = [i for i in range(len(keys)) if times[i] >= min(2, N)]
        targets = [i for i in often if keys[i].kind == "target"]
        others = sorted((i for i in often if keys[i].kind != "target"), key=lambda i: (-mean[i], keys[i]))
        kept = targets + others[:MOST_NODES]
        place = {role: float(np.mean(found)) for role, found in self._places.items()}
        return sorted(kept, key=lambda i: (place.get(keys[i].role, 0.0), self._layers(i, keys[i]), keys[i]))

    def _layers(self, number: int, key: NodeKey) -> tuple[int, int]:
        if key.kind == "target":
            return self._n_layers, self._n_layers
        layers = [layer for layer, _ in self._features.get(number, ())]
        return (min(layers), max(layers)) if layers else (-1, -1)

    def _node(
        self,
        key: NodeKey,
        old: int,
        roles: Sequence[str],
        influence: Floats,
        activation: Floats,
        share: float,
        share_interval: Interval,
        influence_interval: Interval,
        selected: float,
    ) -> AggregateNode:
        N = len(influence)
        features = self._features.get(old, Counter())
        layers = self._layers(old, key)
        total = sum(features.values())
        layer = sum(times * layer for (layer, _), times in features.items()) / total if total else float(layers[0])
        strongest = np.argsort(-influence, kind="stable")[:_EXAMPLES].tolist()
        active = activation[activation > 0]
        on = sorted(self._on.get(old, {}).items(), key=lambda item: (-item[1], item[0]))[:_MOST_TARGETS]
        return AggregateNode(
            key,
            self._label(key),
            layers,
            layer,
            len(roles) - 1 if key.kind == "target" else roles.index(key.role),
            share,
            share_interval,
            float(influence.mean()),
            influence_interval,
            float(influence.std()),
            float(active.mean()) if len(active) else 0.0,
            [(*feature, times) for feature, times in features.most_common(8)],
            {target: part / N for target, part in on},
            selected,
            [(i, float(influence[i])) for i in strongest if influence[i] > 0],
        )

    def _label(self, key: NodeKey) -> str:
        match key.kind:
            case "feature":
                return self._labels.get((key.layer, key.feature), "")
            case "token":
                # A place that is counted says little; where the same stands there in all prompts, that is said too.
                tokens = self._tokens[key.role]
                counted = "−" in key.role and len(tokens) == 1
                return f"{key.role}: {next(iter(tokens))}" if counted else key.role
            case "error":
                return "unexplained"
            case _:
                return key.name


def _column(matrix: scipy.sparse.csc_array, i: int) -> Floats:
    return np.asarray(matrix[:, [i]].toarray()).ravel()


def _intervals(matrix: scipy.sparse.csc_array, counts_bn: Floats, keep: bool = True) -> tuple[list[Interval], Floats]:
    """95 % intervals of the columns' means, and the means of all resamples (B, columns) if they are to be kept."""
    found: list[Interval] = []
    blocks = []
    for start in range(0, matrix.shape[1], _BLOCK):
        means_bc = np.asarray(counts_bn @ matrix[:, start : start + _BLOCK]) / counts_bn.shape[1]
        low, high = np.percentile(means_bc, (2.5, 97.5), axis=0)
        found += [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
        if keep:
            blocks.append(means_bc)
    return found, np.concatenate(blocks, axis=1) if blocks else np.zeros((len(counts_bn), 0))


def _stability(
    influence: Any,
    there: Any,
    weight: Any,
    min_share: float,
    min_influence: float,
    splits: int,
    random: np.random.Generator,
) -> Stability:
    """Compare random halves of the prompts."""
    N = influence.shape[0]
    half = N // 2
    of_nodes, of_edges, overlaps = [], [], []
    for _ in range(splits):
        order = random.permutation(N)
        pairs_2n = np.zeros((2, N))
        pairs_2n[0, order[:half]], pairs_2n[1, order[half : 2 * half]] = 1 / half, 1 / half
        means, shares, weights = (np.asarray(pairs_2n @ matrix) for matrix in (influence, there, weight))
        of_nodes.append(_correlation(*means))
        of_edges.append(_correlation(*weights))
        one, other = (shares >= min_share) & (means >= min_influence)
        either = (one | other).sum()
        overlaps.append((one & other).sum() / either if either else 1.0)
    return Stability(float(np.mean(of_nodes)), float(np.mean(of_edges)), float(np.mean(overlaps)), splits)


def _correlation(one: Floats, other: Floats) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return 1.0 if np.array_equal(one, other) else 0.0
    return float(np.corrcoef(one, other)[0, 1])
