"""What is kept of a stream of activations is what a look at all of them at once would choose."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstrace.tracer.cards.log import CardLog, ContextBatch, Window
from crosstrace.tracer.cards.tops import BINS, LayerTops, rounded

F, TOP = 4, 3
WINDOW = Window(before=2, after=1)


@st.composite
def corpora(draw):
    """Contexts of few different tokens, and activations (context, position, feature) -> value with many ties."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=9))
    contexts = [draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)) for n in lengths]
    values = st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.5, 1.0, 1.5, 3.0, 100.0])
    fires = {
        (c, p, f): value
        for c, context in enumerate(contexts)
        for p in range(len(context))
        for f in range(F)
        if (value := draw(values))
    }
    sizes = draw(st.lists(st.integers(1, 4), min_size=len(contexts), max_size=len(contexts)))
    return contexts, fires, sizes


def streamed(contexts, fires, sizes, folder) -> tuple[LayerTops, CardLog]:
    tops, log = LayerTops(F, TOP), CardLog(folder)
    first = 0
    for size in sizes:
        some = contexts[first : first + size]
        if not some:
            break
        batch = ContextBatch.of(some, first, WINDOW)
        log.append_contexts(batch)
        entries = sorted(
            (f, (c - first) * batch.width + p, value)
            for (c, p, f), value in fires.items()
            if first <= c < first + len(some)
        )
        features, places, values = (np.array(column) for column in zip(*entries, strict=True)) if entries else [[]] * 3
        tops.add(np.array(places, np.int64), np.array(features, np.int64), np.array(values, np.float32), batch, log)
        first += size
    return tops, log


def found(tops: LayerTops, log: CardLog) -> dict[int, list]:
    """For each feature its (value, context, peak, {position: value in the window}), best first."""
    records, entries = log.mapped("records"), log.mapped("entries")
    result = {}
    for slot in range(tops.used):
        rows = []
        for value, number in zip(tops.values[slot], tops.records[slot], strict=True):
            if value > 0:
                r = records[number]
                window = entries[r["start"] : r["start"] + r["count"]]
                shown = {int(e["position"]): float(e["value"]) for e in window}
                rows.append((float(value), int(r["context"]), int(r["position"]), shown))
        result[int(tops.features[slot])] = rows
    return result


def by_looking_at_everything(contexts, fires) -> dict[int, list]:
    result = {}
    for f in range(F):
        candidates = []
        for c, context in enumerate(contexts):
            mine = {p: v for (c_, p, f_), v in fires.items() if (c_, f_) == (c, f)}
            if mine:
                peak = min(mine, key=lambda p: (-mine[p], p))
                wording = tuple(context[max(peak - WINDOW.before, 0) : peak + 1])
                shown = {p: v for p, v in mine.items() if peak - WINDOW.before <= p <= peak + WINDOW.after}
                candidates.append((mine[peak], c, peak, shown, wording))
        candidates.sort(key=lambda row: (-row[0], row[1]))
        rows, seen = [], set()
        for *row, wording in candidates:
            if wording not in seen:
                rows.append(tuple(row))
                seen.add(wording)
        if candidates:
            result[f] = rows[:TOP]
    return result


@settings(max_examples=150, deadline=None)
@given(corpora())
def test_top_contexts_are_those_of_all_activations_however_the_corpus_is_cut_into_batches(corpus):
    contexts, fires, sizes = corpus
    with tempfile.TemporaryDirectory() as folder:
        assert found(*streamed(contexts, fires, sizes, Path(folder))) == by_looking_at_everything(contexts, fires)


@settings(max_examples=100, deadline=None)
@given(corpora())
def test_counts_and_histograms_are_those_of_all_activations(corpus):
    contexts, fires, sizes = corpus
    with tempfile.TemporaryDirectory() as folder:
        tops, _ = streamed(contexts, fires, sizes, Path(folder))
    assert sorted(tops.features[: tops.used].tolist()) == sorted({f for _, _, f in fires})
    for slot in range(tops.used):
        values = [v for (_, _, f), v in fires.items() if f == tops.features[slot]]
        exponent = math.frexp(max(values))[1]
        expected = np.zeros(BINS, int)
        for value in values:
            expected[int(value * BINS / 2**exponent)] += 1
        assert tops.fired[slot] == len(values)
        assert tops.exponent[slot] == exponent
        assert tops.histogram[slot].tolist() == expected.tolist()


def test_a_small_corpus_by_hand(tmp_path):
    # Feature 1 fires at 5 in both "a b" contexts (one wording), at 2 and 3 in the third, and below zero once.
    contexts = [[0, 7, 8], [0, 7, 8, 9], [0, 9, 9]]
    fires = {(0, 2, 1): 5.0, (1, 2, 1): 5.0, (1, 3, 1): 4.0, (2, 1, 1): 2.0, (2, 2, 1): 3.0, (2, 0, 1): -1.0}
    tops, log = streamed(contexts, fires, [2, 1], tmp_path)
    assert found(tops, log) == {1: [(5.0, 0, 2, {2: 5.0}), (3.0, 2, 2, {1: 2.0, 2: 3.0})]}
    assert tops.fired[: tops.used].tolist() == [5]
    counts = {i: int(n) for i, n in enumerate(tops.histogram[0]) if n}
    assert (tops.exponent[0], counts) == (3, {8: 1, 12: 1, 16: 1, 20: 2})  # bins of 8 / 32


def test_only_features_that_fire_take_room():
    touched = []

    def allocate(shape, dtype):
        touched.append(np.zeros(shape, dtype))
        return touched[-1]

    with tempfile.TemporaryDirectory() as folder:
        tops, log = LayerTops(1000, TOP, allocate), CardLog(Path(folder))
        for first in range(50):  # the same two features, over and over
            batch = ContextBatch.of([[0, first, first]], first, WINDOW)
            log.append_contexts(batch)
            tops.add(np.array([1, 2]), np.array([7, 990]), np.array([1.0, 1.0 + first], np.float32), batch, log)
        assert tops.used == 2
        for array in touched:
            assert not array[2:].any()
        assert {len(array) for _, array in tops.arrays()} == {2}
        assert tops.fired[:2].tolist() == [50, 50]


def test_the_log_grows_with_what_enters_a_top_and_not_with_the_corpus(tmp_path):
    tops, log = LayerTops(1, TOP), CardLog(tmp_path)
    for first in range(200):
        batch = ContextBatch.of([[0, first]], first, WINDOW)
        log.append_contexts(batch)
        tops.add(np.array([1]), np.array([0]), np.array([1.0 / (1 + first)], np.float32), batch, log)
    assert log.lengths["contexts"] == 200
    assert log.lengths["records"] == TOP


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_rounding_keeps_eleven_bits(value):
    [result] = rounded(np.array([value], np.float32))
    assert abs(float(result) - value) <= value * 2.0**-11
    mantissa, _ = math.frexp(float(result))
    assert (mantissa * 2**11).is_integer()


def test_wordings_are_told_apart_by_their_tokens_alone():
    window = Window(before=2, after=0)
    keys = ContextBatch.of([[5, 1, 2, 3, 4], [9, 1, 2, 3, 3], [1, 2, 3]], 0, window).keys_bw
    assert keys[0, 3] == keys[1, 3]  # 1 2 3, whatever came before
    assert keys[0, 3] == keys[2, 2]  # … also where the context begins with it
    assert len({int(key) for key in (keys[0, 0], keys[0, 1], keys[0, 2], keys[0, 4], keys[1, 4], keys[2, 0])}) == 6
