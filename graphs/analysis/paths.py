"""The strongest paths from tokens to a target.

A path's strength is the product, along it, of each edge's share of its target's absolute input: influence (see
`influence.py`) is the sum of this over all paths. The graph is a DAG in node order, so the n best paths into every node
follow from the n best into its sources: one pass, exact, a few NumPy calls per row.

Letters: n nodes, b the number of paths asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from crosstrace.graphs.analysis.flow import places
from crosstrace.graphs.analysis.influence import row_scale
from crosstrace.graphs.analysis.subgraphs import restricted
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.notebook import table
from crosstrace.graphs.numbers import share


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
            (share(path.strength), "+" if path.sign > 0 else "−", " → ".join(map(self.graph.describe, path.nodes)))
            for path in self
        ]
        return table("", ("strength", "sign", "path"), rows)


def strongest_paths(
    graph: AttributionGraph,
    target: int | None = None,
    n: int = 5,
    through_features: bool = True,
    min_features: int = 0,
    counted: Collection[int] | None = None,
    telling: bool = False,
    through: Collection[int] | None = None,
) -> Paths:
    """Return the n strongest paths from a token to a target, strongest first; fewer if there are fewer.

    Only edges that the masks keep are followed. Shares are of the row's whole input (all edges of the raw graph), so that
    a path has the same strength before and after pruning.

    Args:
        graph: Raw or pruned.
        target: A target or feature node; the first target if None.
        n: How many paths, at least 1.
        through_features: Leave out the direct edge from a token to `target`, unless there is no other path.
        min_features: Leave out paths with fewer features between token and target.
        counted: Of the features, only these count towards `min_features`; None for all of them.
        telling: Leave out paths that say little: those through a single feature, unless it is at another position than
            the target is read at. `trivial_share` says how much goes along them.
        through: Leave out paths that go through none of these features; the other conditions then do not count.

    Raises:
        IndexError: There is no node `target`.
        ValueError: `n` is below 1, `min_features` below 0, there is no target, or `target` is a token or an error.

    Example:
        >>> [graph.describe(node) for node in strongest_paths(graph)[0].nodes]
        ['token Dallas', 'Texas (L3/417 @ Dallas)', 'logit Austin (p=0.851)']
    """
    layout, edges = graph.layout, graph.kept_edges()
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if min_features < 0:
        raise ValueError(f"min_features must be 0 or more, not {min_features}")
    if target is None:
        if not layout.n_logits:
            raise ValueError("the graph has no target")
        target = layout.logit_index(0)
    if layout.kind(target) in ("token", "error"):
        raise ValueError(f"target must be a target or feature node, but {target} is {graph.describe(target)!r}")

    with np.errstate(divide="ignore"):
        log_scale = np.log(row_scale(graph.edges))
    # How much each node counts towards the least that a path must have.
    counts = np.zeros(graph.n, dtype=np.int64)
    counts[layout.features] = 1
    if through is not None:
        counts *= np.isin(np.arange(graph.n), list(through))
        min_features = 1
    elif counted is not None:
        counts *= np.isin(np.arange(graph.n), list(counted))
    elif telling:
        elsewhere = places(graph)[1][layout.features] != graph.place_of(target)[1]
        counts[layout.features] += elsewhere
        min_features = max(min_features, 2)
    # best[i, c, r]: log strength of the r-th best path into node i with c features before it (at the end of the axis, with
    # at least so many); it comes from path from_rank[i, c, r] of node from_node[i, c, r] with from_count[i, c, r] features.
    best = np.full((graph.n, min_features + 1, n), -np.inf)
    best[layout.tokens, 0, 0] = 0.0
    from_node, from_count, from_rank = (np.full(best.shape, -1) for _ in range(3))

    def fill(row: int, without_tokens: bool) -> None:
        part = slice(edges.indptr[row], edges.indptr[row + 1])
        sources, weights = edges.indices[part], edges.data[part]
        if without_tokens:
            others = (sources < layout.tokens.start) | (sources >= layout.tokens.stop)
            sources, weights = sources[others], weights[others]
        if not len(sources):
            return
        shares = np.log(np.abs(weights.astype(np.float64))) + log_scale[row]
        strengths = best[sources] + shares[:, None, None]
        for count in range(min_features + 1):
            # Which of a source's counts lead to this one: the same, or less where the source itself counts.
            fits = np.minimum(np.arange(min_features + 1)[None] + counts[sources, None], min_features) == count
            found = np.where(fits[:, :, None], strengths, -np.inf).ravel()
            order = _largest(found, n)
            kept = slice(0, len(order))
            best[row, count, kept] = found[order]
            from_node[row, count, kept] = sources[order // n // (min_features + 1)]
            from_count[row, count, kept], from_rank[row, count, kept] = order // n % (min_features + 1), order % n

    # Features come in ascending layers, so a row's sources are done before it.
    last = target if layout.kind(target) == "feature" else layout.n_features
    for row in range(last):
        fill(row, without_tokens=False)
    fill(target, without_tokens=through_features)
    if through_features and not min_features and best[target, 0, 0] == -np.inf:
        fill(target, without_tokens=False)
    ranks = np.flatnonzero(best[target, min_features] > -np.inf).tolist()
    came = (from_node, from_count, from_rank)
    return Paths(graph, (_walk_back(graph, (target, min_features, rank), best, came) for rank in ranks))


def trivial_share(graph: AttributionGraph, target: int | None = None) -> float:
    """Return the share of a target's input along the paths that `telling` leaves out.

    These go from a token to the target directly, or through one feature at the position where the target is read.

    Args:
        graph: Raw or pruned; only edges that the masks keep count, as shares of the row's whole input.
        target: A target node; the first if None.

    Example:
        >>> trivial_share(pruned)
        0.09
    """
    layout, edges = graph.layout, graph.kept_edges()
    target = layout.logit_index(0) if target is None else target
    shares = scipy.sparse.csr_array(abs(edges).multiply(row_scale(graph.edges)[:, None]))
    row = shares[[target]].toarray().ravel()
    from_tokens = np.asarray(shares[:, layout.tokens].sum(axis=1)).ravel()
    here = places(graph)[1][layout.features] == graph.place_of(target)[1]
    features = row[layout.features] * from_tokens[layout.features]
    return float(row[layout.tokens].sum() + features[here].sum())


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
    end: tuple[int, int, int],
    best: NDArray[np.float64],
    came: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
) -> Path:
    from_node, from_count, from_rank = came
    nodes, sign, strength = [end[0]], 1, float(np.exp(best[end]))
    while (source := int(from_node[end])) >= 0:
        sign *= 1 if graph.edges[nodes[-1], source] > 0 else -1
        end = (source, int(from_count[end]), int(from_rank[end]))
        nodes.append(source)
    return Path(nodes[::-1], strength, sign)
