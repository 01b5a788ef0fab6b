"""What is kept of a layer's features while a corpus streams by: counts, histograms, and top contexts.

Everything is an array over slots. The arrays are reserved for all features at once, but a feature gets its slot when it
first fires, so only the pages of features that fired are ever touched. Memory does not grow with the corpus.

- *Histogram*: BINS equal bins from 0 to the smallest power of two above the largest activation. When that power grows,
  bins are added in pairs, which is exact: the result does not depend on the order of the corpus.
- *Top contexts*: at most one entry for each context (its largest activation, the first if several are equal) and one for
  each wording (of contexts with the same tokens in the window up to the peak: the largest activation, then the first).
  They are ranked by activation, then by place in the corpus. That order is strict, so the best of the whole corpus are
  the best among the best of its parts.

Activations are first rounded to 11 significant bits. Batches of other shapes round sums in another order; after this
rounding, a feature's value at the same words rarely differs between them.

Letters: F features, S slots in use, K top contexts, n active entries of a batch, c candidates, U features among them,
B contexts of a batch, W positions of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosstrace.tracer.cards.log import CardLog, ContextBatch

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]

BINS_EXPONENT = 5
BINS = 1 << BINS_EXPONENT
_DROPPED_BITS = 24 - 11


def rounded(values: Floats) -> Floats:
    """Round float32 values to 11 significant bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32(1 << (_DROPPED_BITS - 1))
    return ((bits + half) & ~np.uint32((1 << _DROPPED_BITS) - 1)).view(np.float32)


class LayerTops:
    """One layer's state. Of each array the first S slots are in use.

    Attributes:
        used: S.
        features: (S,) the feature of each slot, in the order in which they first fired.
        fired: (S,) the number of positions at which each is active.
        exponent: (S,) the exponent of each histogram's range.
        histogram: (S, BINS); bin i counts activations from i to i + 1 times 2 ** exponent / BINS.
        values: (S, K) the activations of the top contexts, best first; 0 where there is none.
        keys: (S, K) the hashes of their wordings.
        records: (S, K) their records in the log.
    """

    ARRAYS = ("features", "fired", "exponent", "histogram", "values", "keys", "records")

    def __init__(self, n_features: int, top: int, allocate: Allocate = np.zeros) -> None:
        self.slot_of = np.full(n_features, -1, np.int32)
        self.used = 0
        self.features = allocate((n_features,), np.int32)
        self.fired = allocate((n_features,), np.int64)
        self.exponent = allocate((n_features,), np.int16)
        self.histogram = allocate((n_features, BINS), np.uint32)
        self.values = allocate((n_features, top), np.float32)
        self.keys = allocate((n_features, top), np.uint64)
        self.records = allocate((n_features, top), np.int64)

    @staticmethod
    def bytes_a_feature(top: int) -> int:
        """Return the memory that the arrays take for one feature with `top` contexts."""
        return 4 + 4 + 8 + 2 + 4 * BINS + top * (4 + 8 + 8)

    def arrays(self) -> Iterable[tuple[str, NDArray[Any]]]:
        """Yield the used part of every array with its name."""
        for name in self.ARRAYS:
            yield name, getattr(self, name)[: self.used]

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Continue from what `arrays` gave."""
        self.used = len(arrays["features"])
        for name in self.ARRAYS:
            getattr(self, name)[: self.used] = arrays[name]
        self.slot_of[self.features[: self.used]] = np.arange(self.used)

    def add(self, places_n: Ints, features_n: Ints, values_n: Floats, batch: ContextBatch, log: CardLog) -> None:
        """Add a layer's activations in a batch, ascending by (feature, place).

        Activations of 0 and below, which a negative threshold lets through, are left out.

        Args:
            places_n: (n,) the place of each in the batch's flat (B * W).
            features_n: (n,) the features that fire there.
            values_n: (n,) their activations.
            batch: The contexts.
            log: Keeps the windows that enter a top.
        """
        values_n = rounded(values_n)
        if not (positive := values_n > 0).all():
            places_n, features_n, values_n = places_n[positive], features_n[positive], values_n[positive]
        if not len(values_n):
            return
        starts_u = _starts(features_n)
        slots_u = self._slots(features_n[starts_u])
        counts_u = np.diff(starts_u, append=len(features_n))
        self.fired[slots_u] += counts_u
        self._count(slots_u, counts_u, starts_u, values_n)

        rows_n = places_n // batch.width
        starts_s = _starts(features_n, rows_n)  # one segment for every feature and context
        slot_s = self.slot_of[features_n[starts_s]].astype(np.int64)
        value_s, peak_s = _peaks(values_n, starts_s)
        key_s = batch.keys_bw.ravel()[places_n[peak_s]]
        wanted = value_s > self.values[slot_s, -1]
        wanted[wanted] = ~self._known(slot_s[wanted], value_s[wanted], key_s[wanted])
        if not wanted.any():
            return
        segment_n = np.repeat(np.arange(len(starts_s)), np.diff(starts_s, append=len(values_n)))
        chosen = np.flatnonzero(wanted)
        records_c = log.append(batch, places_n, values_n, segment_n, chosen, peak_s[chosen])
        self._insert(slot_s[chosen], value_s[chosen], key_s[chosen], records_c)

    def _slots(self, features_u: Ints) -> Ints:
        """Return the slots (U,) of distinct features; a feature without one gets a new one."""
        new = features_u[self.slot_of[features_u] < 0]
        slots = np.arange(self.used, self.used + len(new))
        self.slot_of[new] = slots
        self.features[slots] = new
        self.exponent[slots] = np.iinfo(np.int16).min
        self.used += len(new)
        return self.slot_of[features_u].astype(np.int64)

    def _count(self, slots_u: Ints, counts_u: Ints, starts_u: Ints, values_n: Floats) -> None:
        largest_u = np.frexp(np.maximum.reduceat(values_n, starts_u))[1].astype(np.int64)
        before_u = self.exponent[slots_u].astype(np.int64)
        grown_u = np.maximum(largest_u - before_u, 0)
        for shift in np.unique(grown_u[grown_u > 0]).tolist():
            slots = slots_u[grown_u == shift]
            self.histogram[slots] = _coarser(self.histogram[slots], shift)
        exponent_u = np.maximum(largest_u, before_u)
        self.exponent[slots_u] = exponent_u
        bin_n = np.ldexp(values_n, np.repeat(BINS_EXPONENT - exponent_u, counts_u)).astype(np.int64)
        np.add.at(self.histogram.reshape(-1), np.repeat(slots_u * BINS, counts_u) + bin_n, np.uint32(1))

    def _known(self, slot_c: Ints, value_c: Floats, key_c: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return (c,) whether a candidate's wording is in its feature's top already with at least that activation."""
        same = (self.keys[slot_c] == key_c[:, None]) & (self.values[slot_c] >= value_c[:, None])
        return same.any(1)

    def _insert(self, slot_c: Ints, value_c: Floats, key_c: NDArray[np.uint64], record_c: Ints) -> None:
        """Insert candidates into their features' tops, those of one feature one by one in the order of the corpus."""
        turn_c = _turns(slot_c)
        for turn in range(int(turn_c.max()) + 1):
            mine = np.flatnonzero(turn_c == turn)
            if turn:  # earlier candidates may have made it too weak
                mine = mine[value_c[mine] > self.values[slot_c[mine], -1]]
                mine = mine[~self._known(slot_c[mine], value_c[mine], key_c[mine])]
            self._insert_one_each(slot_c[mine], value_c[mine], key_c[mine], record_c[mine])

    def _insert_one_each(self, slot_c: Ints, value_c: Floats, key_c: NDArray[np.uint64], record_c: Ints) -> None:
        """Insert one candidate for each of some features: stronger than the last entry and than its own wording's, if any.

        It goes behind entries of equal strength, which came first. Entries between its place and that of its wording (or
        the last, which is dropped) move down by one.
        """
        top = self.values.shape[1]
        values_ck, keys_ck = self.values[slot_c], self.keys[slot_c]
        place_c = (values_ck >= value_c[:, None]).sum(1)
        same_ck = (keys_ck == key_c[:, None]) & (values_ck > 0)
        freed_c = np.where(same_ck.any(1), same_ck.argmax(1), top - 1)
        rank_k = np.arange(top)
        moved_ck = (rank_k > place_c[:, None]) & (rank_k <= freed_c[:, None])
        new_ck = rank_k == place_c[:, None]
        before_k = np.maximum(rank_k - 1, 0)
        for array, old_ck, given_c in (
            (self.values, values_ck, value_c),
            (self.keys, keys_ck, key_c),
            (self.records, self.records[slot_c], record_c),
        ):
            shifted_ck = np.where(moved_ck, old_ck[:, before_k], old_ck)
            array[slot_c] = np.where(new_ck, given_c[:, None], shifted_ck)


