"""Batches of activations, made from text as they are needed, in a shuffle buffer of bounded size.

The buffer is filled with the activations of random windows, then handed out in chunks of neighbouring positions in random
order, once or several times over, until it is empty. Nothing else is kept. What a fill holds follows from where the window
reader was before it, so that the whole state is a few numbers, and a resumed run computes the same fill again.

Letters: L layers, T positions in the buffer, B tokens of a batch, D width of a site, S sites read.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.memory import format_bytes
from crosstrace.replacement_model.padding import pad, without_first
from crosstrace.replacement_model.training.data.capture import read_sites, sites_of
from crosstrace.replacement_model.training.data.documents import Documents
from crosstrace.replacement_model.training.data.team import Team
from crosstrace.replacement_model.training.data.windows import Notice, Window, WindowReader
from crosstrace.replacement_model.training.settings import TrainingSettings

# Tokens of one forward pass, padding included: what a CPU's cache holds well, and what keeps a GPU busy.
_PASS_TOKENS = {"cpu": 1024}
_PASS_TOKENS_ON_GPU = 16384

Filled = Callable[[int, int], None]


class ActivationStream:
    """What passes a base model's sites over a corpus, in random batches without end.

    Attributes:
        base: The base model.
        sites: What is read: inputs and outputs, or one site where both are the same.
        layers: The layers that are read.
        buffer_tokens: The most positions that the buffer holds.
        tokens: Tokens handed out so far; what is handed out again counts again.
    """

    def __init__(
        self,
        base: BaseModel,
        documents: Documents,
        settings: TrainingSettings,
        buffer_tokens: int | None = None,
        spill: Path | None = None,
        notice: Notice = lambda line: None,
        filled: Filled = lambda done, total: None,
        team: Team | None = None,
    ) -> None:
        """Prepare a stream; the first batch or sample starts it.

        Args:
            base: The base model.
            documents: The corpus.
            settings: What is trained.
            buffer_tokens: The most positions that the buffer holds; None: as the settings say.
            spill: A folder for the buffer; None keeps it in memory.
            notice: Told, in a line, when the corpus starts again.
            filled: Told how many positions of a fill are there.
            team: The processes that share the passes; None: this one alone.

        Raises:
            ValueError: The model lacks one of the layers.
        """
        n_layers, longest = base.description.n_layers, base.description.max_positions
        self.layers = list(range(n_layers)) if settings.layers is None else list(settings.layers)
        if self.layers[-1] >= n_layers:
            raise ValueError(f"layers: there is no layer {self.layers[-1]} in {base.name}; it has {n_layers}")
        self.base, self._settings, self._filled, self._spill = base, settings, filled, spill
        self.sites = sites_of(settings)
        self._team = team or Team()
        self.buffer_tokens = buffer_tokens or settings.buffer_tokens
        self._reader = WindowReader(
            documents,
            base.tokenizer,
            min(settings.context_tokens, longest),
            base.description.excluded_first + 1,
            settings.seed,
            "activations",
            notice,
        )
        self._before = self._reader.state()
        self._dtype = base.sites.embedding.get_parameter("weight").dtype
        self._fill = self._given = self.tokens = 0
        self._order = np.empty(0, np.int64)
        self._buffer_sltd: list[Tensor] = []

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next batch.

        Returns:
            Inputs and outputs (L, B, D) float32 on the model's device; the same tensor where a dictionary writes what it
            reads.

        Raises:
            ValueError: The corpus has nothing to train on, or a line is broken.
            OSError: The corpus cannot be read, or the buffer cannot be written.
        """
        rows = self._next_rows(self._settings.batch_tokens)
        self.tokens += len(rows)
        return self._values(rows)

    def sample(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return some of the buffer's positions, without taking them from the stream.

        Args:
            tokens: How many; fewer where the buffer holds fewer.

        Returns:
            Inputs and outputs (L, tokens, D) float32.
        """
        self._fill_if_empty()
        random = np.random.default_rng([self._settings.seed, *b"sample", self._fill])
        rows = np.sort(random.permutation(len(self._order) // self._settings.passes)[:tokens])
        return self._values(self._order[rows])

    def state(self) -> dict[str, Any]:
        """Return where the stream is; small."""
        return {"windows": self._before, "fill": self._fill, "given": self._given, "tokens": self.tokens}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a stream of the same corpus and settings was; its buffer is computed again."""
        self._reader.restore(state["windows"])
        self._before = self._reader.state()
        self._fill, self._given, self.tokens = state["fill"], 0, state["tokens"]
        self._order = np.empty(0, np.int64)
        if self._fill:
            self._fill -= 1
            self._fill_if_empty()
            self._given = state["given"]

    def _next_rows(self, count: int) -> np.ndarray:
        """The places of the next `count` positions in the buffer; a batch never crosses from one fill into the next."""
        if self._given + count > len(self._order):
            self._order = self._order[:0]
        self._fill_if_empty()
        rows = self._order[self._given : self._given + count]
        self._given += count
        return rows

    def _values(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        index_b = torch.from_numpy(rows)
        read = [
            torch.stack([layer_td[index_b] for layer_td in site_ltd]).to(self.base.device).float()
            for site_ltd in self._buffer_sltd
        ]
        return read[0], read[-1]

    def _fill_if_empty(self) -> None:
        if len(self._order):
            return
        self._before = self._reader.state()
        self._given = 0
        self._fill += 1
        excluded = self.base.description.excluded_first
        windows: list[Window] = []
        room = self.buffer_tokens
        while room >= self._reader.length:
            taken = self._reader.take(1)
            windows += taken
            room -= sum(len(window) - excluded for window in taken)
        total = self.buffer_tokens - room
        if total < self._settings.batch_tokens:
            raise ValueError(
                f"the buffer of {self.buffer_tokens:,} tokens holds {total:,} positions, less than a batch of "
                f"{self._settings.batch_tokens:,}; expected more memory or smaller batches"
            )
        self._allocate()
        chunks, done = [], 0
        random = np.random.default_rng([self._settings.seed, *b"chunks", self._fill])
        parts: list[tuple[int, int]] = []
        for number, batch in enumerate(_passes(windows, self._pass_tokens())):
            lengths = [len(window) - excluded for window in batch]
            parts.append((done, done + sum(lengths)))
            if number % self._team.size == self._team.rank:
                self._read(batch, done)
            for length in lengths:
                chunks += list(_chunks(done, length, self._settings.chunk_positions, random))
                done += length
            self._filled(done, total)
        self._share_out(parts)
        orders = [random.permutation(len(chunks)) for _ in range(self._settings.passes)]
        self._order = np.concatenate([np.arange(*chunks[place]) for order in orders for place in order])

    def _pass_tokens(self) -> int:
        return _PASS_TOKENS.get(self.base.device.type, _PASS_TOKENS_ON_GPU)

    def _share_out(self, parts: Sequence[tuple[int, int]]) -> None:
        """Give every process the activations of the passes that the others ran."""
        if self._team.size == 1:
            return
        for number, (start, end) in enumerate(parts):
            for site_ltd in self._buffer_sltd:
                part_ltd = site_ltd[:, start:end].contiguous().to(self.base.device)
                self._team.spread(part_ltd, number % self._team.size)
                site_ltd[:, start:end] = part_ltd

    def _read(self, windows: Sequence[Window], start: int) -> None:
        """Run windows and keep what passes the sites from a place of the buffer on."""
        tokens_bw, lengths_b = pad(windows)
        kept_bw = without_first(lengths_b, self.base.description.excluded_first)
        end = start + int(kept_bw.sum())
        keep_bw = torch.from_numpy(kept_bw).to(self.base.device)

        def keep(site: int, layer: int, value_bwd: Tensor) -> None:
            self._buffer_sltd[site][layer, start:end] = value_bwd[keep_bw]

        read_sites(self.base, torch.from_numpy(tokens_bw), self.sites, self.layers, keep)

    def _allocate(self) -> None:
        """Make the buffer, once: (L, T, D) for each site, in the model's dtype."""
        if self._buffer_sltd:
            return
        for site in self.sites:
            shape = (len(self.layers), self.buffer_tokens, site.width(self.base.description))
            if self._spill is None:
                try:
                    self._buffer_sltd.append(torch.empty(shape, dtype=self._dtype))
                except RuntimeError as error:
                    size = format_bytes(math.prod(shape) * self._dtype.itemsize)
                    raise MemoryError(
                        f"not enough memory for the activation buffer ({size}): give a smaller --memory-budget, or --spill"
                    ) from error
            else:
                self._buffer_sltd.append(_mapped(self._spill, shape, self._dtype))


def bytes_a_token(base: BaseModel, settings: TrainingSettings) -> int:
    """Return how many bytes a position takes in the buffer."""
    width = sum(site.width(base.description) for site in sites_of(settings))
    layers = base.description.n_layers if settings.layers is None else len(settings.layers)
    return layers * width * base.sites.embedding.get_parameter("weight").dtype.itemsize


def _mapped(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in a file that has no name, so that it is gone with the process however that ends.

    Raises:
        OSError: The file cannot be made, or the disk is too small for it.
    """
    size = math.prod(shape)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(
                file.fileno(), 0, size * dtype.itemsize
            )  # a full disk is an error here, not a crash later
        except OSError as problem:
            raise OSError(
                f"no room for the activation buffer ({format_bytes(size * dtype.itemsize)}) in {folder}: {problem.strerror}"
            ) from problem
        raw = np.memmap(file, np.uint8, "r+", shape=(size * dtype.itemsize,))
    return torch.from_numpy(raw).view(dtype).view(shape)


def _passes(windows: list[Window], tokens: int) -> Iterator[list[Window]]:
    """Windows that are run together: of similar length, at most `tokens` with padding."""
    batch: list[Window] = []
    for window in sorted(windows, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _chunks(start: int, count: int, size: int, random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Cut a window's positions into chunks of `size`; where the cuts are differs from window to window."""
    first = int(random.integers(1, size + 1))
    cuts = [0, *range(first, count, size), count]
    for a, b in pairwise(cuts):
        yield start + a, start + b
