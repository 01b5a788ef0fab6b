"""One layer's backward pass on a GPU: a program per (touched row, target layer, slice of D).

A program owns its slice of one row: it sums the weighted sources of the row's entries in their order, then writes the
gradient or updates slice and moments with Adam, so that each row is read and written once and nothing is added atomically.
The products of entries and rows need whole rows; a second kernel takes a few entries at a time, before the update.

Letters: P positions, n entries of a layer, U stored rows, u touched rows, J layers a feature writes to, D d_model.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosstrace.kernels.backward.by_feature import EntriesByFeature, LayerEntries
from crosstrace.kernels.backward.row_updates import AdamStep, RowGradients, RowMoments
from crosstrace.kernels.dispatch import triton_interpreted
from crosstrace.kernels.triton_parts import power_of_two

BLOCK_E, BLOCK_D, WARPS = 8, 256, 4  # entries in flight at a time, and the slice of a row that a program owns


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


@triton.jit
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


@triton.jit
def adam_rows_kernel(
    p_rows,  # (U, J, D) float32
    p_first,  # (U, J, D) float32 or bfloat16
    p_second,  # likewise
    p_touched,  # (u,) int64
    p_sizes,  # (u,) float32: learning rate, corrected for the first moment's bias
    p_roots,  # (u,) float32: what the root of the second moment is multiplied with
    p_source,  # (J, P, D) float32
    p_positions,  # (n,) int64, by feature
    p_weights,  # (n,) float32, by feature
    p_offsets,  # (u + 1,) int64
    width,  # D
    beta1,
    beta2,
    epsilon,
    stride_ru,
    stride_rj,
    stride_mu,
    stride_mj,
    stride_sj,
    stride_sp,
    IN_BITS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_u, i_j, i_d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    d_start = i_d * BLOCK_D
    o_d = tl.arange(0, BLOCK_D)
    m_d = d_start + o_d < width
    start, stop = tl.load(p_offsets + i_u), tl.load(p_offsets + i_u + 1)
    p_source += i_j * stride_sj + d_start
    b_gradient = sum_entries(p_source, p_positions, p_weights, start, stop, stride_sp, m_d, BLOCK_E, BLOCK_D)
    i_row = tl.load(p_touched + i_u)
    size, root = tl.load(p_sizes + i_u), tl.load(p_roots + i_u)
    p_row = p_rows + i_row * stride_ru + i_j * stride_rj + d_start + o_d
    state = i_row * stride_mu + i_j * stride_mj + d_start
    p_m, p_v = p_first + state + o_d, p_second + state + o_d
    b_m, b_v = load_moments(p_m, m_d, IN_BITS), load_moments(p_v, m_d, IN_BITS)
    b_m += (1 - beta1) * (b_gradient - b_m)
    b_v = beta2 * b_v + (1 - beta2) * b_gradient * b_gradient
    b_row = tl.load(p_row, mask=m_d, other=0.0)
    tl.store(p_row, b_row - size * b_m / (tl.sqrt(b_v) * root + epsilon), mask=m_d)
    store_moments(p_m, b_m, m_d, IN_BITS)
    store_moments(p_v, b_v, m_d, IN_BITS)


@triton.jit
def entry_products_kernel(
    p_out,  # (n,) float32
    p_rows,  # (U, J, D) float32
    p_source,  # (J, P, D) float32
    p_features,  # (n,) int64
    p_positions,  # (n,) int64
    n_entries,
    n_written,
    width,  # D
    stride_ru,
    stride_rj,
    stride_sj,
    stride_sp,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    m_e = o_e < n_entries
    p_row = p_rows + tl.load(p_features + o_e, mask=m_e, other=0) * stride_ru
    p_entry = p_source + tl.load(p_positions + o_e, mask=m_e, other=0) * stride_sp
    b_sum = tl.zeros([BLOCK_E, BLOCK_D], dtype=tl.float32)
    for _ in range(0, n_written):
        for d_start in range(0, width, BLOCK_D):
            o_d = d_start + tl.arange(0, BLOCK_D)
            m_d = m_e[:, None] & (o_d < width)[None, :]
            b_row = tl.load(p_row[:, None] + o_d[None, :], mask=m_d, other=0.0)
            b_sum += b_row * tl.load(p_entry[:, None] + o_d[None, :], mask=m_d, other=0.0)
        p_row += stride_rj
        p_entry += stride_sj
    tl.store(p_out + o_e, tl.sum(b_sum, axis=1), mask=m_e)


def layer_gradients_triton(entries: LayerEntries, rows_ujd: Tensor | None) -> tuple[Tensor, RowGradients]:
    """Compute as `crosstrace.kernels.backward.rows.layer_gradients` does."""
    by_feature = EntriesByFeature.of(entries.features)
    n_written, _, width = entries.source.shape
    out_ujd = torch.empty(len(by_feature.rows), n_written, width, device=entries.source.device)
    products_n = entries.weights[:0] if rows_ujd is None else products_triton(entries, rows_ujd)
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


def update_layer_triton(entries: LayerEntries, rows_ujd: Tensor, moments: RowMoments, adam: AdamStep) -> Tensor:
    """Compute as `crosstrace.kernels.backward.rows.update_layer` does."""
    by_feature = EntriesByFeature.of(entries.features)
    products_n = products_triton(entries, rows_ujd)
    n_written, _, width = entries.source.shape
    if not len(by_feature.rows) or not width:
        return products_n
    sizes_u, roots_u = moments.step(by_feature.rows, adam)
    first, second = moments.first, moments.second
    in_bits = first.dtype == torch.bfloat16 and triton_interpreted()
    if in_bits:
        first, second = first.view(torch.int16), second.view(torch.int16)
    block_d = power_of_two(width, 16, BLOCK_D)
    adam_rows_kernel[(len(by_feature.rows), n_written, triton.cdiv(width, block_d))](
        rows_ujd,
        first,
        second,
        by_feature.rows,
        sizes_u,
        roots_u,
        entries.source,
        entries.positions[by_feature.order],
        entries.weights[by_feature.order],
        by_feature.offsets,
        width,
        adam.beta1,
        adam.beta2,
        adam.epsilon,
        *rows_ujd.stride()[:2],
        *first.stride()[:2],
        *entries.source.stride()[:2],
        IN_BITS=in_bits,
        BLOCK_E=BLOCK_E,
        BLOCK_D=block_d,
        num_warps=WARPS,
    )
    return products_n


def products_triton(entries: LayerEntries, rows_ujd: Tensor) -> Tensor:
    """Compute as `crosstrace.kernels.backward.rows.products_torch` does."""
    n_written, _, width = entries.source.shape
    products_n = torch.empty_like(entries.weights)
    if len(products_n):
        entry_products_kernel[(triton.cdiv(len(products_n), BLOCK_E),)](
            products_n,
            rows_ujd,
            entries.source,
            entries.features,
            entries.positions,
            len(products_n),
            n_written,
            width,
            *rows_ujd.stride()[:2],
            *entries.source.stride()[:2],
            BLOCK_E=BLOCK_E,
            BLOCK_D=power_of_two(width, 16, BLOCK_D),
            num_warps=WARPS,
        )
    return products_n
