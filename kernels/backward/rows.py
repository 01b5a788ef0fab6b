"""One layer's row gradients from its entries: `d rows[f, j] = Σ_i w_i S[j, p_i]` over the entries i of feature f.

Decoder and encoder share it. For a decoder w is the activation and S the gradient of the outputs; for an encoder w is the
gradient of the pre-activation and S the input (J = 1).

Letters: P positions, n entries of a layer, U stored rows, u touched rows, J layers a feature writes to, D d_model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crosstrace.kernels.backward.by_feature import EntriesByFeature


def row_gradients_torch(
    entries: EntriesByFeature, positions_n: Tensor, weights_n: Tensor, source_jpd: Tensor
) -> Tensor:
    """Sum the weighted source rows of each touched row's entries, (u, J, D) float32; one layer of sources at a time."""
    n_written, _, width = source_jpd.shape
    out_ujd = torch.empty(len(entries.rows), n_written, width, device=source_jpd.device)
    positions_n, weights_n = positions_n[entries.order], weights_n.float()[entries.order]
    for j in range(n_written if len(entries.rows) else 0):
        out_ujd[:, j] = F.embedding_bag(
            positions_n, source_jpd[j], entries.offsets[:-1], mode="sum", per_sample_weights=weights_n
        )
    return out_ujd


def entry_products_torch(positions_n: Tensor, features_n: Tensor, rows_ujd: Tensor, source_jpd: Tensor) -> Tensor:
    """Compute `Σ_j <rows[f_i, j], S[j, p_i]>` of each entry, (n,) float32, without gathered copies of rows."""
    out_n = torch.zeros(len(positions_n), device=source_jpd.device)
    positions_n, features_n = positions_n.contiguous(), features_n.contiguous()
    for j in range(source_jpd.shape[0] if len(positions_n) else 0):
        # d per_sample_weights of embedding_bag: one inner product for each entry, its bag being its position
        out_n += torch.ops.aten._embedding_bag_per_sample_weights_backward(
            source_jpd[j], rows_ujd[:, j], features_n, positions_n, positions_n, 0
        )
    return out_n
