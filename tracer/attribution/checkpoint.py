"""Continuing an interrupted trace.

Rows are kept in a file as they are computed, together with the identity of the trace they belong to. A later run of the
same trace takes batch after batch from the file while the file has what it is about to compute, and then computes the
rest. Rankings depend on the rows alone, so the graph is the same to the bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosstrace.graphs.fingerprints import same_fingerprints
from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel, weight_fingerprints
from crosstrace.tracer.attribution.row_file import RowBlock, RowFile
from crosstrace.tracer.attribution.row_store import RowStore
from crosstrace.tracer.attribution.targets import ResolvedTarget

# Numbers that tell weights apart need not agree to the bit.
_SAME = 1e-3


class TraceInterrupted(KeyboardInterrupt):
    """Ctrl-C during a trace whose rows are kept; its text says how to continue."""


def trace_identity(
    model: ReplacementModel, local: LocalReplacementModel, wanted: Sequence[ResolvedTarget], cap: int
) -> dict[str, Any]:
    """Return what rows depend on, under the words that a message uses for it.

    Args:
        model: The replacement model.
        local: The prompt's local replacement model.
        wanted: The targets.
        cap: How many features get a row at most.
    """
    features = hashlib.sha256(local.activations.indices.cpu().numpy().tobytes()).hexdigest()
    return {
        "prompt": local.tokens_p.tolist(),
        "model": model.name,
        "transcoders": model.transcoders.name,
        "weights, by their fingerprints": weight_fingerprints(model),
        "targets": [[target.string, target.token, target.target.layer, target.target.position] for target in wanted],
        "max_feature_nodes": cap,
        "excluded_first": model.description.excluded_first,
        "dtype": str(model.transcoders.weights_dtype),
        "device": model.device.type,
        "active features": features,
        "weights": [
            *local.errors_lpd.flatten(1).norm(dim=1).tolist(),
            *(float(target.target.gradient_d.norm()) for target in wanted),
            *(target.weight for target in wanted),
        ],
    }


class Checkpoint:
    """The rows an earlier run left, and the file that this run adds to.

    Attributes:
        path: The file; None keeps nothing.
        identity: What the rows depend on; see `trace_identity`.
        batch_size: Rows at a time in the earlier run, which a resumed run keeps; 0 without an earlier run.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any], resume: bool) -> None:
        """Open the file, if there is one.

        Args:
            path: The file; None keeps nothing.
            identity: What the rows depend on; see `trace_identity`.
            resume: Use the rows in the file.

        Raises:
            ValueError: The file holds rows although `resume` is False, or its rows are of another trace.
            OSError: The file cannot be read.
        """
        self.path, self.identity = path, identity
        self._file: RowFile | None = None
        self._left: list[RowBlock] = []
        self.batch_size = 0
        if path is None or not path.exists():
            return
        if not resume:
            raise ValueError(
                f"{path} holds the rows of an interrupted trace; continue it with --resume (resume=True), or delete the file"
            )
        self._file = RowFile.open(path)
        before = self._file.header.get("fingerprint", {})
        for name, value in identity.items():
            if not _agree(before.get(name, value), value):  # a file may be from before there was such a key
                self._file.close()
                raise ValueError(
                    f"{path} cannot be resumed: it was started with different {name}"
                    f"{_difference(before.get(name), value)}; trace as before, or delete the file"
                )
        self.batch_size = int(self._file.header["batch_size"])
        self._left = list(self._file.blocks)

    def open_file(self, batch_size: int) -> RowFile | None:
        """Return the file for new rows, which is created with the first of them; None without a path."""
        if self.path is None or self._file is not None:
            return self._file
        self._file = RowFile(self.path, {"fingerprint": self.identity, "batch_size": batch_size})
        return self._file

    def next_block(self, nodes: NDArray[np.int64]) -> RowBlock | None:
        """Return the earlier run's rows for the first of these nodes if they come next in its file, else None."""
        if not self._left:
            return None
        block = self._left[0]
        if not np.array_equal(block.nodes, nodes[: len(block.nodes)]):
            self._left.clear()  # the earlier run computed something else here: compute from here on
            return None
        return self._left.pop(0)

    @contextmanager
    def interruptible(self, store: RowStore) -> Iterator[None]:
        """Keep the rows that were computed, whatever ends the block.

        Raises:
            TraceInterrupted: In place of KeyboardInterrupt, where rows are kept.
        """
        try:
            yield
        except BaseException as error:
            if self.path is None or not store.n_rows:
                raise
            with suppress(OSError):  # a full disk has been reported already
                store.save()
            if isinstance(error, KeyboardInterrupt):
                raise TraceInterrupted(
                    f"interrupted; {store.n_rows:,} rows are kept in {self.path}: "
                    "continue with the same command and --resume (resume=True)"
                ) from None
            raise

    def keep(self, store: RowStore) -> None:
        """Complete the file, if the trace took long enough to create one."""
        if self.path is not None and self.path.exists():
            store.save()

    def done(self, delete: bool) -> None:
        """Close the file once the graph is complete.

        Args:
            delete: Delete the file too.
        """
        if self._file is not None:
            self._file.close(delete)


def _agree(before: Any, now: Any) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        return same_fingerprints(before, now)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return all(_agree(one, other) for one, other in zip(before, now, strict=True))
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=_SAME, abs_tol=_SAME)
    return bool(before == now)


def _difference(before: Any, now: Any) -> str:
    """Return ` (3, now 4)` for values that are short enough to print."""
    return f" ({before}, now {now})" if isinstance(now, int | str) and len(str(now)) < 60 else ""
