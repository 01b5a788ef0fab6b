"""`encode` on a GPU: one pass over the encoder, from matrix product to packed sparse list.

Each program owns a tile of positions and a split of the features, keeps a running count per position, and writes active
entries into its own slab: ascending order without atomics. Counts go on beyond a slab's capacity, so that reading them
shows an overflow, which is followed by a second pass with enough room. A second kernel packs the slabs.

Letters: P positions, D d_model, F features of a layer, S splits of F, C capacity of a slab.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosstrace.kernels.triton_parts import capability_of, dot_narrow, dot_settings, dot_warps, power_of_two

# The largest tiles that spill next to no registers (benchmarks/kernel_resources.py).
BLOCK_P, BLOCK_F, BLOCK_D, STAGES = 64, 64, 32, 3
_LEAST_CAPACITY = 16


@triton.jit
def encode_slab_kernel(
    p_x,  # (P, D)
    p_w,  # (D, F)
    p_bias,  # (F,) float32
    p_threshold,  # (F,) float32
    p_features,  # (P, S, C) int32
    p_values,  # (P, S, C) float32
    p_counts,  # (P, S) int64
    n_positions,
    d_model,
    n_features,
    n_splits,
    split_width,
    capacity,
    stride_xp,
    stride_xd,
    stride_wd,
    stride_wf,
    N_PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    IN_FLOAT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_p, i_split = tl.program_id(0), tl.program_id(1)
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_d = tl.arange(0, BLOCK_D)
    m_p = o_p < n_positions
    # 64-bit where a tile starts, 32-bit within it: a tile of 64-bit offsets spills
    p_x += i_p.to(tl.int64) * BLOCK_P * stride_xp
    o_x = tl.arange(0, BLOCK_P)[:, None] * stride_xp + o_d[None, :] * stride_xd
    o_w = o_d[:, None] * stride_wd + tl.arange(0, BLOCK_F)[None, :] * stride_wf
    slabs = i_p.to(tl.int64) * BLOCK_P * n_splits * capacity
    o_slab = (tl.arange(0, BLOCK_P) * n_splits + i_split) * capacity
    n_seen = tl.zeros([BLOCK_P], dtype=tl.int32)
    f_stop = tl.minimum((i_split + 1) * split_width, n_features)
    for f_start in range(i_split * split_width, f_stop, BLOCK_F):
        o_f = f_start + tl.arange(0, BLOCK_F)
        m_f = o_f < f_stop
        p_w_columns = p_w + tl.cast(f_start, tl.int64) * stride_wf
        b_h = tl.zeros([BLOCK_P, BLOCK_F], dtype=tl.float32)
        for d_start in range(0, d_model, BLOCK_D):
            m_d = d_start + o_d < d_model
            p_x_tile = p_x + tl.cast(d_start, tl.int64) * stride_xd
            b_x = tl.load(p_x_tile + o_x, mask=m_p[:, None] & m_d[None, :], other=0.0)  # (BLOCK_P, BLOCK_D)
            p_w_tile = p_w_columns + tl.cast(d_start, tl.int64) * stride_wd
            b_w = tl.load(p_w_tile + o_w, mask=m_d[:, None] & m_f[None, :], other=0.0)  # (BLOCK_D, BLOCK_F)
            b_h = dot_narrow(b_x, b_w, b_h, N_PARTS, PRECISION, IN_FLOAT)
        b_h += tl.load(p_bias + o_f, mask=m_f, other=0.0)[None, :]
        b_threshold = tl.load(p_threshold + o_f, mask=m_f, other=float("inf"))
        m_active = (b_h > b_threshold[None, :]) & m_p[:, None] & m_f[None, :]
        b_ones = m_active.to(tl.int32)
        o_slot = n_seen[:, None] + tl.cumsum(b_ones, axis=1) - 1
        m_room = m_active & (o_slot < capacity)
        o_out = o_slab[:, None] + o_slot
        tl.store(p_features + slabs + o_out, tl.broadcast_to(o_f[None, :], [BLOCK_P, BLOCK_F]), mask=m_room)
        tl.store(p_values + slabs + o_out, b_h, mask=m_room)
        n_seen += tl.sum(b_ones, axis=1)
    tl.store(p_counts + o_p.to(tl.int64) * n_splits + i_split, n_seen.to(tl.int64), mask=m_p)


@triton.jit
def encode_pack_kernel(
    p_features,  # (P, S, C) int32
    p_values,  # (P, S, C) float32
    p_stops,  # (P, S) int64: where each slab's entries end in the list
    p_counts,  # (P, S) int64
    p_out_positions,  # (n,) int64
    p_out_features,  # (n,) int64
    p_out_values,  # (n,) float32
    n_splits,
    capacity,
    BLOCK_C: tl.constexpr,
):
    i_slab = tl.program_id(0).to(tl.int64)  # position * S + split
    n_entries = tl.load(p_counts + i_slab)
    o_out = tl.load(p_stops + i_slab) - n_entries
    i_p = i_slab // n_splits
    for c_start in range(0, n_entries, BLOCK_C):
        o_c = c_start + tl.arange(0, BLOCK_C)
        m_c = o_c < n_entries
        b_features = tl.load(p_features + i_slab * capacity + o_c, mask=m_c, other=0)
        b_values = tl.load(p_values + i_slab * capacity + o_c, mask=m_c, other=0.0)
        tl.store(p_out_positions + o_out + o_c, tl.zeros([BLOCK_C], dtype=tl.int64) + i_p, mask=m_c)
        tl.store(p_out_features + o_out + o_c, b_features.to(tl.int64), mask=m_c)
        tl.store(p_out_values + o_out + o_c, b_values, mask=m_c)


def encode_triton(
    x_pd: Tensor, w_enc_df: Tensor, b_enc_f: Tensor, threshold_f: Tensor, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode as `crosstrace.kernels.encode` does; a slab that exceeds `capacity` is found and filled again."""
    (n_positions, d_model), n_features = x_pd.shape, w_enc_df.shape[1]
    device = x_pd.device
    if not n_positions or not n_features:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return none, none, none.float()
    if max(*x_pd.stride(), *w_enc_df.stride()) * max(BLOCK_P, BLOCK_F) >= 2**31:  # beyond 32 bits within a tile
        x_pd, w_enc_df = x_pd.contiguous(), w_enc_df.contiguous()
    block_p, block_d = power_of_two(n_positions, 16, BLOCK_P), power_of_two(d_model, 16, BLOCK_D)
    tiles_p, tiles_f = triton.cdiv(n_positions, block_p), triton.cdiv(n_features, BLOCK_F)
    # Enough programs for every multiprocessor twice over; one long split otherwise, which counts as it goes.
    n_splits = min(tiles_f, triton.cdiv(512, tiles_p))
    split_width = triton.cdiv(tiles_f, n_splits) * BLOCK_F
    n_splits = triton.cdiv(n_features, split_width)
    bias_f, threshold_f = b_enc_f.float().contiguous(), threshold_f.float().contiguous()
    counts_ps = torch.empty(n_positions, n_splits, dtype=torch.int64, device=device)

    def fill(capacity: int) -> tuple[Tensor, Tensor]:
        features_psc = torch.empty(n_positions, n_splits, capacity, dtype=torch.int32, device=device)
        values_psc = torch.empty(n_positions, n_splits, capacity, dtype=torch.float32, device=device)
        encode_slab_kernel[(tiles_p, n_splits)](
            x_pd,
            w_enc_df,
            bias_f,
            threshold_f,
            features_psc,
            values_psc,
            counts_ps,
            n_positions,
            d_model,
            n_features,
            n_splits,
            split_width,
            capacity,
            *x_pd.stride(),
            *w_enc_df.stride(),
            **dot_settings(x_pd.dtype, w_enc_df.dtype, exact=True),
            BLOCK_P=block_p,
            BLOCK_F=BLOCK_F,
            BLOCK_D=block_d,
            num_warps=dot_warps(w_enc_df.dtype, capability_of(device)),
            num_stages=STAGES,
        )
        return features_psc, values_psc

    room = capacity or max(_LEAST_CAPACITY, split_width // 8)
    features_psc, values_psc = fill(room)
    stops_s = counts_ps.flatten().cumsum(0)
    n_entries, fullest = torch.stack([stops_s[-1], counts_ps.max()]).tolist()  # the one wait for the device
    if fullest > room:
        room = fullest
        features_psc, values_psc = fill(room)
    positions = torch.empty(n_entries, dtype=torch.int64, device=device)
    features, values = torch.empty_like(positions), torch.empty(n_entries, dtype=torch.float32, device=device)
    if n_entries:
        encode_pack_kernel[(n_positions * n_splits,)](
            features_psc,
            values_psc,
            stops_s,
            counts_ps,
            positions,
            features,
            values,
            n_splits,
            room,
            BLOCK_C=power_of_two(fullest, 16, 1024),
            num_warps=1,
        )
    return positions, features, values
