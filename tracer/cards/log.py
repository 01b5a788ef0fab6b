"""Growing files of a corpus' contexts as they are read, and of activation windows as they enter a feature's top contexts.

A window that a better one displaces later stays in the file, which happens only as often as the logarithm of the corpus
grows. An interrupted run has saved the files' lengths; what was written after that is cut off.

Letters: B contexts of a batch, W positions of the longest, n active entries, c windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from crosstrace.replacement_model.padding import pad, without_first

_RECORD = np.dtype([("context", "<i8"), ("start", "<i8"), ("position", "<i4"), ("count", "<i4")])
_ENTRY = np.dtype([("position", "<i4"), ("value", "<f4")])
_TOKEN, _LENGTH = np.dtype("<i4"), np.dtype("<i4")
_HASH_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Window:
    """How much of a context is shown around its peak.

    Attributes:
        before: Tokens before the peak.
        after: Tokens after the peak.
    """

    before: int = 24
    after: int = 8


@dataclass(frozen=True)
class ContextBatch:
    """Contexts that are run together, padded on the right.

    Attributes:
        tokens_bw: (B, W) token ids, 0 where padded.
        lengths_b: (B,) tokens of each context.
        first: The number of the first context in the corpus.
        window: How much is kept around a peak.
    """

    tokens_bw: NDArray[np.int64]
    lengths_b: NDArray[np.int64]
    first: int
    window: Window

    @staticmethod
    def of(contexts: Sequence[Sequence[int]], first: int, window: Window) -> ContextBatch:
        """Pad contexts on the right to the longest.

        Args:
            contexts: B lists of token ids.
            first: The number of the first context in the corpus.
            window: How much is kept around a peak.
        """
        return ContextBatch(*pad(contexts), first, window)

    @property
    def width(self) -> int:
        """W, the positions of the longest context."""
        return self.tokens_bw.shape[1]

    @cached_property
    def keys_bw(self) -> NDArray[np.uint64]:
        """The wording at each position (B, W): a hash of the tokens of the window that ends there.

        It is a polynomial in the tokens modulo 2 ** 64, so that a window's hash is the difference of two prefixes' hashes.
        """
        n = self.window.before + 1
        prefix_bw = np.empty(self.tokens_bw.shape, np.uint64)
        running = np.zeros(len(self.tokens_bw), np.uint64)
        power = np.uint64(1)
        with np.errstate(over="ignore"):
            for position in range(self.width):
                running = running * _HASH_BASE + self.tokens_bw[:, position].astype(np.uint64) + np.uint64(1)
                prefix_bw[:, position] = running
                power = power * _HASH_BASE if position < n else power
            keys_bw = prefix_bw.copy()
            keys_bw[:, n:] -= prefix_bw[:, : max(self.width - n, 0)] * power
        return keys_bw


class CardLog:
    """The growing files of a run, in its folder.

    Attributes:
        folder: Where they are.
        lengths: How many `contexts`, `tokens`, `records` and `entries` have been written.
    """

    _FILES = (("contexts", _LENGTH), ("tokens", _TOKEN), ("records", _RECORD), ("entries", _ENTRY))

    def __init__(self, folder: Path, lengths: dict[str, int] | None = None) -> None:
        """Open the files.

        Args:
            folder: Where they are.
            lengths: The lengths that an earlier run saved: the files are cut there and continued. None starts afresh.

        Raises:
            OSError: A file cannot be opened.
            ValueError: A file is shorter than it was.
        """
        self.folder = folder
        self._open: dict[str, IO[bytes]] = {}
        self.lengths = dict(lengths or {name: 0 for name, _ in self._FILES})
        for name, dtype in self._FILES:
            path = folder / f"{name}.bin"
            path.touch()
            if path.stat().st_size < (size := self.lengths[name] * dtype.itemsize):
                raise ValueError(f"{path} is shorter than it was when the run was interrupted; delete {folder}")
            file = path.open("rb+")
            file.truncate(size)
            file.seek(size)
            self._open[name] = file

    @property
    def n_contexts(self) -> int:
        """How many contexts have been written."""
        return self.lengths["contexts"]

    def append_contexts(self, batch: ContextBatch) -> None:
        """Keep a batch's tokens."""
        real_bw = without_first(batch.lengths_b, 0)
        self._write("contexts", batch.lengths_b.astype(_LENGTH))
        self._write("tokens", batch.tokens_bw[real_bw].astype(_TOKEN))

    def append(
        self,
        batch: ContextBatch,
        places_n: NDArray[np.int64],
        values_n: NDArray[np.float32],
        segment_n: NDArray[np.int64],
        chosen_c: NDArray[np.int64],
        peak_c: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Keep the windows around some peaks.

        Args:
            batch: The contexts.
            places_n: (n,) places of a layer's active entries in the batch's flat (B * W).
            values_n: (n,) their activations.
            segment_n: (n,) the segment of each, one for each feature and context, ascending.
            chosen_c: (c,) segments whose window is kept, ascending.
            peak_c: (c,) the entry at the peak of each window.

        Returns:
            (c,) the number of each window's record.
        """
        width, window = batch.width, batch.window
        row_c, peak_position_c = np.divmod(places_n[peak_c], width)
        # Entries ascend by segment, then place: a window is a run of them.
        at_n = segment_n * width + places_n % width
        first_c = np.searchsorted(at_n, chosen_c * width + np.maximum(peak_position_c - window.before, 0))
        last_c = np.searchsorted(
            at_n, chosen_c * width + np.minimum(peak_position_c + window.after, width - 1), "right"
        )
        count_c = last_c - first_c
        starts_c = np.cumsum(count_c) - count_c
        taken = np.repeat(first_c - starts_c, count_c) + np.arange(int(count_c.sum()))
        entries = np.empty(len(taken), _ENTRY)
        entries["position"], entries["value"] = places_n[taken] % width, values_n[taken]
        records = np.empty(len(chosen_c), _RECORD)
        records["context"], records["position"] = batch.first + row_c, peak_position_c
        records["start"], records["count"] = self.lengths["entries"] + starts_c, count_c
        number = self.lengths["records"]
        self._write("records", records)
        self._write("entries", entries)
        return np.arange(number, number + len(records))

    def _write(self, name: str, array: NDArray[Any]) -> None:
        self._open[name].write(array.tobytes())
        self.lengths[name] += len(array)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        for file in self._open.values():
            file.flush()

    def mapped(self, name: str) -> NDArray[Any]:
        """Return what has been written of one kind as a mapped array.

        Args:
            name: `contexts`, `tokens`, `records` or `entries`.
        """
        self.flush()
        dtype = dict(self._FILES)[name]
        if not self.lengths[name]:
            return np.empty(0, dtype)
        return np.memmap(self.folder / f"{name}.bin", dtype, "r", shape=(self.lengths[name],))

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
