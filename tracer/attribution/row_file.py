"""Computed rows in a file that grows: what an interrupted trace goes on from, and where rows go that memory cannot hold.

A header, then one record a batch; each says how long it is and carries a checksum. A process that is killed in the middle
of a record leaves a tail that is recognised and cut off; the rest is whole. The file is no graph and does not load as one.

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
    """The rows of one batch, sparse, ascending by target node."""

    nodes: NDArray[np.int64]  # (B,)
    indptr: NDArray[np.int64]  # (B + 1,)
    indices: NDArray[np.int32]  # (E,) source nodes, ascending within a row
    data: NDArray[np.float32]  # (E,)
    unattributed: NDArray[np.float32]  # (B,)
    values: NDArray[np.float32]  # (B,) left-hand sides
    batch_size: int  # the limit in force when they were computed

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts())

    def _parts(self) -> list[NDArray[Any]]:
        return [self.nodes, self.indptr, self.values, self.unattributed, self.indices, self.data]


class RowFile:
    """A file of row blocks that comes into being with its first block; blocks in it are read back as mapped arrays.

    Attributes:
        path: None for a file without a name, which is gone when the process ends, however that happens.
        header: what the rows belong to.
        blocks: those the file held when it was opened.
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
        """Open a file begun before, with all its whole blocks; a tail that was cut short is removed.

        Raises:
            OSError: it cannot be read. ValueError: it is no file of rows, or not even its header is whole.
        """
        file = open(path, "rb+")  # noqa: SIM115 (kept open)
        start = file.read(len(_MAGIC) + 12)
        length = int.from_bytes(start[len(_MAGIC) : -4], "little")
        text = file.read(length) if start.startswith(_MAGIC) and len(start) == len(_MAGIC) + 12 else b""
        if not text or zlib.crc32(text) != int.from_bytes(start[-4:], "little"):
            file.close()
            raise ValueError(f"{path}: not a whole file of traced rows; delete it and trace again")
        opened = RowFile(path, json.loads(text))
        opened._opened = file
        end = file.tell()
        while (block_end := opened._read_block(end)) is not None:
            end = block_end
        file.truncate(end)
        file.seek(end)
        return opened

    def append(self, block: RowBlock) -> RowBlock:
        """Write a block down to the disk; returns it as arrays mapped from the file.

        Raises:
            OSError: the disk is full, or the like; the file holds the blocks before, whole.
        """
        begin = self._file.seek(0, os.SEEK_END)
        parts = block._parts()
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
                "the rows before are kept; make room, then go on with --resume"
            ) from error
        return self._map(begin, meta, len(text))

    def close(self, delete: bool = False) -> None:
        """``delete``: the rows are not needed any more."""
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
        for part in block._parts():
            checksum = zlib.crc32(part.view(np.uint8).data, checksum)
        if checksum != meta["crc"]:
            return None
        self.blocks.append(block)
        return end
