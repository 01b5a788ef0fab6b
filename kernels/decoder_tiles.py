"""Decoder rows on their way into a matrix product on the CPU: gathered and widened to float32 a tile at a time.

Letters: J layers a feature writes to, D d_model, U stored rows, n active entries of a layer, X = J * D flattened.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 1 MB of float32: a tile stays in a core's second-level cache between being written and being used.
_TILE_ELEMENTS = 1 << 18
_TILE_ROWS = 16  # fewer would starve the matrix product


class FloatRows:
    """The rows of one layer's entries as float32 matrices (n, X).

    Rows that are stored so already are used where they lie; others pass through one reused tile.
    """

    def __init__(
        self, rows_ujd: Tensor, index_n: Tensor | None, n_written: int, buffers: dict[torch.dtype, Tensor] | None = None
    ) -> None:
        """``index_n``: which row an entry uses (None: its own, in order). ``n_written``: how many of the J to use.
        ``buffers``: shared with other layers, if they are used one after the other."""
        self.n_written = n_written
        self._rows_uwd = rows_ujd[:, :n_written]
        self._index_n = index_n
        self._width = n_written * rows_ujd.shape[2]
        # float32, and each row one contiguous run
        self.stored_flat = (
            rows_ujd.dtype == torch.float32
            and (rows_ujd.shape[2] == 1 or rows_ujd.stride(2) == 1)
            and (n_written == 1 or rows_ujd.stride(1) == rows_ujd.shape[2])
        )
        self._per_tile = max(_TILE_ROWS, _TILE_ELEMENTS // max(self._width, 1))
        self._buffers = {} if buffers is None else buffers

    def tiles(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, (stop - start, X) float32) pieces of the entries ``start : stop``; a piece is valid until the
        next is asked for."""
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
