"""Which rows are computed together, and what happens when memory does not hold them.

Letters: P positions, L layers, D d_model.
"""

from __future__ import annotations

import gc
import math

import numpy as np
import torch
from numpy.typing import NDArray

from crosstrace.replacement_model import LocalReplacementModel, Rows, Target
from crosstrace.replacement_model.local.adjoint import row_bytes
from crosstrace.replacement_model.memory import format_bytes, is_out_of_memory, usable_bytes

# (row, position) pairs of a batch: enough for the matrix products to run at full rate; more would only take memory and
# reach further up and to the right than most of its rows need.
_CPU_PAIRS, _GPU_PAIRS = 4096, 65536
_FEWEST, _MOST = 32, 512
# Of the memory there is, a batch may take so much.
_SHARE = 0.25
_LARGEST_BYTES = {"cpu": 4 * 10**9}
# Long lists of targets are cut at such quantiles of their positions: positions after a batch's last one cost nothing.
_MOST_POSITION_GROUPS = 4


def automatic_batch_size(local: LocalReplacementModel) -> int:
    """Rows at a time: by what keeps the device busy, at most what fits in a quarter of its free memory or budget."""
    device = local.residuals_lpd.device
    budget = local.transcoders.memory_budget or usable_bytes(device)
    one = row_bytes(local.description, local.n_positions, len(local.activations))
    return batch_size_for(local.n_positions, one, budget, device.type)


def batch_size_for(n_positions: int, bytes_a_row: int, budget: int, device_type: str) -> int:
    """Rows at a time for a prompt of so many positions within a memory budget."""
    memory = min(int(_SHARE * budget), _LARGEST_BYTES.get(device_type, budget))
    busy = (_GPU_PAIRS if device_type == "cuda" else _CPU_PAIRS) // n_positions
    return max(1, min(max(busy, _FEWEST), _MOST, memory // bytes_a_row))


def position_groups(nodes: NDArray[np.int64], positions: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Split feature nodes (ascending, so by layer) into groups of neighbouring positions, each ascending.

    Args:
        positions: position of each active feature.
    """
    count = min(_MOST_POSITION_GROUPS, round(math.sqrt(len(nodes) / batch_size)))
    if count < 2:
        return [nodes]
    bounds = np.quantile(positions[nodes], np.arange(1, count) / count, method="higher")
    group = np.searchsorted(bounds, positions[nodes], side="right")
    return [part for i in range(count) if len(part := nodes[group == i])]


class Batcher:
    """Computes rows, fewer at a time once memory ran out.

    Attributes:
        batch_size: the limit now in force.
    """

    def __init__(self, local: LocalReplacementModel, batch_size: int) -> None:
        self.local, self.batch_size = local, batch_size

    def rows(self, targets: list[Target]) -> Rows | None:
        """The rows of some targets; None where memory ran out and the limit was lowered instead.

        Raises:
            MemoryError: not even one row fits; one line with what to do.
        """
        try:
            return self.local.rows(targets)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler: its traceback would keep the batch's tensors alive.
        self.local.adjoint.release()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(targets) == 1:
            size = row_bytes(self.local.description, self.local.n_positions, len(self.local.activations))
            raise MemoryError(
                f"not enough memory for a single row ({format_bytes(size)} beside weights and the prompt's own tensors); "
                "use a shorter prompt, a device with more memory, or a smaller memory budget, which holds less"
            )
        self.batch_size = max(1, min(self.batch_size, len(targets)) // 2)
        return None
