"""One layer's backward pass on the CPU by compiled loops. Letters as in `rows`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crosstrace.kernels import compiled
from crosstrace.kernels.backward.by_feature import EntriesByFeature, LayerEntries
from crosstrace.kernels.backward.row_updates import AdamStep, RowGradients, RowMoments


def group_compiled(features_n: Tensor, n_rows: int) -> EntriesByFeature:
    """Group entries by counting, which takes time in proportion to entries and rows."""
    n_most = min(n_rows, len(features_n))
    order, rows, offsets = (np.empty(size, np.int64) for size in (len(features_n), n_most, n_most + 1))
    n_touched = compiled.group_by_feature(features_n.numpy(), n_rows, order, rows, offsets)
    parts = (order, rows[:n_touched], offsets[: n_touched + 1])
    return EntriesByFeature(*(torch.from_numpy(part) for part in parts))


def layer_gradients_compiled(
    entries: LayerEntries, n_rows: int, rows_ujd: Tensor | None
) -> tuple[Tensor, RowGradients]:
    """Compute as `crosstrace.kernels.backward.rows.layer_gradients` does."""
    by_feature = group_compiled(entries.features, n_rows)
    n_written, _, width = entries.source.shape
    products_n = torch.zeros_like(entries.weights)
    gradients_ujd = torch.empty(len(by_feature.rows), n_written, width)
    # without rows their products are not wanted: any row will do
    rows = entries.source if rows_ujd is None else rows_ujd
    stride_ru, stride_rj = (0, 0) if rows_ujd is None else rows_ujd.stride()[:2]
    arguments = (
        products_n.numpy(),
        gradients_ujd.flatten().numpy(),
        compiled.flat(rows),
        stride_ru,
        stride_rj,
        *_sources(entries),
        *_lists(entries, by_feature),
    )
    compiled.in_parts(compiled.gradient_range, arguments, _bounds(entries, by_feature))
    return products_n[:0] if rows_ujd is None else products_n, RowGradients(by_feature.rows, gradients_ujd)


def update_layer_compiled(entries: LayerEntries, rows_ujd: Tensor, moments: RowMoments, adam: AdamStep) -> Tensor:
    """Compute as `crosstrace.kernels.backward.rows.update_layer` does."""
    by_feature = group_compiled(entries.features, len(rows_ujd))
    products_n = torch.zeros_like(entries.weights)
    first, second = moments.first, moments.second
    arguments = (
        products_n.numpy(),
        compiled.flat(rows_ujd),
        *rows_ujd.stride()[:2],
        compiled.flat(first),
        compiled.flat(second),
        *first.stride()[:2],
        moments.steps.numpy(),
        *_sources(entries),
        *_lists(entries, by_feature),
        adam.learning_rate,
        adam.beta1,
        adam.beta2,
        adam.epsilon,
    )
    compiled.in_parts(compiled.adam_range, arguments, _bounds(entries, by_feature))
    return products_n


def _sources(entries: LayerEntries) -> tuple[np.ndarray, int, int, int, int]:
    n_written, _, width = entries.source.shape
    stride_sj, stride_sp = entries.source.stride()[:2]
    return compiled.flat(entries.source), stride_sj, stride_sp, n_written, width


def _lists(entries: LayerEntries, by_feature: EntriesByFeature) -> list[np.ndarray]:
    lists = (entries.positions, entries.weights, by_feature.order, by_feature.rows, by_feature.offsets)
    return [part.detach().numpy() for part in lists]


def _bounds(entries: LayerEntries, by_feature: EntriesByFeature) -> list[int]:
    n_written, _, width = entries.source.shape
    return compiled.even_bounds(by_feature.offsets.numpy(), len(by_feature.rows), n_written * width)
