"""Where the influence on one target comes from: through which nodes it passes, where it enters, where it moves.

A target's input is divided among its sources by absolute weight, each source's among its own, and so on down to the tokens
and errors: what reaches them sums to 1. This is influence (see `influence.py`) of one target, in which what a cap on
features left out of a row counts as input too.

Letters: n nodes, E stored edges, L layers, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crosstrace.graphs.analysis.influence import row_scale, spread
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.sparse_rows import Floats, rows_of


@dataclass(frozen=True)
class Move:
    """Influence that goes from one position to another through attention, by one edge of the graph each.

    Attributes:
        source: Position of the source.
        target: Position of what reads it.
        share: Of the target's influence.
        layers: First and last layer of the readers, without the tenth of the influence at either end; L for the output.
    """

    source: int
    target: int
    share: float
    layers: tuple[int, int]


@dataclass(frozen=True)
class Flow:
    """The influence on one target.

    Attributes:
        graph: The graph.
        target: The node it goes to.
        through: (n,) share that passes through each node; 1 at the target.
        scale: (n,) what each row's edges are multiplied with to give shares of the row's input.
    """

    graph: AttributionGraph
    target: int
    through: Floats
    scale: Floats

    @cached_property
    def _factors(self) -> Floats:
        return self.through * self.scale

    @cached_property
    def edges(self) -> Floats:
        """(E,) share that passes along each stored edge."""
        return np.abs(self.graph.edges.data) * np.repeat(self._factors, np.diff(self.graph.edges.indptr))

    @cached_property
    def omitted(self) -> float:
        """Share that ends in features that were not traced."""
        return float((self._factors * _omitted(self.graph)).sum())

    @cached_property
    def entering(self) -> Floats:
        """(P,) share that enters at each token."""
        return self.through[self.graph.layout.tokens]

    @cached_property
    def unexplained_at(self) -> Floats:
        """(P,) share that ends in errors at each position."""
        layout = self.graph.layout
        return np.asarray(self.through[layout.errors].reshape(layout.n_layers, layout.n_positions).sum(axis=0))

    @property
    def unexplained(self) -> float:
        """Share that ends in errors, or in features that were not traced, out of what ends anywhere."""
        lost = float(self.unexplained_at.sum()) + self.omitted
        total = lost + float(self.entering.sum())
        return lost / total if total else 0.0

    def moves(self, most: int = 8, least: float = 0.01) -> list[Move]:
        """Return the largest moves between positions, largest first.

        Args:
            most: How many at most.
            least: Leave out moves of a smaller share.
        """
        graph = self.graph
        P = len(graph.tokens)
        layers, positions = places(graph)
        readers = rows_of(graph.edges)
        # A long prompt has far fewer pairs with an edge than pairs.
        apart = np.flatnonzero(positions[graph.edges.indices] != positions[readers])
        keys = positions[graph.edges.indices[apart]] * P + positions[readers[apart]]
        pairs, which = np.unique(keys, return_inverse=True)
        shares = np.bincount(which, weights=self.edges[apart], minlength=len(pairs))
        found = []
        for pair in np.argsort(-shares, kind="stable")[:most].tolist():
            source, target = divmod(int(pairs[pair]), P)
            if (share := float(shares[pair])) >= max(least, 1e-12):
                own = apart[which == pair]
                by_layer = np.bincount(layers[readers[own]], weights=self.edges[own], minlength=graph.n_layers + 1)
                reached = np.cumsum(by_layer) / by_layer.sum()
                ends = int(np.searchsorted(reached, 0.1)), int(np.searchsorted(reached, 0.9 - 1e-9))
                found.append(Move(source, target, share, ends))
        return found


def flow_to(graph: AttributionGraph, target: int | None = None) -> Flow:
    """Return the influence on one target, through all edges of the graph.

    Args:
        graph: Raw or pruned.
        target: A target node; the one with the most weight if None.

    Raises:
        ValueError: The graph has no target, or the node is not one.

    Example:
        >>> flow = flow_to(graph)
        >>> flow.entering.sum() + flow.unexplained_at.sum() + flow.omitted
        1.0
    """
    layout = graph.layout
    if target is None:
        if not layout.n_logits:
            raise ValueError("the graph has no target")
        target = layout.logit_index(int(graph.logit_probabilities.argmax()))
    if layout.kind(target) != "logit":
        raise ValueError(f"influence goes to a target, but {target} is {graph.describe(target)!r}")
    weights = np.zeros(graph.n)
    weights[target] = 1.0
    scale = row_scale(graph.edges, _omitted(graph))
    return Flow(graph, target, spread(graph.edges, scale, weights) + weights, scale)


def places(graph: AttributionGraph) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) layers and (n,) positions of all nodes: tokens have layer 0, targets L, as they stand in a picture."""
    layout = graph.layout
    rows = graph.active_features[graph.selected_features].numpy()
    layers, positions = np.zeros(graph.n, dtype=np.int64), np.zeros(graph.n, dtype=np.int64)
    layers[layout.features], positions[layout.features] = rows[:, 0], rows[:, 1]
    layers[layout.errors] = np.repeat(np.arange(layout.n_layers), layout.n_positions)
    positions[layout.errors] = np.tile(np.arange(layout.n_positions), layout.n_layers)
    positions[layout.tokens] = np.arange(layout.n_positions)
    layers[layout.logits] = layout.n_layers
    positions[layout.logits] = graph.logit_positions.numpy()
    return layers, positions


def _omitted(graph: AttributionGraph) -> Floats:
    return np.abs(graph.omitted_magnitude.double().numpy())
