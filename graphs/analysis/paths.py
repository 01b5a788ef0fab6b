"""The strongest paths from tokens to a target.

A path's strength is the product, along it, of each edge's share of its target's absolute input: influence (see
`influence.py`) is the sum of this over all paths. The graph is a DAG in node order, so the n best paths into every node
follow from the n best into its sources: one pass, exact, a few NumPy calls per row.

Letters: n nodes, b the number of paths asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crosstrace.graphs.analysis.influence import row_scale
from crosstrace.graphs.analysis.subgraphs import restricted
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.notebook import table


class Path(NamedTuple):
    """A path through a graph."""

    nodes: list[int]
    """From token to target."""
    strength: float
    """0 to 1."""
    sign: int
    """+1 or -1: the product of the edges' signs."""


class Paths(list[Path]):
    """A list of paths through one graph.

    Attributes:
        graph: The graph.
    """

    def __init__(self, graph: AttributionGraph, paths: Iterable[Path]) -> None:
        super().__init__(paths)
        self.graph = graph

    def _repr_html_(self) -> str:
        """A table of the paths, for notebooks."""
        rows = [
            (f"{path.strength:.2%}", "+" if path.sign > 0 else "−", " → ".join(map(self.graph.describe, path.nodes)))
            for path in self
        ]
        return table("", ("strength", "sign", "path"), rows)


def strongest_paths(
    graph: AttributionGraph, target: int | None = None, n: int = 5, through_features: bool = True
) -> Paths:
    """Return the n strongest paths from a token to a target, strongest first; fewer if there are fewer.

    Only edges that the masks keep are followed. Shares are of the row's whole input (all edges of the raw graph), so that
    a path has the same strength before and after pruning.

    Args:
        graph: Raw or pruned.
        target: A target or feature node; the first target if None.
        n: How many paths, at least 1.
        through_features: Leave out the direct edge from a token to `target`, unless there is no other path.

    Raises:
        IndexError: There is no node `target`.
        ValueError: `n` is below 1, there is no target, or `target` is a token or an error.

    Example:
        >>> [graph.describe(node) for node in strongest_paths(graph)[0].nodes]
        ['token Dallas', 'Texas (L3/417 @ Dallas)', 'logit Austin (p=0.851)']
    """
    layout, edges = graph.layout, graph.kept_edges()
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if target is None:
        if not layout.n_logits:
            raise ValueError("the graph has no target")
        target = layout.logit_index(0)
    if layout.kind(target) in ("token", "error"):
        raise ValueError(f"target must be a target or feature node, but {target} is {graph.describe(target)!r}")

    with np.errstate(divide="ignore"):
        log_scale = np.log(row_scale(graph.edges))
    # best[i, r]: log strength of the r-th best path into node i; it comes from path from_rank[i, r] of from_node[i, r].
    best = np.full((graph.n, n), -np.inf)
    best[layout.tokens, 0] = 0.0
    from_node = np.full((graph.n, n), -1)
    from_rank = np.full((graph.n, n), -1)

    def fill(row: int, without_tokens: bool) -> None:
        part = slice(edges.indptr[row], edges.indptr[row + 1])
        sources, weights = edges.indices[part], edges.data[part]
        if without_tokens:
            others = (sources < layout.tokens.start) | (sources >= layout.tokens.stop)
            sources, weights = sources[others], weights[others]
        if not len(sources):
            return
        strengths = best[sources] + (np.log(np.abs(weights.astype(np.float64))) + log_scale[row])[:, None]
        order = _largest(strengths.ravel(), n)
        kept = slice(0, len(order))
        best[row, kept] = strengths.ravel()[order]
        from_node[row, kept], from_rank[row, kept] = sources[order // n], order % n

    # Features come in ascending layers, so a row's sources are done before it.
    last = target if layout.kind(target) == "feature" else layout.n_features
    for row in range(last):
        fill(row, without_tokens=False)
    fill(target, without_tokens=through_features)
    if through_features and best[target, 0] == -np.inf:
        fill(target, without_tokens=False)
    found = (int(rank) for rank in np.flatnonzero(best[target] > -np.inf))
    return Paths(graph, (_walk_back(graph, target, rank, best, from_node, from_rank) for rank in found))


def along_strongest_paths(graph: AttributionGraph, n: int) -> AttributionGraph:
    """Return the graph with masks that keep only the n strongest paths to its first target.

    Raises:
        ValueError: As `strongest_paths`.

    Example:
        >>> write_dot(along_strongest_paths(pruned, 5), "paths.dot")
    """
    paths = strongest_paths(graph, n=n)
    nodes = {node for path in paths for node in path.nodes}
    return restricted(graph, nodes, {pair for path in paths for pair in pairwise(path.nodes)})


def _largest(values: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Indices of the n largest values, largest first; among equals the earlier first."""
    candidates = np.arange(len(values))
    if len(values) > n:
        # Everything tied with the n-th stays a candidate, so that `partition` does not decide among equals.
        candidates = np.flatnonzero(values >= np.partition(values, len(values) - n)[len(values) - n])
    return candidates[np.argsort(-values[candidates], kind="stable")][:n]


def _walk_back(
    graph: AttributionGraph,
    target: int,
    rank: int,
    best: NDArray[np.float64],
    from_node: NDArray[np.int64],
    from_rank: NDArray[np.int64],
) -> Path:
    nodes, sign, strength = [target], 1, float(np.exp(best[target, rank]))
    while (source := int(from_node[nodes[-1], rank])) >= 0:
        sign *= 1 if graph.edges[nodes[-1], source] > 0 else -1
        rank = int(from_rank[nodes[-1], rank])
        nodes.append(source)
    return Path(nodes[::-1], strength, sign)
