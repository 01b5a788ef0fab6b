"""Computed rows in a growing file, from which an interrupted trace continues, or for rows that memory cannot hold.

The file is a header, then one record for each batch with its length and a checksum. A process that is killed in the middle
of a record leaves a tail that is recognised and cut off; the rest is whole. The file is not a graph and does not load as one.

Letters: B rows of a batch, E edges.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"crosstrace-rows/1\n"
_ALIGN = 64


@dataclass(frozen=True, eq=False)
class RowBlock:
    """The rows of one batch, sparse, ascending by target node.

    Attributes:
        nodes: (B,) target nodes.
        indptr: (B + 1,) where each row starts and ends in `indices` and `data`.
        indices: (E,) source nodes, ascending within a row.
        data: (E,) edges.
        unattributed: (B,) what decoder biases and excluded positions add to each row.
        values: (B,) left-hand sides.
        batch_size: The most rows at a time when they were computed.
    """

    nodes: NDArray[np.int64]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    unattributed: NDArray[np.float32]
    values: NDArray[np.float32]
    batch_size: int

    @property
    def nbytes(self) -> int:
        """The memory of its arrays, in bytes."""
        return sum(part.nbytes for part in self.arrays())

    def arrays(self) -> list[NDArray[Any]]:
        """Return its arrays, in the order of the file."""
        return [self.nodes, self.indptr, self.values, self.unattributed, self.indices, self.data]


class RowFile:
    """A file of row blocks, created with its first block; its blocks are read back as mapped arrays.

    Attributes:
        path: None for a nameless file, which disappears when the process ends, however it ends.
        header: What the rows belong to.
        blocks: The blocks that the file held when it was opened.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.path, self.header = path, header
        self.blocks: list[RowBlock] = []
        self._opened: IO[bytes] | None = None

    @property
    def _name(self) -> str:
        return "the temporary folder" if self.path is None else str(self.path)

    @property
    def _file(self) -> IO[bytes]:
        if self._opened is None:
            text = json.dumps(self.header).encode()
            try:
                self._opened = tempfile.TemporaryFile() if self.path is None else open(self.path, "wb+")  # noqa: SIM115
                self._opened.write(
                    _MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little") + text
                )
                self._opened.flush()
            except OSError as error:
                raise type(error)(f"cannot keep rows in {self._name}: {error.strerror or error}") from error
        return self._opened

    @staticmethod
    def open(path: Path) -> RowFile:
        """Open an existing file with all its whole blocks, and remove a tail that was cut short.

        Args:
            path: The file.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not a file of rows, or even its header is damaged.
        """
        file = open(path, "rb+")  # noqa: SIM115 (kept open)
        start = file.read(len(_MAGIC) + 12)
        length = int.from_bytes(start[len(_MAGIC) : -4], "little")
        text = file.read(length) if start.startswith(_MAGIC) and len(start) == len(_MAGIC) + 12 else b""
        if not text or zlib.crc32(text) != int.from_bytes(start[-4:], "little"):
            file.close()
            raise ValueError(f"{path}: not a complete file of traced rows; delete it and trace again")
        opened = RowFile(path, json.loads(text))
        opened._opened = file
        end = file.tell()
        while (block_end := opened._read_block(end)) is not None:
            end = block_end
        file.truncate(end)
        file.seek(end)
        return opened

    def append(self, block: RowBlock) -> RowBlock:
        """Write a block through to the disk, and return it as arrays mapped from the file.

        Args:
            block: The rows of one batch.

        Raises:
            OSError: The disk is full, or the like; the earlier blocks in the file stay whole.
        """
        begin = self._file.seek(0, os.SEEK_END)
        parts = block.arrays()
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(np.ascontiguousarray(part).view(np.uint8).data, checksum)
        meta = {"rows": len(block.nodes), "edges": len(block.data), "batch": block.batch_size, "crc": checksum}
        text = json.dumps(meta).encode()
        try:
            self._file.write(len(text).to_bytes(4, "little") + text)
            self._file.write(b"\0" * (-self._file.tell() % _ALIGN))
            for part in parts:
                self._file.write(np.ascontiguousarray(part).view(np.uint8).data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(begin)
            raise type(error)(
                f"cannot keep rows in {self._name}: {error.strerror or error}; "
                "the earlier rows are kept; make room, then continue with --resume"
            ) from error
        return self._map(begin, meta, len(text))

    def close(self, delete: bool = False) -> None:
        """Close the file.

        Args:
            delete: Delete it too, because its rows are no longer needed.
        """
        if self._opened is not None:
            self._opened.close()
            if delete and self.path is not None:
                self.path.unlink(missing_ok=True)

    def _map(self, begin: int, meta: dict[str, Any], text_length: int) -> RowBlock:
        rows, edges = meta["rows"], meta["edges"]
        at = begin + 4 + text_length
        at += -at % _ALIGN
        arrays: list[NDArray[Any]] = []
        for dtype, count in (("i8", rows), ("i8", rows + 1), ("f4", rows), ("f4", rows), ("i4", edges), ("f4", edges)):
            kind = np.dtype(dtype)
            # An empty range cannot be mapped.
            array = np.memmap(self._file, kind, "r", at, (count,)) if count else np.empty(0, kind)
            arrays.append(array)
            at += count * kind.itemsize
        nodes, indptr, values, unattributed, indices, data = arrays
        return RowBlock(nodes, indptr, indices, data, unattributed, values, meta["batch"])

    def _read_block(self, begin: int) -> int | None:
        """Take in the block that begins here, if it is whole; returns where it ends."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(begin)
        length = int.from_bytes(self._file.read(4), "little")
        text = self._file.read(length)
        if not length or len(text) < length:
            return None
        try:
            meta = json.loads(text)
            rows, edges = meta["rows"], meta["edges"]
        except (ValueError, KeyError, TypeError):
            return None
        at = begin + 4 + length
        end = at + -at % _ALIGN + 16 * rows + 8 + 8 * rows + 8 * edges
        if end > size:
            return None
        block = self._map(begin, meta, length)
        checksum = 0
        for part in block.arrays():
            checksum = zlib.crc32(part.view(np.uint8).data, checksum)
        if checksum != meta["crc"]:
            return None
        self.blocks.append(block)
        return end
