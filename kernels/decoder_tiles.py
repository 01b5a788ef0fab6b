"""Decoder rows on their way into a matrix product on the CPU: gathered and widened to float32 a tile at a time.

Letters: J layers a feature writes to, D d_model, U stored rows, n active entries of a layer, X = J * D flattened.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 1 MB of float32: a tile stays in a core's second-level cache between being written and being used.
TILE_ELEMENTS = 1 << 18
TILE_ROWS = 16  # fewer would starve the matrix product


class FloatRows:
    """The decoder rows of one layer's entries as float32 matrices (n, X).

    Rows stored that way are used in place; others pass through one reused tile.

    Attributes:
        n_written: The number of target layers in use.
        stored_flat: Whether the rows are stored in float32, each as one contiguous run.
    """

    def __init__(
        self, rows_ujd: Tensor, index_n: Tensor | None, n_written: int, buffers: dict[torch.dtype, Tensor] | None = None
    ) -> None:
        """Look at how the rows are stored.

        Args:
            rows_ujd: (U, J, D) stored rows.
            index_n: (n,) int64 row of each entry; None if each entry has a row of its own, in order.
            n_written: How many of the J target layers to use.
            buffers: Tiles shared with other layers that are used at other times.
        """
        self.n_written = n_written
        self._rows_uwd = rows_ujd[:, :n_written]
        self._index_n = index_n
        self._width = n_written * rows_ujd.shape[2]
        self.stored_flat = (
            rows_ujd.dtype == torch.float32
            and (rows_ujd.shape[2] == 1 or rows_ujd.stride(2) == 1)
            and (n_written == 1 or rows_ujd.stride(1) == rows_ujd.shape[2])
        )
        self._per_tile = max(TILE_ROWS, TILE_ELEMENTS // max(self._width, 1))
        self._buffers = {} if buffers is None else buffers

    def tiles(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the rows of the entries `start : stop` in pieces.

        Yields:
            First entry, one past the last, and their rows as (entries, X) float32, valid until the next piece is made.
        """
        if self.stored_flat and self._index_n is None:
            yield start, stop, self._rows_uwd[start:stop].flatten(1)
            return
        for first in range(start, stop, self._per_tile):
            last = min(first + self._per_tile, stop)
            yield first, last, self._tile(first, last).flatten(1)

    def _tile(self, start: int, stop: int) -> Tensor:
        if self._index_n is None:
            return self._scratch(torch.float32, stop - start).copy_(self._rows_uwd[start:stop])
        gathered = self._scratch(self._rows_uwd.dtype, stop - start)
        torch.index_select(self._rows_uwd, 0, self._index_n[start:stop], out=gathered)
        if gathered.dtype == torch.float32:
            return gathered
        return self._scratch(torch.float32, stop - start).copy_(gathered)

    def _scratch(self, dtype: torch.dtype, n_rows: int) -> Tensor:
        shape = (n_rows, *self._rows_uwd.shape[1:])
        n_elements = n_rows * self._width
        if dtype not in self._buffers or self._buffers[dtype].numel() < n_elements:
            self._buffers[dtype] = torch.empty(n_elements, dtype=dtype, device=self._rows_uwd.device)
        return self._buffers[dtype][:n_elements].view(shape)
