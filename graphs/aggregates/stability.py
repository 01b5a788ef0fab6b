"""How sure an aggregate's figures are: intervals of a bootstrap over prompts, and random halves of them compared.

Prompts that are much alike, such as cities of one state, are not independent, and then intervals are too narrow.

Letters: N prompts, B resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from crosstrace.graphs.aggregates.circuit import Interval, Stability
from crosstrace.graphs.sparse_rows import Floats

_BLOCK = 256  # nodes or edges whose resamples are held at a time


def intervals(matrix: scipy.sparse.csc_array, counts_bn: Floats, keep: bool = True) -> tuple[list[Interval], Floats]:
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


def stability_of(
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