def _turns(slot_c: Ints) -> Ints:
    """For each candidate how many of its slot come before it."""
    order = np.argsort(slot_c, kind="stable")
    starts = _starts(slot_c[order])
    turn_c = np.empty(len(slot_c), np.int64)
    turn_c[order] = np.arange(len(slot_c)) - np.repeat(starts, np.diff(starts, append=len(slot_c)))
    return turn_c


def _starts(*columns: NDArray[Any]) -> Ints:
    """Return where runs of equal rows begin."""
    changed = np.zeros(len(columns[0]), dtype=np.bool_)
    changed[:1] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changed)


def _peaks(values_n: Floats, starts_s: Ints) -> tuple[Floats, Ints]:
    """Return the largest value of each run, and the first entry that has it."""
    value_s = np.maximum.reduceat(values_n, starts_s)
    is_peak = values_n == np.repeat(value_s, np.diff(starts_s, append=len(values_n)))
    entry_n = np.where(is_peak, np.arange(len(values_n)), len(values_n))
    return value_s, np.minimum.reduceat(entry_n, starts_s)


def _coarser(histogram: NDArray[np.uint32], shift: int) -> NDArray[np.uint32]:
    """Return histograms over a range 2 ** shift times as long."""
    group = 1 << min(shift, BINS_EXPONENT)
    summed = histogram.reshape(len(histogram), BINS // group, group).sum(-1, dtype=np.uint32)
    wider = np.zeros_like(histogram)
    wider[:, : summed.shape[1]] = summed
    return wider
