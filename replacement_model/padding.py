"""Contexts of different lengths side by side, padded on the right: attention is causal, so no real position sees the padding.

Letters: B contexts, W positions of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pad(contexts: Sequence[Sequence[int] | NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put contexts under each other.

    Args:
        contexts: B lists of token ids, at least one.

    Returns:
        Token ids (B, W), 0 where padded, and the lengths (B,).

    Example:
        >>> pad([[2, 7], [2, 8, 9]])
        (array([[2, 7, 0],
               [2, 8, 9]]), array([2, 3]))
    """
    lengths_b = np.array([len(context) for context in contexts], np.int64)
    tokens_bw = np.zeros((len(contexts), int(lengths_b.max())), np.int64)
    for row, context in zip(tokens_bw, contexts, strict=True):
        row[: len(context)] = context
    return tokens_bw, lengths_b


def without_first(lengths_b: NDArray[np.int64], excluded_b: NDArray[np.int64] | int) -> NDArray[np.bool_]:
    """Return which positions are neither padding nor among a context's excluded first ones.

    Args:
        lengths_b: (B,) the contexts' lengths.
        excluded_b: (B,) how many first positions of each are left out, or one number for all.

    Returns:
        A mask (B, W).

    Example:
        >>> without_first(np.array([2, 3]), 1)
        array([[False,  True, False],
               [False,  True,  True]])
    """
    place_w = np.arange(int(lengths_b.max()))
    return (place_w < lengths_b[:, None]) & (place_w >= np.reshape(excluded_b, (-1, 1)))
