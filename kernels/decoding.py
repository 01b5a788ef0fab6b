"""`decode`: active features to the reconstructions of every layer they write to.

Letters: L layers, P positions, D d_model, J layers a feature writes to, N active entries, n those of one layer,
U stored decoder rows of a layer, X = J * D flattened.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.checks import check_float, check_index, check_row_index, check_rows, check_shape
from crosstrace.kernels.decoder_tiles import FloatRows
from crosstrace.kernels.dispatch import choose_path, decode_densely


def decode_reference(
    activations: SparseActivations, rows_ujd: Sequence[Tensor], row_indices: Sequence[Tensor] | None = None
) -> Tensor:
    """Compute the definition, one entry after the other: `out[l + j, p] += a * W_dec[l, f, j]`."""
    d_model = rows_ujd[0].shape[-1]
    out_lpd = torch.zeros(activations.n_layers, activations.n_positions, d_model, device=activations.device)
    for layer, rows in enumerate(rows_ujd):
        entries = activations.layer(layer)
        for i, row_jd in enumerate((rows if row_indices is None else rows[row_indices[layer]]).float()):
            position = activations.positions[entries][i]
            out_lpd[layer : layer + row_jd.shape[0], position] += activations.values[entries][i] * row_jd
    return out_lpd


def decode(
    activations: SparseActivations, rows_ujd: Sequence[Tensor], row_indices: Sequence[Tensor] | None = None
) -> Tensor:
    """Sum the decoder vectors of the active features, for every layer at once.

    Args:
        activations: N active entries.
        rows_ujd: For each source layer l decoder rows (U_l, J_l, D); float32, bfloat16 or float16, with any strides. Part
            j of a row writes to layer l + j. J is 1 for a per-layer transcoder, L - l for a cross-layer one.
        row_indices: For each source layer (n_l,) int64, the row of `rows_ujd[l]` that each entry uses: a feature that
            fires at many positions is stored once, and a whole decoder takes the features themselves. None if each
            entry has a row of its own, in order (U_l = n_l).

    Returns:
        (L, P, D) float32, summed in float32.

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names the argument and what was expected.

    Example:
        >>> active = SparseActivations.from_indices(torch.tensor([[0, 0, 1]]), torch.tensor([2.0]), 1, 1)
        >>> decode(active, [torch.tensor([[[1.0, 3.0]]])])
        tensor([[[2., 6.]]])
    """
    d_model, dtype = check_rows(activations, rows_ujd, row_indices)
    n_layers, n_positions = activations.n_layers, activations.n_positions
    n_products = sum(
        count * rows.shape[1] * d_model
        for count, rows in zip(activations.layer_offsets.diff().tolist(), rows_ujd, strict=True)
    )
    path = choose_path("decode", activations.device, n_products)
    if path == "reference":
        return decode_reference(activations, rows_ujd, row_indices)
    n_rows = sum(rows.shape[0] for rows in rows_ujd)
    if path == "triton" and not decode_densely(activations.device, dtype, len(activations), n_positions, n_rows):
        from crosstrace.kernels.decoding_triton import decode_triton
        from crosstrace.kernels.triton_parts import launching_on

        with launching_on(activations.device):
            return decode_triton(activations, rows_ujd, row_indices)
    out_lpd = torch.zeros(n_layers, n_positions, d_model, device=activations.device)
    for layer, rows in enumerate(rows_ujd):
        entries = activations.layer(layer)
        decode_layer_torch(
            out_lpd[layer : layer + rows.shape[1]],
            activations.positions[entries],
            activations.values[entries],
            rows,
            None if row_indices is None else row_indices[layer],
            compiled=path == "compiled",
        )
    return out_lpd


def decode_layer(
    out_jpd: Tensor, positions_n: Tensor, values_n: Tensor, rows_ujd: Tensor, row_index_n: Tensor | None = None
) -> None:
    """Add the decoder vectors of one source layer's active features to `out_jpd`, in place.

    Args:
        out_jpd: (J, P, D) float32, layers l to l + J - 1.
        positions_n: (n,) int64 position of each entry, ascending.
        values_n: (n,) its activation.
        rows_ujd: (U, J, D) decoder rows; float32, bfloat16 or float16.
        row_index_n: (n,) int64 row of each entry; None if each entry has a row of its own, in order (U = n).

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names the argument and what was expected.
    """
    n_entries, device = positions_n.numel(), out_jpd.device
    check_shape("out_jpd", out_jpd, ("J", "P", "D"))
    check_float("out_jpd", out_jpd, device, (torch.float32,))
    check_index("positions_n", positions_n, ("n",), device)
    check_shape("values_n", values_n, (n_entries,))
    check_float("values_n", values_n, device)
    n_written, n_positions, d_model = out_jpd.shape
    check_shape("rows_ujd", rows_ujd, ("U" if row_index_n is not None else n_entries, n_written, d_model))
    check_float("rows_ujd", rows_ujd, device)
    if row_index_n is not None:
        check_row_index("row_index_n", row_index_n, n_entries, rows_ujd)
    if not n_entries:
        return
    path = choose_path("decode_layer", device, n_entries * n_written * d_model)
    if path == "reference":
        for i, row_jd in enumerate((rows_ujd if row_index_n is None else rows_ujd[row_index_n]).float()):
            out_jpd[:, positions_n[i]] += values_n[i].float() * row_jd
    elif path == "triton" and not decode_densely(device, rows_ujd.dtype, n_entries, n_positions, rows_ujd.shape[0]):
        from crosstrace.kernels.decoding_triton import decode_layer_triton
        from crosstrace.kernels.triton_parts import launching_on

        with launching_on(device):
            decode_layer_triton(out_jpd, positions_n, values_n, rows_ujd, row_index_n)
    else:
        decode_layer_torch(out_jpd, positions_n, values_n, rows_ujd, row_index_n, compiled=path == "compiled")


def decode_layer_torch(
    out_jpd: Tensor,
    positions_n: Tensor,
    values_n: Tensor,
    rows_ujd: Tensor,
    row_index_n: Tensor | None,
    compiled: bool = False,
) -> None:
    """Decode sparsely or densely, whichever is faster at this density; by compiled loops where rows are float32."""
    runs = all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in (out_jpd, rows_ujd))
    if decode_densely(out_jpd.device, rows_ujd.dtype, len(positions_n), out_jpd.shape[1], rows_ujd.shape[0]):
        decode_layer_dense(out_jpd, positions_n, values_n, rows_ujd, row_index_n)
    elif compiled and runs and rows_ujd.dtype == torch.float32:
        decode_layer_compiled(out_jpd, positions_n, values_n, rows_ujd, row_index_n)
    else:
        decode_layer_sparse(out_jpd, positions_n, values_n, rows_ujd, row_index_n)


def decode_layer_sparse(
    out_jpd: Tensor, positions_n: Tensor, values_n: Tensor, rows_ujd: Tensor, row_index_n: Tensor | None
) -> None:
    """Decode each position as one weighted sum of rows, in their order; the entries of a position are adjacent."""
    n_written, n_positions, d_model = out_jpd.shape
    values_n = values_n.float()
    if n_written > 1 and rows_ujd.dtype == torch.float32 and rows_ujd.stride(0) == d_model < rows_ujd.stride(1):
        # Stored target layer by target layer, as in training: then each layer's rows lie side by side.
        for out_pd, rows_ud in zip(out_jpd, rows_ujd.unbind(1), strict=True):
            decode_layer_sparse(out_pd[None], positions_n, values_n, rows_ud[:, None], row_index_n)
        return
    rows = FloatRows(rows_ujd, row_index_n, n_written)
    if rows.stored_flat:
        # torch's own sum of rows by index reads each row in place. For narrower rows it would round values and sums to
        # their dtype.
        index_n = torch.arange(len(positions_n), device=positions_n.device) if row_index_n is None else row_index_n
        starts_p = torch.searchsorted(positions_n.contiguous(), torch.arange(n_positions, device=positions_n.device))
        summed_px = F.embedding_bag(index_n, rows_ujd.flatten(1), starts_p, mode="sum", per_sample_weights=values_n)
        out_jpd += summed_px.view(n_positions, n_written, d_model).transpose(0, 1)
        return
    where, counts = torch.unique_consecutive(positions_n, return_counts=True)
    start = 0
    for position, stop in zip(where.tolist(), counts.cumsum(0).tolist(), strict=True):
        for first, last, block_nx in rows.tiles(start, stop):
            out_jpd[:, position] += (values_n[first:last] @ block_nx).view(n_written, d_model)
        start = stop


def decode_layer_compiled(
    out_jpd: Tensor, positions_n: Tensor, values_n: Tensor, rows_ujd: Tensor, row_index_n: Tensor | None
) -> None:
    """Decode one target layer after the other, whose rows stay in the cache, by loops that numba compiled."""
    from crosstrace.kernels import compiled

    n_written, n_positions, d_model = out_jpd.shape
    index_n = torch.arange(len(positions_n)) if row_index_n is None else row_index_n.contiguous()
    offsets_p = torch.searchsorted(positions_n.contiguous(), torch.arange(n_positions + 1)).numpy()
    arguments = (
        compiled.flat(out_jpd),
        *out_jpd.stride()[:2],
        compiled.flat(rows_ujd),
        *rows_ujd.stride()[:2],
        n_written,
        d_model,
        offsets_p,
        index_n.numpy(),
        values_n.detach().float().contiguous().numpy(),
    )
    compiled.in_parts(
        compiled.decode_range, arguments, compiled.even_bounds(offsets_p, n_positions, n_written * d_model)
    )


def decode_layer_dense(
    out_jpd: Tensor, positions_n: Tensor, values_n: Tensor, rows_ujd: Tensor, row_index_n: Tensor | None
) -> None:
    """Multiply a (P, U) matrix of activations with all rows, one target layer at a time."""
    n_rows = rows_ujd.shape[0]
    index_n = torch.arange(n_rows, device=positions_n.device) if row_index_n is None else row_index_n
    dense_pu = torch.zeros(out_jpd.shape[1], n_rows, device=out_jpd.device)
    dense_pu.index_put_(
        (positions_n, index_n), values_n.float(), accumulate=True
    )  # sorted, not atomic, so deterministic
    widened_ud = None if rows_ujd.dtype == torch.float32 else torch.empty_like(rows_ujd[:, 0], dtype=torch.float32)
    for j in range(rows_ujd.shape[1]):
        rows_ud = rows_ujd[:, j] if widened_ud is None else widened_ud.copy_(rows_ujd[:, j])
        out_jpd[j].addmm_(dense_pu, rows_ud)
