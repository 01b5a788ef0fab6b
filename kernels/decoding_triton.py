"""`decode` on a GPU: one program per run of a position's outputs.

Outputs are (target layers, D) flattened. A program adds every entry that writes to its run. A feature's row is one
contiguous run of that space from its own layer on, so that all programs together read it once, and nothing is added
atomically.

Letters: L layers, P positions, D d_model, J layers a feature writes to, N active entries, X = (target layers * D).
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.triton_parts import TRITON_DTYPES, RowTable, power_of_two, row_table

BLOCK_E, BLOCK_X, WARPS = 8, 1024, 4  # entries in flight at a time, and the run of outputs a program owns


@triton.jit(do_not_specialize=["n_layers", "n_positions"])
def decode_kernel(
    p_out,  # (X / D, P, D) float32
    p_addresses,  # (N,) int64 address of each entry's row
    p_values,  # (N,) float32
    p_layers,  # (N,) int32 source layer
    p_written,  # (N,) int32 J of the source layer
    p_strides,  # (N,) int64 elements from one layer of the row to the next; not read if FLAT
    p_offsets,  # (P * L + 1,) int64 entries by (position, layer)
    p_first_layers,  # (blocks of X,) int32 the lowest layer that writes there
    n_layers,
    n_positions,
    d_model,
    width,  # X
    stride_out_l,
    stride_out_p,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    FLAT: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    i_p, i_x = tl.program_id(0), tl.program_id(1)
    o_x = i_x * BLOCK_X + tl.arange(0, BLOCK_X)
    m_x = o_x < width
    # An entry of layer l starts at l * D: the sorted entries that reach this run are one range.
    last_layer = tl.minimum((i_x * BLOCK_X + BLOCK_X - 1) // d_model, n_layers - 1)
    p_range = p_offsets + i_p.to(tl.int64) * n_layers
    start = tl.load(p_range + tl.load(p_first_layers + i_x))
    stop = tl.load(p_range + last_layer + 1)
    b_out = tl.zeros([BLOCK_X], dtype=tl.float32)
    for i_e in range(start, stop, BLOCK_E):
        o_e = i_e + tl.arange(0, BLOCK_E)
        m_e = o_e < stop
        address = tl.load(p_addresses + o_e, mask=m_e, other=0)
        b_value = tl.load(p_values + o_e, mask=m_e, other=0.0)
        b_layer = tl.load(p_layers + o_e, mask=m_e, other=0)
        shift = b_layer * d_model
        length = tl.load(p_written + o_e, mask=m_e, other=0) * d_model
        o_row = o_x[None, :] - shift[:, None]  # (BLOCK_E, BLOCK_X), 32-bit: within one row
        m_row = m_x[None, :] & (o_row >= 0) & (o_row < length[:, None])
        if not FLAT:  # 64-bit: the layers of a whole decoder may lie far apart
            b_stride = tl.load(p_strides + o_e, mask=m_e, other=0)
            if ALIGNED:
                b_stride = tl.multiple_of(
                    b_stride, [4]
                )  # elements: 16 bytes of float32, and less than those of 16-bit rows
            o_row = ((o_x // d_model)[None, :] - b_layer[:, None]) * b_stride[:, None] + (o_x % d_model)[None, :]
        p_rows = address.to(tl.pointer_type(DTYPE))
        if ALIGNED:
            p_rows = tl.multiple_of(p_rows, [16])  # bytes; Triton cannot know it of an address it loads
        b_rows = tl.load(p_rows[:, None] + o_row, mask=m_row, other=0.0).to(tl.float32)
        b_out += tl.sum(b_rows * b_value[:, None], axis=0)
    p_target = p_out + (o_x // d_model).to(tl.int64) * stride_out_l + i_p.to(tl.int64) * stride_out_p + o_x % d_model
    if ACCUMULATE:
        b_out += tl.load(p_target, mask=m_x, other=0.0)
    tl.store(p_target, b_out, mask=m_x)


def decode_triton(
    activations: SparseActivations, rows_ujd: Sequence[Tensor], row_indices: Sequence[Tensor] | None
) -> Tensor:
    """Decode as `crosstrace.kernels.decode` does."""
    n_layers, n_positions = activations.n_layers, activations.n_positions
    d_model = rows_ujd[0].shape[2]
    out_lpd = torch.empty(n_layers, n_positions, d_model, dtype=torch.float32, device=activations.device)
    if not out_lpd.numel():
        return out_lpd
    table = row_table(rows_ujd, row_indices, strided=True)
    order_n, offsets = activations.by_position()
    layers_n = activations.layers[order_n]
    if table.row_indices is None:
        own_n = order_n - activations.layer_offsets.to(activations.device)[layers_n]
    else:
        own_n = table.row_indices[order_n]
    values_n = activations.values.float()[order_n]
    _launch(out_lpd, table, values_n, layers_n, own_n, offsets.to(activations.device), accumulate=False)
    return out_lpd


def decode_layer_triton(
    out_jpd: Tensor, positions_n: Tensor, values_n: Tensor, rows_ujd: Tensor, row_index_n: Tensor | None
) -> None:
    """Decode as `crosstrace.kernels.decode_layer` does, by the same kernel for a model whose only source is layer 0."""
    device, n_entries, n_positions = out_jpd.device, positions_n.numel(), out_jpd.shape[1]
    if not out_jpd.numel():
        return
    table = row_table([rows_ujd], None, strided=True)
    own_n = torch.arange(n_entries, device=device) if row_index_n is None else row_index_n
    offsets_p = torch.searchsorted(positions_n.contiguous(), torch.arange(n_positions + 1, device=device))
    layers_n = torch.zeros(n_entries, dtype=torch.int64, device=device)
    target_jpd = out_jpd if out_jpd.stride(2) == 1 else out_jpd.contiguous()
    _launch(target_jpd, table, values_n.float().contiguous(), layers_n, own_n, offsets_p, accumulate=True)
    if target_jpd is not out_jpd:
        out_jpd.copy_(target_jpd)


def _launch(
    out_lpd: Tensor,
    table: RowTable,
    values_n: Tensor,
    layers_n: Tensor,
    own_n: Tensor,
    offsets: Tensor,
    accumulate: bool,
) -> None:
    """Launch the kernel on entries ordered by (position, layer); `own_n` is the row of each within its layer."""
    n_targets, n_positions, d_model = out_lpd.shape
    n_sources, width = len(table.rows), n_targets * d_model
    addresses_l, strides_l, written_l, apart_l = table.layers.unbind(1)
    addresses_n = addresses_l[layers_n] + own_n * (strides_l[layers_n] * table.rows[0].element_size())
    block_x = power_of_two(width, 16, BLOCK_X)
    n_blocks = triton.cdiv(width, block_x)
    stops_l = (torch.arange(n_sources) + torch.tensor([rows.shape[1] for rows in table.rows])) * d_model
    starts_x = torch.arange(n_blocks) * block_x
    first_layers = (stops_l[None, :] > starts_x[:, None]).int().argmax(1)  # 0 where none does: then none is in range
    decode_kernel[(n_positions, n_blocks)](
        out_lpd,
        addresses_n,
        values_n,
        layers_n.int(),
        written_l[layers_n].int(),
        apart_l if table.flat else apart_l[layers_n],
        offsets,
        first_layers.int().to(out_lpd.device),
        n_sources,
        n_positions,
        d_model,
        width,
        out_lpd.stride(0),
        out_lpd.stride(1),
        DTYPE=TRITON_DTYPES[table.dtype],
        ALIGNED=table.aligned,
        FLAT=table.flat,
        ACCUMULATE=accumulate,
        BLOCK_E=BLOCK_E if table.flat else BLOCK_E // 2,  # 64-bit offsets take twice the registers
        BLOCK_X=block_x,
        num_warps=WARPS,
    )
