"""`scores` on a GPU: a gathered matrix product per (position, layer), all of them in one launch.

Gradients are (B, P', L', D), so what a feature of layer l meets at position p, G[b, p, l:, :], is one contiguous run, and
so is its decoder row: K of the product runs over (target layer, D) at once and stops at the highest layer of a tile's targets.

Letters: L layers, P positions, D d_model, B target rows, J layers a feature writes to, N active entries.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.triton_parts import (
    TRITON_DTYPES,
    capability_of,
    dot_narrow,
    dot_settings,
    dot_warps,
    flat,
    power_of_two,
    row_table,
)

# The fastest of ten on an H100 (docs/kernels.md), and with bfloat16 rows the largest that spill next to no registers
# (benchmarks/kernel_resources.py).
BLOCK_B, BLOCK_N, BLOCK_K, STAGES = 64, 128, 32, 3
RUN = 8  # tiles of K whose products are summed by the tensor cores alone


@triton.jit(do_not_specialize=["n_rows", "n_entries", "n_positions", "n_tiles_b"])
def scores_kernel(
    p_out,  # (B, N) float32
    p_gradients,  # (B, P', L', D)
    p_activations,  # (N,) float32
    p_rows_of,  # (N,) int64 the row of each entry in its layer; unused unless INDEXED
    p_layers,  # (L, 4) int64 address, row stride, layers written, layer stride
    p_tiles,  # (tiles, 5) int64 layer, position, first entry, one past the last, first entry of the layer
    p_tops,  # (B,) int64 descending: from which layer on a target's gradients are zero
    n_rows,  # B
    n_entries,  # N
    n_positions,  # P'
    d_model,
    stride_gb,
    stride_gp,
    n_tiles_b,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    INDEXED: tl.constexpr,
    EVEN_K: tl.constexpr,
    N_PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    IN_FLOAT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RUN: tl.constexpr,
):
    # Tiles of B next to each other share their decoder rows in the second-level cache.
    i_b = tl.program_id(0) % n_tiles_b
    p_tile = p_tiles + (tl.program_id(0) // n_tiles_b).to(tl.int64) * 5
    layer, position = tl.load(p_tile), tl.load(p_tile + 1)
    first, last, layer_first = tl.load(p_tile + 2), tl.load(p_tile + 3), tl.load(p_tile + 4)

    o_b = i_b * BLOCK_B + tl.arange(0, BLOCK_B)
    o_n = first + tl.arange(0, BLOCK_N)  # entries, int64
    o_k = tl.arange(0, BLOCK_K)
    m_b, m_n = o_b < n_rows, o_n < last

    row = tl.load(p_rows_of + o_n, mask=m_n, other=0) if INDEXED else tl.where(m_n, o_n - layer_first, 0)
    address = tl.load(p_layers + layer * 4)
    stride = tl.load(p_layers + layer * 4 + 1)
    # Rows lie further apart than 32 bits reach, so each row and each gradient has a 64-bit pointer of its own; along K,
    # offsets are 32-bit.
    p_rows = address.to(tl.pointer_type(DTYPE)) + row * stride  # (BLOCK_N,)
    if ALIGNED:
        p_rows = tl.multiple_of(p_rows, [16])  # bytes; Triton cannot know it of an address it loads
    p_g = p_gradients + position * stride_gp + layer * d_model + o_b.to(tl.int64) * stride_gb  # (BLOCK_B,)

    top = tl.load(p_tops + i_b * BLOCK_B)  # of the tile's first target, so the highest
    written = tl.minimum(tl.load(p_layers + layer * 4 + 2), top - layer)  # below 0: nothing is met, zeros are stored
    n_k = tl.where(position < n_positions, written * d_model, 0).to(tl.int32)
    b_out = tl.zeros([BLOCK_B, BLOCK_N], dtype=tl.float32)
    # Tensor cores keep fewer bits of a running sum than float32 has, and drop the rest: short sums are added up outside.
    for start in range(0, n_k, RUN * BLOCK_K):
        b_run = tl.zeros([BLOCK_B, BLOCK_N], dtype=tl.float32)
        for k in range(start, tl.minimum(start + RUN * BLOCK_K, n_k), BLOCK_K):
            p_g_tile = p_g[:, None] + (k + o_k)[None, :]
            p_row_tile = p_rows[None, :] + (k + o_k)[:, None]
            if EVEN_K:
                b_g = tl.load(p_g_tile, mask=m_b[:, None], other=0.0)  # (BLOCK_B, BLOCK_K)
                b_rows = tl.load(p_row_tile, mask=m_n[None, :], other=0.0)  # (BLOCK_K, BLOCK_N)
            else:
                m_k = k + o_k < n_k
                b_g = tl.load(p_g_tile, mask=m_b[:, None] & m_k[None, :], other=0.0)
                b_rows = tl.load(p_row_tile, mask=m_k[:, None] & m_n[None, :], other=0.0)
            b_run = dot_narrow(b_g, b_rows, b_run, N_PARTS, PRECISION, IN_FLOAT)
        b_out += b_run
    b_out *= tl.load(p_activations + o_n, mask=m_n, other=0.0)[None, :]
    p_out_tile = p_out + o_b.to(tl.int64)[:, None] * n_entries + o_n[None, :]
    tl.store(p_out_tile, b_out, mask=m_b[:, None] & m_n[None, :])


def scores_triton(
    activations: SparseActivations,
    rows_ujd: Sequence[Tensor],
    gradients_bpld: Tensor,
    row_indices: Sequence[Tensor] | None,
    tops: Sequence[int],
) -> Tensor:
    """Compute scores as `crosstrace.kernels.scores` does."""
    n_rows, n_positions, _, d_model = gradients_bpld.shape
    device, n_entries = activations.device, len(activations)
    out_bn = torch.empty(n_rows, n_entries, dtype=torch.float32, device=device)
    if not out_bn.numel():
        return out_bn
    if not flat(gradients_bpld):
        gradients_bpld = gradients_bpld.contiguous()
    table = row_table(rows_ujd, row_indices)
    block_b, block_k = power_of_two(n_rows, 16, BLOCK_B), power_of_two(d_model, 16, BLOCK_K)
    block_n = _entries_per_tile(activations)
    tiles = _tiles(activations, block_n).to(device)
    n_tiles_b = triton.cdiv(n_rows, block_b)
    scores_kernel[(len(tiles) * n_tiles_b,)](
        out_bn,
        gradients_bpld,
        activations.values.float().contiguous(),
        table.layers if table.row_indices is None else table.row_indices,
        table.layers,
        tiles,
        torch.tensor(tops, dtype=torch.int64, device=device),
        n_rows,
        n_entries,
        n_positions,
        d_model,
        gradients_bpld.stride(0),
        gradients_bpld.stride(1),
        n_tiles_b,
        DTYPE=TRITON_DTYPES[table.dtype],
        ALIGNED=table.aligned,
        INDEXED=table.row_indices is not None,
        EVEN_K=d_model % block_k == 0,
        **dot_settings(gradients_bpld.dtype, table.dtype, exact=False),
        BLOCK_B=block_b,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        RUN=RUN,
        num_warps=dot_warps(table.dtype, capability_of(device)),
        num_stages=STAGES,
    )
    return out_bn


def _entries_per_tile(activations: SparseActivations) -> int:
    """Choose the tile that an average group fills."""
    groups = int((activations.offsets.diff() > 0).sum())
    return power_of_two(len(activations) // max(groups, 1), 16, BLOCK_N)


def _tiles(activations: SparseActivations, block_n: int) -> Tensor:
    """Cut every (layer, position) group into pieces of at most `block_n` entries: (tiles, 5) int64 on the CPU.

    Layers ascend, so that the longest products start first.
    """
    counts = activations.offsets.diff()
    pieces = (counts + block_n - 1) // block_n
    group = torch.repeat_interleave(torch.arange(len(counts)), pieces)
    piece = torch.arange(len(group)) - (pieces.cumsum(0) - pieces)[group]
    layer, position = group // activations.n_positions, group % activations.n_positions
    first = activations.offsets[group] + piece * block_n
    last = torch.minimum(first + block_n, activations.offsets[group + 1])
    return torch.stack([layer, position, first, last, activations.layer_offsets[layer]], dim=1)
