"""Indirect influence of every node on the targets.

Ameisen et al. 2025, "Circuit Tracing", appendix on graph pruning: influence = Σ_{j≥1} w·Aʲ, where A is the absolute
adjacency with rows normalised to sum 1 and w the weight of each target. They invert I − A; here one sweep from the
top row down does the same, since an edge only goes from a lower layer to a higher one: every row is read once.

Letters: n nodes.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.sparse_rows import Floats, row_sums

EDGES_PER_BLOCK = 1 << 22
"""Rows are taken in blocks of about this many edges, which bounds the float64 copies."""


def target_weights(graph: AttributionGraph) -> Floats:
    """Return (n,) w: the weight of each target, 0 for every other node.

    Example:
        >>> target_weights(graph)[graph.layout.logits].sum() <= 1
        True
    """
    weights = np.zeros(graph.n)
    weights[graph.layout.logits] = graph.logit_probabilities.double().numpy()
    return weights


def row_scale(edges: scipy.sparse.csr_array, extra: Floats | None = None) -> Floats:
    """Return (n,) factors that scale the absolute rows to sum 1; 0 for empty rows.

    Args:
        edges: (n, n).
        extra: (n,) weight into each row beyond its stored edges; counted in its sum.
    """
    total = row_sums(edges, absolute=True)
    if extra is not None:
        total = total + extra
    with np.errstate(divide="ignore"):
        return np.where(total > 0, 1 / total, 0.0)


def spread(
    edges: scipy.sparse.csr_array, scale: Floats, weights: Floats, edges_per_block: int = EDGES_PER_BLOCK
) -> Floats:
    """Return (n,) Σ_{j≥1} w·Aʲ for A = diag(scale)·|edges|: the influence of every node.

    Args:
        edges: (n, n); a row's sources among the rows that have edges must come before it, as they do in node order.
        scale: (n,) factor of each row.
        weights: (n,) w.
        edges_per_block: How many edges are taken at a time.

    Raises:
        ValueError: An edge goes from a node to itself or to an earlier one.

    Example:
        >>> influence = spread(graph.edges, row_scale(graph.edges), target_weights(graph))
    """
    influence = np.zeros(edges.shape[0])
    rows = np.flatnonzero(np.diff(edges.indptr))
    latest = _latest_source(edges, rows)
    stop = len(rows)
    while stop > 0:
        start = _block_start(edges, rows, latest, stop, edges_per_block)
        # Rows between those of the block are empty, so the block's edges lie in one piece.
        first, last = edges.indptr[rows[start]], edges.indptr[rows[stop - 1] + 1]
        block = rows[start:stop]
        flow = np.repeat((weights[block] + influence[block]) * scale[block], np.diff(edges.indptr)[block])
        flow *= np.abs(edges.data[first:last])
        influence += np.bincount(edges.indices[first:last], weights=flow, minlength=edges.shape[0])
        stop = start
    return influence


def _latest_source(edges: scipy.sparse.csr_array, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each nonempty row, its last source that has a row of its own; -1 without any."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    has_row = np.zeros(edges.shape[0], dtype=np.bool_)
    has_row[rows] = True
    sources = np.where(has_row[edges.indices], edges.indices, -1)
    latest = np.maximum.reduceat(sources, edges.indptr[rows])
    if (wrong := latest >= rows).any():
        target, source = rows[wrong][0], latest[wrong][0]
        raise ValueError(f"edges go in a circle or backwards: node {target} has an edge from node {source}")
    return latest


def _block_start(
    edges: scipy.sparse.csr_array, rows: NDArray[np.int64], latest: NDArray[np.int64], stop: int, edges_per_block: int
) -> int:
    """The longest block rows[start:stop] in which no row is the source of another."""
    start, latest_in_block = stop - 1, latest[stop - 1]
    end = edges.indptr[rows[stop - 1] + 1]
    while start > 0 and end - edges.indptr[rows[start - 1]] <= edges_per_block:
        latest_in_block = max(latest_in_block, latest[start - 1])
        # A row that feeds one of the block must wait until that one is done.
        if latest_in_block >= rows[start - 1]:
            break
        start -= 1
    return start
