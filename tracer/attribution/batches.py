"""Which rows are computed together, and what happens when memory runs out.

Letters: P positions, L layers, D d_model.
"""

from __future__ import annotations

import gc
import math

import numpy as np
import torch
from numpy.typing import NDArray

from crosstrace.replacement_model import LocalReplacementModel, ModelDescription, Rows, Target
from crosstrace.replacement_model.local.adjoint import row_bytes
from crosstrace.replacement_model.memory import format_bytes, is_out_of_memory, usable_bytes
from crosstrace.tracer import defaults

# (row, position) pairs of a batch: enough for the matrix products to run at full rate; more would only take memory and
# reach further up and to the right than most of its rows need.
_CPU_PAIRS, _GPU_PAIRS = 4096, 65536
_FEWEST, _MOST = 32, 512
# The share of the memory budget that a batch may take.
_SHARE = 0.25
_STEADY_BUDGET = 32 * 10**9
_LARGEST_BYTES = {"cpu": 4 * 10**9}
# Long lists of targets are cut into at most this many groups by position: positions after a batch's last one cost nothing.
_MOST_POSITION_GROUPS = 4


def automatic_batch_size(local: LocalReplacementModel) -> int:
    """Return how many rows to compute at a time.

    Enough to keep the device busy, and at most what fits in a quarter of its free memory or of the budget.
    """
    device = local.residuals_lpd.device
    budget = local.transcoders.memory_budget or usable_bytes(device)
    one = row_bytes(local.description, local.n_positions, len(local.activations))
    return batch_size_for(local.n_positions, one, budget, device.type)


def steady_batch_size(description: ModelDescription, n_positions: int, device_type: str) -> int:
    """Return how many rows to compute at a time whatever memory is free, for results that are the same to the bit.

    Args:
        description: The model.
        n_positions: P, the length of the prompt.
        device_type: `cpu` or `cuda`.
    """
    return batch_size_for(n_positions, row_bytes(description, n_positions, 0), _STEADY_BUDGET, device_type)


def batch_size_for(n_positions: int, bytes_a_row: int, budget: int, device_type: str) -> int:
    """Return how many rows to compute at a time.

    Args:
        n_positions: P, the length of the prompt.
        bytes_a_row: Memory that one more row takes; see `row_bytes`.
        budget: Bytes of memory.
        device_type: `cpu` or `cuda`.
    """
    memory = min(int(_SHARE * budget), _LARGEST_BYTES.get(device_type, budget))
    busy = (_GPU_PAIRS if device_type == "cuda" else _CPU_PAIRS) // n_positions
    return max(1, min(max(busy, _FEWEST), _MOST, memory // bytes_a_row))


def position_groups(nodes: NDArray[np.int64], positions: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Split feature nodes into groups of neighbouring positions, so that batches do not reach further right than needed.

    Args:
        nodes: Feature nodes, ascending, so that their layers ascend too.
        positions: (N,) position of each active feature.
        batch_size: Rows at a time.

    Returns:
        The groups, each ascending.
    """
    count = min(_MOST_POSITION_GROUPS, round(math.sqrt(len(nodes) / batch_size)))
    if count < 2:
        return [nodes]
    bounds = np.quantile(positions[nodes], np.arange(1, count) / count, method="higher")
    group = np.searchsorted(bounds, positions[nodes], side="right")
    return [part for i in range(count) if len(part := nodes[group == i])]


def ranked_counts(cap: int) -> list[int]:
    """Return how many features each ranking chooses until there are `cap`: few at first, when little is known."""
    counts: list[int] = []
    while (known := sum(counts)) < cap:
        step = max(1, round(cap * defaults.FIRST_RANKED), int(known * defaults.RANKED_GROWTH))
        counts.append(min(step, cap - known))
    return counts


def largest_batch(n_rows: int, n_active: int, batch_size: int) -> int:
    """Return how many rows the largest batch of features has.

    Args:
        n_rows: How many features get a row.
        n_active: N; if more than `n_rows`, features are ranked and each ranking computes its own batches.
        batch_size: Rows at a time.
    """
    groups = ranked_counts(n_rows) if n_rows < n_active else [n_rows]
    return max(1, min(batch_size, max(groups, default=0)))


class Batcher:
    """Computes rows, fewer at a time once memory ran out.

    Attributes:
        local: The prompt's local replacement model.
        batch_size: The limit now in force.
    """

    def __init__(self, local: LocalReplacementModel, batch_size: int) -> None:
        self.local, self.batch_size = local, batch_size

    def rows(self, targets: list[Target]) -> Rows | None:
        """Return the rows of some targets, or None if memory ran out and the limit was lowered instead.

        Raises:
            MemoryError: Not even one row fits; the message says what to do.
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
                "use a shorter prompt, a device with more memory, or a smaller memory budget, so that less is held"
            )
        self.batch_size = max(1, min(self.batch_size, len(targets)) // 2)
        return None
