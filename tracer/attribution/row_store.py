"""Rows of the adjacency as they are computed, and which features should get one next.

Rows are kept as they come in sparse blocks, in memory or, past a budget, in a file. Nothing is ever dense in two
dimensions, and every question is answered block by block.

Letters: N active features, L layers, P positions, B rows of a batch, k targets, n nodes, E edges.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from crosstrace.graphs import NodeLayout
from crosstrace.replacement_model import Rows
from crosstrace.tracer import defaults
from crosstrace.tracer.attribution.row_file import RowBlock, RowFile

# Edges looked at in one go, which bounds the copies.
EDGES_AT_A_TIME = 1 << 22


def rows_in_memory(memory_budget: int | None, device_type: str) -> int:
    """Return how many bytes of rows are held in memory before they go to a file: on a CPU a quarter of a user's budget.

    Args:
        memory_budget: The user's budget in bytes, or None.
        device_type: `cpu` or `cuda`.
    """
    return defaults.ROWS_IN_MEMORY if memory_budget is None or device_type != "cpu" else memory_budget // 4


def bytes_to_add(n_sources: int) -> int:
    """Return what `RowStore.add` takes for one row of a batch while it makes the row sparse.

    For each source the row and a mask (5 bytes); for each edge, about half of the sources, three int64 (its place in the
    batch, where its row starts, their difference) and the edge itself (8 bytes).

    Args:
        n_sources: Columns of a dense row.
    """
    return n_sources * (5 + (3 * 8 + 8) // 2)


@dataclass(frozen=True, eq=False)
class AssembledRows:
    """The rows between the kept nodes, in their order, and what came from all others.

    Attributes:
        edges: (n, n) float32 over the kept nodes.
        unattributed: (n,) what decoder biases and excluded positions add.
        values: (n,) left-hand sides.
        omitted: (n,) sum of the edges from nodes that are not kept.
        omitted_magnitude: (n,) sum of their absolute values.
    """

    edges: scipy.sparse.csr_array
    unattributed: NDArray[np.float32]
    values: NDArray[np.float32]
    omitted: NDArray[np.float32]
    omitted_magnitude: NDArray[np.float32]


class RowStore:
    """Rows over *all* active features, in the node order of a graph that selects every one of them.

    Attributes:
        layout: That node order.
        file: Where rows are kept for a later run, if anywhere.
        known: (n,) bool, whether each node has a row.
    """

    def __init__(
        self,
        layout: NodeLayout,
        feature_layers: NDArray[np.int64],
        memory: int = defaults.ROWS_IN_MEMORY,
        file: RowFile | None = None,
        edges_at_a_time: int = EDGES_AT_A_TIME,
    ) -> None:
        """Start without rows.

        Args:
            layout: The node order of a graph that selects every active feature.
            feature_layers: (N,) layer of each feature.
            memory: Bytes of rows held in memory; beyond that they go to the file.
            file: Where rows are kept for a later run; None: a temporary file, once memory is not enough.
            edges_at_a_time: How many edges are looked at in one go.
        """
        self.layout, self.file = layout, file
        self._edges_at_a_time = edges_at_a_time
        self._heights = np.full(layout.n, layout.n_layers)  # of target rows: above all layers
        self._heights[layout.features] = feature_layers
        self._memory = memory
        self._blocks: list[RowBlock] = []
        self._totals: list[NDArray[np.float64]] = []  # (B,) sum of absolute edges of each row
        self._in_memory = 0
        self._unsaved: list[int] = []
        self._saved_at = time.monotonic()
        self.known = np.zeros(layout.n, dtype=np.bool_)

    @property
    def blocks(self) -> list[RowBlock]:
        """The rows as they came, batch by batch."""
        return list(self._blocks)

    @property
    def n_rows(self) -> int:
        """How many rows are known."""
        return int(self.known.sum())

    def add(self, nodes: NDArray[np.int64], rows: Rows, values: NDArray[np.float32], batch_size: int = 0) -> None:
        """Keep the rows of some target nodes.

        Args:
            nodes: (B,) target nodes, ascending.
            rows: Their rows.
            values: (B,) their left-hand sides.
            batch_size: The most rows at a time when they were computed, kept for a resumed run.

        Raises:
            OSError: Rows go to a file that cannot be written.
        """
        dense = torch.cat([rows.features_bn, rows.errors_blp.flatten(1), rows.tokens_bp], dim=1)
        present = dense != 0
        counts = present.sum(1)
        indptr = np.zeros(len(nodes) + 1, dtype=np.int64)
        np.cumsum(counts.cpu().numpy(), out=indptr[1:])
        flat = present.flatten().nonzero()[:, 0]
        starts = torch.repeat_interleave(torch.arange(len(nodes), device=dense.device) * dense.shape[1], counts)
        indices = (flat - starts).to(torch.int32).cpu().numpy()
        data = dense.flatten()[flat].cpu().numpy()
        block = RowBlock(nodes, indptr, indices, data, rows.unattributed_b.cpu().numpy(), values, batch_size)
        self._unsaved.append(len(self._blocks))
        self._in_memory += block.nbytes
        self._take(block)
        if self._in_memory > self._memory:
            self.save(release=True)
        elif self.file is not None and time.monotonic() - self._saved_at > defaults.SAVE_EVERY_SECONDS:
            self.save()

    def add_saved(self, block: RowBlock) -> None:
        """Add rows from the file of an earlier run."""
        self._take(block)

    def _take(self, block: RowBlock) -> None:
        self._blocks.append(block)
        totals = np.zeros(len(block.nodes))
        for start, stop in _pieces(block, 0, len(block.nodes), self._edges_at_a_time):
            first, last = block.indptr[start], block.indptr[stop]
            cumulated = np.concatenate([[0.0], np.cumsum(np.abs(block.data[first:last]), dtype=np.float64)])
            totals[start:stop] = np.diff(cumulated[block.indptr[start : stop + 1] - first])
        self._totals.append(totals)
        self.known[block.nodes] = True

    def save(self, release: bool = False) -> None:
        """Write the rows that are not in the file yet.

        Args:
            release: Stop holding them in memory.

        Raises:
            OSError: The disk is full, or the like.
        """
        if self.file is None:
            self.file = RowFile(None, {})
        while self._unsaved:
            at = self._unsaved[0]
            mapped = self.file.append(self._blocks[at])
            self._unsaved.pop(0)
            if release:
                self._blocks[at] = mapped
        if release:
            self._in_memory = 0
        self._saved_at = time.monotonic()

    def most_influential(self, count: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the features without a row that have the most influence on the targets through the rows known so far.

        Args:
            count: How many features.
            weights: (n,) weight of each target.

        Returns:
            (count,) feature nodes, ascending.
        """
        influence = self.influence(weights)[self.layout.features]
        influence[self.known[self.layout.features]] = -1.0
        return np.sort(np.argsort(-influence, kind="stable")[:count])

    def influence(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the influence (n,) of every node on the targets, as `crosstrace.graphs.analysis.influence.spread` does.

        Each row is read once, from the top down, because the sources of a row of layer l are all below l.

        Args:
            weights: (n,) weight of each target.
        """
        influence = np.zeros(self.layout.n)
        pieces: list[list[tuple[int, int, int]]] = [[] for _ in range(self.layout.n_layers + 1)]
        for at, block in enumerate(self._blocks):
            heights = self._heights[block.nodes]
            bounds = np.flatnonzero(np.diff(heights, prepend=-1, append=-1)).tolist()
            for first_row, end in itertools.pairwise(bounds):
                pieces[heights[first_row]] += [
                    (at, *piece) for piece in _pieces(block, first_row, end, self._edges_at_a_time)
                ]
        for level in reversed(pieces):
            for at, start, stop in level:
                block, nodes = self._blocks[at], self._blocks[at].nodes[start:stop]
                total = self._totals[at][start:stop]
                flow = np.divide(weights[nodes] + influence[nodes], total, out=np.zeros(len(nodes)), where=total > 0)
                if not flow.any():
                    continue
                first, last = block.indptr[start], block.indptr[stop]
                rows = scipy.sparse.csr_array(
                    (np.abs(block.data[first:last]), block.indices[first:last], block.indptr[start : stop + 1] - first),
                    shape=(stop - start, self.layout.n),
                )
                influence += rows.T @ flow
        return influence

    def assemble(self, kept: NDArray[np.int64]) -> AssembledRows:
        """Return the rows and columns of some nodes as a graph holds them; the store is empty afterwards.

        Blocks are released one by one as they are copied, so that edges are not in memory twice.

        Args:
            kept: The nodes, ascending.
        """
        place = np.full(self.layout.n, -1, dtype=np.int32)
        place[kept] = np.arange(len(kept))
        counts = np.zeros(len(kept) + 1, dtype=np.int64)
        for block in self._blocks:
            for start, stop in _pieces(block, 0, len(block.nodes), self._edges_at_a_time):
                first, last = block.indptr[start], block.indptr[stop]
                inside = np.concatenate([[0], np.cumsum(place[block.indices[first:last]] >= 0)])
                rows = place[block.nodes[start:stop]]
                per_row = np.diff(inside[block.indptr[start : stop + 1] - first])
                counts[1 + rows[rows >= 0]] = per_row[rows >= 0]
        indptr = np.cumsum(counts)
        result = AssembledRows(
            scipy.sparse.csr_array((len(kept), len(kept)), dtype=np.float32),
            *(np.zeros(len(kept), dtype=np.float32) for _ in range(4)),
        )
        spilled = self._in_memory == 0 and any(isinstance(block.data, np.memmap) for block in self._blocks)
        indices, data = _empty(int(indptr[-1]), np.int32, spilled), _empty(int(indptr[-1]), np.float32, spilled)
        while self._blocks:
            block = self._blocks.pop()
            for at, row in enumerate(place[block.nodes]):
                if row < 0:
                    continue
                result.unattributed[row], result.values[row] = block.unattributed[at], block.values[at]
                first, last = block.indptr[at], block.indptr[at + 1]
                columns, edges = place[block.indices[first:last]], block.data[first:last]
                inside = columns >= 0
                target = slice(indptr[row], indptr[row + 1])
                indices[target], data[target] = columns[inside], edges[inside]
                outside = edges[~inside]
                result.omitted[row] = outside.sum(dtype=np.float64)
                result.omitted_magnitude[row] = np.abs(outside).sum(dtype=np.float64)
        self._totals.clear()
        small = indptr[-1] < 2**31
        edges = scipy.sparse.csr_array(
            (data, indices, indptr.astype(np.int32) if small else indptr), shape=(len(kept), len(kept))
        )
        edges.has_canonical_format = True  # columns ascend within each block's rows, and nodes keep their order
        return AssembledRows(edges, result.unattributed, result.values, result.omitted, result.omitted_magnitude)


def _pieces(block: RowBlock, start: int, stop: int, edges_at_a_time: int) -> Iterator[tuple[int, int]]:
    """Yield rows `start : stop` of a block in pieces of bounded size, each of at least one row."""
    while start < stop:
        limit = int(np.searchsorted(block.indptr, block.indptr[start] + edges_at_a_time, side="right")) - 1
        end = min(stop, max(start + 1, limit))
        yield start, end
        start = end


def _empty(size: int, dtype: type, on_disk: bool) -> NDArray:
    """Return an array in memory, or in a nameless file if the rows did not fit in memory either."""
    if not on_disk or not size:
        return np.empty(size, dtype)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=(size,))
