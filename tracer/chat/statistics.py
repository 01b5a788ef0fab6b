"""Means of conversations with the interval of a bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 1000


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval.

    Attributes:
        value: The mean.
        low: The interval's lower end.
        high: The interval's upper end.
    """

    value: float
    low: float
    high: float


def mean_of(values: Sequence[float | bool], seed: int) -> Mean:
    """Return the mean of one value a conversation, with a percentile bootstrap of 1,000 resamples.

    Args:
        values: At least one.
        seed: Of the bootstrap.
    """
    found = np.asarray(values, dtype=np.float64)
    drawn = found[np.random.default_rng(seed).integers(0, len(found), (_RESAMPLES, len(found)))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Mean(float(found.mean()), float(low), float(high))
