"""Going on with a trace that was interrupted.

Rows are kept in a file as they are computed, together with a fingerprint of what they belong to. A later run of the same
trace takes batch after batch from the file as long as the file has what it is about to compute, and goes on from there:
rankings depend on the rows alone, so that the graph is the same to the bit.
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

from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel
from crosstrace.tracer.attribution.row_file import RowBlock, RowFile
from crosstrace.tracer.attribution.row_store import RowStore
from crosstrace.tracer.attribution.targets import ResolvedTarget

# Numbers that tell other weights from the same ones need not agree to the bit.
_SAME = 1e-3


class TraceInterrupted(KeyboardInterrupt):
    """Ctrl-C during a trace whose rows are kept; its text says how to go on."""


def fingerprint(
    model: ReplacementModel, local: LocalReplacementModel, wanted: Sequence[ResolvedTarget], cap: int
) -> dict[str, Any]:
    """What rows depend on, by the words a message calls it."""
    features = hashlib.sha256(local.activations.indices.cpu().numpy().tobytes()).hexdigest()
    return {
        "prompt": local.tokens_p.tolist(),
        "model": model.name,
        "transcoders": model.transcoders.name,
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
    """The rows an earlier run left, and the file that this one adds to.

    Attributes:
        batch_size: of the earlier run, which a resumed one keeps; 0 without one.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any], resume: bool) -> None:
        """
        Raises:
            ValueError: the file holds rows and was not asked to be resumed, or they are of another trace.
            OSError: the file cannot be read.
        """
        self.path, self.identity = path, identity
        self._file: RowFile | None = None
        self._left: list[RowBlock] = []
        self.batch_size = 0
        if path is None or not path.exists():
            return
        if not resume:
            raise ValueError(
                f"{path} holds the rows of an interrupted trace; go on from them with --resume (resume=True), or delete it"
            )
        self._file = RowFile.open(path)
        before = self._file.header.get("fingerprint", {})
        for name, value in identity.items():
            if not _agree(before.get(name), value):
                self._file.close()
                raise ValueError(
                    f"{path} cannot be resumed: it was begun with another {name}"
                    f"{_difference(before.get(name), value)}; trace as before, or delete it"
                )
        self.batch_size = int(self._file.header["batch_size"])
        self._left = list(self._file.blocks)

    def open_file(self, batch_size: int) -> RowFile | None:
        """The file for rows to come; None without a path. It is only created once there is something to keep."""
        if self.path is None or self._file is not None:
            return self._file
        self._file = RowFile(self.path, {"fingerprint": self.identity, "batch_size": batch_size})
        return self._file

    def next_block(self, nodes: NDArray[np.int64]) -> RowBlock | None:
        """The earlier run's rows of the first of these nodes, where they come next in its file."""
        if not self._left:
            return None
        block = self._left[0]
        if not np.array_equal(block.nodes, nodes[: len(block.nodes)]):
            self._left.clear()  # not what it computed next: from here on, compute
            return None
        return self._left.pop(0)

    @contextmanager
    def interruptible(self, store: RowStore) -> Iterator[None]:
        """Keep what was computed, whatever ends the block.

        Raises:
            TraceInterrupted: in place of KeyboardInterrupt, where rows are kept.
        """
        try:
            yield
        except BaseException as error:
            if self.path is None or not store.n_rows:
                raise
            with suppress(OSError):  # a full disk has been said already
                store.save()
            if isinstance(error, KeyboardInterrupt):
                raise TraceInterrupted(
                    f"interrupted; {store.n_rows:,} rows are kept in {self.path}: "
                    "go on with the same command and --resume (resume=True)"
                ) from None
            raise

    def keep(self, store: RowStore) -> None:
        """Complete the file, if the trace was long enough to have begun one."""
        if self.path is not None and self.path.exists():
            store.save()

    def done(self, delete: bool) -> None:
        """The graph is whole; ``delete``: and the file not needed any more."""
        if self._file is not None:
            self._file.close(delete)


def _agree(before: Any, now: Any) -> bool:
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return all(_agree(one, other) for one, other in zip(before, now, strict=True))
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=_SAME, abs_tol=_SAME)
    return bool(before == now)


def _difference(before: Any, now: Any) -> str:
    """`` (3, now 4)`` for what is short enough to say."""
    return f" ({before}, now {now})" if isinstance(now, int | str) and len(str(now)) < 60 else ""
