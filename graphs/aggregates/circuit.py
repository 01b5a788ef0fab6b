"""The aggregate circuit of many prompts: which nodes matter in how many of them and how much, and the edges between these.

A prompt in which a node is not kept counts as one where it has no influence: means are over all prompts. Intervals are of a
bootstrap over prompts (Efron 1979): percentiles of the mean over prompts drawn with replacement. Prompts that are much alike,
such as cities of one state, are not independent, and then intervals are too narrow.

Letters: N prompts, M nodes, E edges, B resamples.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import scipy.sparse

from crosstrace.graphs.aggregates.defaults import MIN_EDGE, MIN_INFLUENCE, MIN_SHARE
from crosstrace.graphs.aggregates.observed import NodeKey
from crosstrace.graphs.aggregates.values import its

RESAMPLES, SPLITS = 1000, 100
MOST_NODES, MOST_EDGES = 1000, 5000
"""How many an aggregate keeps, the most influential ones."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class AggregateNode:
    """A node in all prompts.

    Attributes:
        key: What it is.
        label: What to call it: of a feature its label, of a named node its name, of a token that of its role.
        layers: First and last layer of its features; -1 for tokens, L for targets.
        layer: The mean of its features' layers, each as often as it is there.
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
