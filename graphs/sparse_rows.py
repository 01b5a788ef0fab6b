"""Small helpers for sparse rows (SciPy CSR) that never make anything dense.

Letters: n nodes, E stored edges.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def canonical(edges: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Return (n, n) float32 edges with sorted columns and without duplicates or stored zeros; not a copy if they are so."""
    if edges.format == "csr" and edges.dtype == np.float32 and edges.has_canonical_format and edges.data.all():
        return edges
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which the graph refuses
        edges = scipy.sparse.csr_array(edges, dtype=np.float32, copy=True)
        edges.sum_duplicates()
    edges.eliminate_zeros()
    return edges


def mask_as_csr(mask: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Return an (n, n) bool mask with sorted columns and only True stored; not a copy if it is so."""
    if mask.format == "csr" and mask.dtype == np.bool_ and mask.has_canonical_format and mask.data.all():
        return mask
    mask = scipy.sparse.csr_array(mask, dtype=np.bool_, copy=True)
    mask.sum_duplicates()
    mask.eliminate_zeros()
    return mask


def row_sums(edges: scipy.sparse.csr_array, absolute: bool = False) -> Floats:
    """Return (n,) the sum of each row in float64, without a float64 copy of the edges.

    Args:
        edges: (n, n) float32.
        absolute: Sum absolute values.
    """
    sums = np.zeros(edges.shape[0])
    filled = np.diff(edges.indptr) > 0
    # `reduceat` would give an empty row the first entry of the next; among the filled rows none is empty.
    if filled.any():
        data = np.abs(edges.data) if absolute else edges.data
        sums[filled] = np.add.reduceat(data, edges.indptr[:-1][filled], dtype=np.float64)
    return sums


def rows_of(edges: scipy.sparse.csr_array) -> NDArray[np.int64]:
    """Return (E,) the row of each stored edge."""
    return np.repeat(np.arange(edges.shape[0]), np.diff(edges.indptr))


def keep(edges: scipy.sparse.csr_array, kept: Mask) -> scipy.sparse.csr_array:
    """Return the edges for which `kept` (E,) is True; the others are no longer stored."""
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    indptr = kept_before[edges.indptr].astype(edges.indptr.dtype)
    return scipy.sparse.csr_array((edges.data[kept], edges.indices[kept], indptr), shape=edges.shape)


def values_at(
    edges: scipy.sparse.csr_array, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the entries at some places, 0 where none is stored.

    Args:
        edges: (n, n) with sorted columns.
        rows: (m,) rows.
        columns: (m,) columns.
    """
    n = edges.shape[1]
    stored = rows_of(edges) * n + edges.indices
    wanted = rows * n + columns
    at = np.minimum(np.searchsorted(stored, wanted), max(len(stored) - 1, 0))
    if not len(stored):
        return np.zeros(len(wanted), dtype=np.float32)
    return np.where(stored[at] == wanted, edges.data[at], np.float32(0))
