"""One layer's backward pass from its entries: gradients of rows, and inner products of rows and sources.

Decoder and encoder share it: `d W[f, j] = Σ_i w_i S[j, p_i]` over the entries i of feature f, and for each entry
`Σ_j <W[f_i, j], S[j, p_i]>`. For a decoder w is the activation and S the gradient of the outputs, so that the products are the
gradients of the activations; for an encoder w is the gradient of the pre-activation and S the input (J = 1).

Letters: P positions, n entries of a layer, U stored rows, u touched rows, J layers a feature writes to, D d_model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crosstrace.kernels.backward.by_feature import EntriesByFeature, LayerEntries
from crosstrace.kernels.backward.row_updates import AdamStep, RowGradients, RowMoments, adam_rows


def layer_gradients(
    path: str, entries: LayerEntries, n_rows: int, rows_ujd: Tensor | None
) -> tuple[Tensor, RowGradients]:
    """Compute the gradients of the touched rows, (u, J, D), and the entries' products, (n,), or (0,) without rows."""
    entries = entries.contiguous()
    if path == "triton":
        from crosstrace.kernels.backward.rows_triton import layer_gradients_triton
        from crosstrace.kernels.triton_parts import launching_on

        with launching_on(entries.source.device):
            return layer_gradients_triton(entries, rows_ujd)
    if path == "compiled":
        from crosstrace.kernels.backward.rows_compiled import layer_gradients_compiled

        return layer_gradients_compiled(entries, n_rows, rows_ujd)
    by_feature = EntriesByFeature.of(entries.features)
    gradients = RowGradients(by_feature.rows, row_gradients_torch(entries, by_feature))
    return entries.weights[:0] if rows_ujd is None else products_torch(entries, rows_ujd), gradients


def update_layer(path: str, entries: LayerEntries, rows_ujd: Tensor, moments: RowMoments, adam: AdamStep) -> Tensor:
    """Update the touched rows with Adam, in place; return the entries' products with the rows as they were before."""
    entries = entries.contiguous()
    if path == "compiled":
        from crosstrace.kernels.backward.rows_compiled import update_layer_compiled

        return update_layer_compiled(entries, rows_ujd, moments, adam)
    by_feature = EntriesByFeature.of(entries.features)
    gradients = RowGradients(by_feature.rows, row_gradients_torch(entries, by_feature))
    products_n = products_torch(entries, rows_ujd)
    adam_rows(rows_ujd, gradients, moments, adam)
    return products_n


def row_gradients_torch(entries: LayerEntries, by_feature: EntriesByFeature) -> Tensor:
    """Sum the weighted sources of each touched row's entries, (u, J, D), one layer of sources at a time."""
    n_written, _, width = entries.source.shape
    out_ujd = torch.empty(len(by_feature.rows), n_written, width, device=entries.source.device)
    positions_n, weights_n = entries.positions[by_feature.order], entries.weights[by_feature.order]
    for j in range(n_written if len(by_feature.rows) else 0):
        out_ujd[:, j] = F.embedding_bag(
            positions_n, entries.source[j], by_feature.offsets[:-1], mode="sum", per_sample_weights=weights_n
        )
    return out_ujd


def products_torch(entries: LayerEntries, rows_ujd: Tensor) -> Tensor:
    """Compute each entry's product of its row and source, (n,), without gathered copies."""
    out_n = torch.zeros_like(entries.weights)
    for j in range(entries.source.shape[0] if len(out_n) else 0):
        # what embedding_bag calls the gradient of its weights: an inner product for each entry, whose bag is its position
        out_n += torch.ops.aten._embedding_bag_per_sample_weights_backward(
            entries.source[j], rows_ujd[:, j], entries.features, entries.positions, entries.positions, 0
        )
    return out_n
