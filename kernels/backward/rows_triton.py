"""The backward pass on a GPU: a program per (touched row, target layer, slice of D), one launch for the rows of all layers.

A program owns its slice of one row: it sums the weighted sources of the row's entries in their order, then writes the
gradient or updates slice and moments with Adam, so that each row is read and written once and nothing is added atomically.
The products of entries and rows need whole rows; a second kernel takes a few entries at a time, before the update.

Letters: L layers, P positions, N entries, n those of a layer, U stored rows of a layer, u touched rows of it, R of all layers,
J layers a feature writes to, D d_model.
"""

# mypy: disable-error-code="no-untyped-def"

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.backward.by_feature import EntriesByFeature, LayerEntries
from crosstrace.kernels.backward.row_updates import AdamStep, RowGradients, RowMoments
from crosstrace.kernels.dispatch import triton_interpreted
from crosstrace.kernels.triton_parts import power_of_two, row_table

BLOCK_E, BLOCK_D, WARPS = 8, 256, 4  # entries in flight at a time, and the slice of a row that a program owns
BLOCK_R = 256  # rows whose steps a program counts


@triton.jit
def sum_entries(
    p_source,  # (J, P, D) float32, at the target layer and slice
    p_positions,  # (n,) int64, by feature
    p_weights,  # (n,) float32, by feature
    start,
    stop,
    stride_sp,
    m_d,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_d = tl.arange(0, BLOCK_D)
    b_sum = tl.zeros([BLOCK_D], dtype=tl.float32)
    for i_e in range(start, stop, BLOCK_E):
        o_e = i_e + tl.arange(0, BLOCK_E)
        m_e = o_e < stop
        b_position = tl.load(p_positions + o_e, mask=m_e, other=0)  # 64-bit: P * stride may pass 2^31
        b_weight = tl.load(p_weights + o_e, mask=m_e, other=0.0)
        p_rows = p_source + b_position * stride_sp
        b_rows = tl.load(p_rows[:, None] + o_d[None, :], mask=m_e[:, None] & m_d[None, :], other=0.0)
        b_sum += tl.sum(b_rows * b_weight[:, None], axis=0)
    return b_sum


@triton.jit(do_not_specialize=["n_written"])
def row_gradients_kernel(
    p_out,  # (u, J, D) float32
    p_source,  # (J, P, D) float32
    p_positions,  # (n,) int64, by feature
    p_weights,  # (n,) float32, by feature
    p_offsets,  # (u + 1,) int64
    n_written,
    width,  # D
    stride_sj,
    stride_sp,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_u, i_j, i_d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    d_start = i_d * BLOCK_D
    o_d = tl.arange(0, BLOCK_D)
    m_d = d_start + o_d < width
    start, stop = tl.load(p_offsets + i_u), tl.load(p_offsets + i_u + 1)
    p_source += i_j * stride_sj + d_start
    b_sum = sum_entries(p_source, p_positions, p_weights, start, stop, stride_sp, m_d, BLOCK_E, BLOCK_D)
    tl.store(p_out + (i_u * n_written + i_j) * width + d_start + o_d, b_sum, mask=m_d)


@triton.jit
def load_moments(p_moments, m_d, IN_BITS: tl.constexpr):
    if IN_BITS:  # bfloat16 as its bits, for the interpreter, which widens it wrongly
        b_bits = tl.load(p_moments, mask=m_d, other=0).to(tl.int32) << 16
        b_moments = b_bits.to(tl.float32, bitcast=True)
    else:
        b_moments = tl.load(p_moments, mask=m_d, other=0.0).to(tl.float32)
    return b_moments


@triton.jit
def store_moments(p_moments, b_moments, m_d, IN_BITS: tl.constexpr):
    if IN_BITS:
        b_bits = b_moments.to(tl.int32, bitcast=True)
        b_rounded = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) >> 16  # to nearest, ties to even
        tl.store(p_moments, b_rounded.to(tl.int16), mask=m_d)
    else:
        tl.store(p_moments, b_moments.to(p_moments.dtype.element_ty), mask=m_d)


@triton.jit(do_not_specialize=["n_touched"])
def count_steps_kernel(
    p_sizes,  # (R,) float32: learning rate, corrected for the first moment's bias
    p_roots,  # (R,) float32: what the root of the second moment is multiplied with
    p_layers,  # (R,) int64
    p_features,  # (R,) int64
    p_table,  # (L, COLUMNS) int64
    n_touched,  # R
    learning_rate,
    log_beta1,
    log_beta2,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_r = o_r < n_touched
    b_layer = tl.load(p_layers + o_r, mask=m_r, other=0)
    p_steps = tl.load(p_table + b_layer * COLUMNS).to(tl.pointer_type(tl.int32))
    p_steps += tl.load(p_features + o_r, mask=m_r, other=0)
    b_steps = tl.load(p_steps, mask=m_r, other=0) + 1
    tl.store(p_steps, b_steps, mask=m_r)
    b_steps = b_steps.to(tl.float64)  # 1 - beta2^t is a small difference
    tl.store(p_sizes + o_r, (learning_rate / (1 - tl.exp(b_steps * log_beta1))).to(tl.float32), mask=m_r)
    tl.store(p_roots + o_r, (1 / tl.sqrt(1 - tl.exp(b_steps * log_beta2))).to(tl.float32), mask=m_r)


@triton.jit
def adam_rows_kernel(
    p_layers,  # (R,) int64
    p_features,  # (R,) int64
    p_table,  # (L, COLUMNS) int64: addresses of steps, rows and moments, layers written J, and strides
    p_sizes,  # (R,) float32
    p_roots,  # (R,) float32
    p_source,  # (L, P, D) float32
    p_positions,  # (N,) int64, by layer and feature
    p_weights,  # (N,) float32, likewise
    p_offsets,  # (R + 1,) int64
    width,  # D
    beta1,
    beta2,
    epsilon,
    stride_sl,
    stride_sp,
    MOMENTS: tl.constexpr,
    IN_BITS: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_r, i_j, i_d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_l = tl.load(p_layers + i_r)
    p_table += i_l * COLUMNS
    if i_j >= tl.load(p_table + 4):
        return
    d_start = i_d * BLOCK_D
    o_d = tl.arange(0, BLOCK_D)
    m_d = d_start + o_d < width
    start, stop = tl.load(p_offsets + i_r), tl.load(p_offsets + i_r + 1)
    p_source += (i_l + i_j) * stride_sl + d_start
    b_gradient = sum_entries(p_source, p_positions, p_weights, start, stop, stride_sp, m_d, BLOCK_E, BLOCK_D)
    i_row = tl.load(p_features + i_r)
    size, root = tl.load(p_sizes + i_r), tl.load(p_roots + i_r)
    weight = i_row * tl.load(p_table + 5) + i_j * tl.load(p_table + 6) + d_start
    state = i_row * tl.load(p_table + 7) + i_j * tl.load(p_table + 8) + d_start
    p_row = tl.load(p_table + 1).to(tl.pointer_type(tl.float32)) + weight
    p_m = tl.load(p_table + 2).to(tl.pointer_type(MOMENTS)) + state
    p_v = tl.load(p_table + 3).to(tl.pointer_type(MOMENTS)) + state
    if ALIGNED:  # bytes; Triton cannot know it of addresses it loads
        p_row, p_m, p_v = tl.multiple_of(p_row, 16), tl.multiple_of(p_m, 16), tl.multiple_of(p_v, 16)
    p_row, p_m, p_v = p_row + o_d, p_m + o_d, p_v + o_d
    b_m, b_v = load_moments(p_m, m_d, IN_BITS), load_moments(p_v, m_d, IN_BITS)
    b_m += (1 - beta1) * (b_gradient - b_m)
    b_v = beta2 * b_v + (1 - beta2) * b_gradient * b_gradient
    b_row = tl.load(p_row, mask=m_d, other=0.0)
    tl.store(p_row, b_row - size * b_m / (tl.sqrt(b_v) * root + epsilon), mask=m_d)
    store_moments(p_m, b_m, m_d, IN_BITS)
    store_moments(p_v, b_v, m_d, IN_BITS)


@triton.jit(do_not_specialize=["n_entries"])
def entry_products_kernel(
    p_out,  # (N,) float32
    p_table,  # (L, 4) int64: address of the rows, stride of a row, layers written J, stride of a layer of it
    p_source,  # (L, P, D) float32
    p_layers,  # (N,) int64
    p_features,  # (N,) int64
    p_positions,  # (N,) int64
    n_entries,  # N
    width,  # D
    stride_sl,
    stride_sp,
    ALIGNED: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    m_e = o_e < n_entries
    b_layer = tl.load(p_layers + o_e, mask=m_e, other=0)
    p_layer = p_table + b_layer * 4
    b_written = tl.where(m_e, tl.load(p_layer + 2), 0)
    b_stride = tl.load(p_layer + 3)
    p_row = tl.load(p_layer).to(tl.pointer_type(tl.float32))
    p_row += tl.load(p_features + o_e, mask=m_e, other=0) * tl.load(p_layer + 1)
    p_entry = p_source + b_layer * stride_sl + tl.load(p_positions + o_e, mask=m_e, other=0) * stride_sp
    b_sum = tl.zeros([BLOCK_E, BLOCK_D], dtype=tl.float32)
    for i_j in range(0, tl.max(b_written, axis=0)):
        if ALIGNED:
            p_row = tl.multiple_of(p_row, [16])
        m_j = i_j < b_written
        for d_start in range(0, width, BLOCK_D):
            o_d = d_start + tl.arange(0, BLOCK_D)
            m_d = m_j[:, None] & (o_d < width)[None, :]
            b_row = tl.load(p_row[:, None] + o_d[None, :], mask=m_d, other=0.0)
            b_sum += b_row * tl.load(p_entry[:, None] + o_d[None, :], mask=m_d, other=0.0)
        p_row += b_stride
        p_entry += stride_sl
    tl.store(p_out + o_e, tl.sum(b_sum, axis=1), mask=m_e)


def layer_gradients_triton(entries: LayerEntries, rows_ujd: Tensor | None) -> tuple[Tensor, RowGradients]:
    """Compute as `crosstrace.kernels.backward.rows.layer_gradients` does."""
    by_feature = EntriesByFeature.of(entries.features)
    n_written, _, width = entries.source.shape
    out_ujd = torch.empty(len(by_feature.rows), n_written, width, device=entries.source.device)
    if rows_ujd is None:
        products_n = entries.weights[:0]
    else:
        layers_n = torch.zeros_like(entries.features)
        products_n = _products(entries.source, [rows_ujd], layers_n, entries.features, entries.positions)
    if out_ujd.numel():
        block_d = power_of_two(width, 16, BLOCK_D)
        row_gradients_kernel[(len(by_feature.rows), n_written, triton.cdiv(width, block_d))](
            out_ujd,
            entries.source,
            entries.positions[by_feature.order],
            entries.weights[by_feature.order],
            by_feature.offsets,
            n_written,
            width,
            *entries.source.stride()[:2],
            BLOCK_E=BLOCK_E,
            BLOCK_D=block_d,
            num_warps=WARPS,
        )
    return products_n, RowGradients(by_feature.rows, out_ujd)


def products_triton(activations: SparseActivations, rows_ujd: Sequence[Tensor], source_lpd: Tensor) -> Tensor:
    """Compute the product of every entry's row with the sources it meets, (N,), in one launch for all layers.

    Args:
        activations: N entries.
        rows_ujd: For each layer (U, J, D) float32.
        source_lpd: (L, P, D) float32; layer j of a row of layer l meets source l + j.
    """
    return _products(source_lpd, rows_ujd, activations.layers, activations.features, activations.positions)


def update_rows_triton(
    activations: SparseActivations,
    weights_n: Tensor,
    source_lpd: Tensor,
    rows_ujd: Sequence[Tensor],
    moments: Sequence[RowMoments],
    adam: AdamStep,
) -> None:
    """Update the touched rows of all layers with Adam, in place, in one launch.

    Args:
        activations: N entries.
        weights_n: (N,) float32 what each entry's sources are weighted with.
        source_lpd: (L, P, D) float32; the gradient of layer j of a row of layer l is a sum of source l + j.
        rows_ujd: For each layer (U, J, D) float32.
        moments: The state of each, with moments (U, J, D).
        adam: The settings of this step.
    """
    touched, width, device = activations.by_feature, source_lpd.shape[2], source_lpd.device
    n_touched = len(touched.features)
    if not n_touched or not width:
        return
    in_bits = moments[0].first.dtype == torch.bfloat16 and triton_interpreted()
    table = [
        [
            state.steps.data_ptr(),
            *(tensor.data_ptr() for tensor in (rows, state.first, state.second)),
            rows.shape[1],
            *rows.stride()[:2],
            *state.first.stride()[:2],
        ]
        for rows, state in zip(rows_ujd, moments, strict=True)
    ]
    size = moments[0].first.element_size()
    aligned = width % 16 == 0 and all(
        byte % 16 == 0
        for _, *addresses, _, row, apart, state, states_apart in table
        for byte in (*addresses, 4 * row, 4 * apart, size * state, size * states_apart)
    )
    table_lc = torch.tensor(table, dtype=torch.int64).to(device)
    sizes_r, roots_r = torch.empty(2, n_touched, device=device)
    count_steps_kernel[(triton.cdiv(n_touched, BLOCK_R),)](
        sizes_r,
        roots_r,
        touched.layers,
        touched.features,
        table_lc,
        n_touched,
        adam.learning_rate,
        math.log(adam.beta1),
        math.log(adam.beta2),
        COLUMNS=table_lc.shape[1],
        BLOCK=BLOCK_R,
        num_warps=WARPS,
    )
    block_d = power_of_two(width, 16, BLOCK_D)
    n_written = max(rows.shape[1] for rows in rows_ujd)
    moments_dtype = tl.float32 if size == 4 else tl.int16 if in_bits else tl.bfloat16
    adam_rows_kernel[(n_touched, n_written, triton.cdiv(width, block_d))](
        touched.layers,
        touched.features,
        table_lc,
        sizes_r,
        roots_r,
        source_lpd,
        activations.positions[touched.order],
        weights_n[touched.order],
        touched.offsets,
        width,
        adam.beta1,
        adam.beta2,
        adam.epsilon,
        *source_lpd.stride()[:2],
        MOMENTS=moments_dtype,
        IN_BITS=in_bits,
        ALIGNED=aligned,
        COLUMNS=table_lc.shape[1],
        BLOCK_E=BLOCK_E,
        BLOCK_D=block_d,
        num_warps=WARPS,
    )


def _products(
    source_lpd: Tensor, rows_ujd: Sequence[Tensor], layers_n: Tensor, features_n: Tensor, positions_n: Tensor
) -> Tensor:
    out_n = torch.empty(len(features_n), device=source_lpd.device)
    width = source_lpd.shape[2]
    if len(out_n):
        table = row_table(rows_ujd, None, strided=True)
        entry_products_kernel[(triton.cdiv(len(out_n), BLOCK_E),)](
            out_n,
            table.layers,
            source_lpd,
            *(entries_n.contiguous() for entries_n in (layers_n, features_n, positions_n)),
            len(out_n),
            width,
            *source_lpd.stride()[:2],
            ALIGNED=table.aligned,
            BLOCK_E=BLOCK_E,
            BLOCK_D=power_of_two(width, 16, BLOCK_D),
            num_warps=WARPS,
        )
    return out_n
