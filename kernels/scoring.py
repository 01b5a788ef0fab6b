"""`scores`: the direct effect of every active feature on a batch of targets.

Letters: L layers, P positions, D d_model, B target rows, J layers a feature writes to, N active entries, n of a layer,
U stored decoder rows of a layer, X = J * D flattened.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.checks import check_float, check_rows, check_shape
from crosstrace.kernels.decoder_tiles import FloatRows
from crosstrace.kernels.dispatch import choose_path


def scores_reference(
    activations: SparseActivations,
    rows_ujd: Sequence[Tensor],
    gradients_bpld: Tensor,
    row_indices: Sequence[Tensor] | None = None,
) -> Tensor:
    """Compute the definition, entry by entry: `score[b, i] = a_i * sum_j <W_dec[l_i, f_i, j], G[b, p_i, l_i + j]>`."""
    out_bn = torch.zeros(gradients_bpld.shape[0], len(activations), device=gradients_bpld.device)
    _, n_positions, top, _ = gradients_bpld.shape
    i = 0
    for layer, rows in enumerate(rows_ujd):
        for row_jd in (rows if row_indices is None else rows[row_indices[layer]]).float():
            written, position = min(layer + row_jd.shape[0], top), int(activations.positions[i])
            if written > layer and position < n_positions:
                gradient = gradients_bpld[:, position, layer:written].float()
                out_bn[:, i] = activations.values[i] * (gradient * row_jd[: written - layer]).sum((1, 2))
            i += 1
    return out_bn


def scores(
    activations: SparseActivations,
    rows_ujd: Sequence[Tensor],
    gradients_bpld: Tensor,
    row_indices: Sequence[Tensor] | None = None,
    tops: Sequence[int] | None = None,
) -> Tensor:
    """Compute the direct effect of every active feature on every target of a batch.

    Args:
        activations: N active entries.
        rows_ujd: Decoder rows of each source layer, as for `crosstrace.kernels.decode`.
        gradients_bpld: (B, P', L', D) gradients of the targets at every MLP output; float32, bfloat16 or float16. P' and
            L' may stop at the batch's last position and highest layer; entries beyond them have no effect.
        row_indices: The row of each entry, as for `crosstrace.kernels.decode`.
        tops: For each target the layer from which its gradients are zero, in descending order and at most L'; nothing
            from there on is multiplied. None is L' for all.

    Returns:
        (B, N) float32. On a GPU the products follow `torch.set_float32_matmul_precision`: `highest` (torch's default)
        keeps float32 accuracy, `high` and `medium` are faster and coarser.

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names the argument and what was expected.

    Example:
        >>> out_bn = scores(activations, transcoders.decoder_rows_of(activations), gradients_bpld)
    """
    d_model, _ = check_rows(activations, rows_ujd, row_indices)
    check_shape("gradients_bpld", gradients_bpld, ("B", "P'", "L'", d_model))
    check_float("gradients_bpld", gradients_bpld, activations.device)
    _, n_positions, top, _ = gradients_bpld.shape
    if n_positions > activations.n_positions or top > activations.n_layers:
        raise ValueError(
            f"gradients_bpld has shape {tuple(gradients_bpld.shape)}; expected at most {activations.n_positions} "
            f"positions and {activations.n_layers} layers, as in activations"
        )
    tops = [top] * len(gradients_bpld) if tops is None else list(tops)
    if len(tops) != len(gradients_bpld) or any(not 0 <= low <= high for high, low in pairwise([top, *tops])):
        raise ValueError(
            f"tops is {tops}; expected a layer for each of the {len(gradients_bpld)} targets, descending from at most {top}"
        )
    path = choose_path("scores", activations.device)
    if path == "reference":
        return scores_reference(activations, rows_ujd, gradients_bpld, row_indices)
    if path == "triton":
        from crosstrace.kernels.scoring_triton import scores_triton
        from crosstrace.kernels.triton_parts import launching_on

        with launching_on(activations.device):
            return scores_triton(activations, rows_ujd, gradients_bpld, row_indices, tops)
    return scores_torch(activations, rows_ujd, gradients_bpld, row_indices, tops)


def scores_torch(
    activations: SparseActivations,
    rows_ujd: Sequence[Tensor],
    gradients_bpld: Tensor,
    row_indices: Sequence[Tensor] | None,
    tops: Sequence[int],
) -> Tensor:
    """Compute one matrix product per (position, layer), whose inner dimension runs over (J, D) at once.

    The entries of a (position, layer) are adjacent, and so are the layers they write to in `gradients_bpld`: nothing is
    repeated per entry. Positions are the outer loop, so that a position's gradients stay in cache for all layers. Tops
    descend, so that the targets above a layer are a prefix of the batch.
    """
    n_rows, n_positions, top, _ = gradients_bpld.shape
    out_bn = torch.zeros(n_rows, len(activations), device=gradients_bpld.device)
    if not top or not n_positions:
        return out_bn
    offsets = activations.offsets.tolist()
    bases = activations.layer_offsets.tolist()
    buffers: dict[torch.dtype, Tensor] = {}
    layers = [
        FloatRows(rows, None if row_indices is None else row_indices[layer], min(rows.shape[1], top - layer), buffers)
        for layer, rows in enumerate(rows_ujd[:top])
    ]
    n_above = [sum(of_target > layer for of_target in tops) for layer in range(top)]
    for position in range(n_positions):
        # contiguous, so that targets do not evict each other's cache lines
        gradient_bld = gradients_bpld[:, position].float().contiguous()
        for layer, rows in enumerate(layers):
            group = layer * activations.n_positions + position
            start, stop, base = offsets[group], offsets[group + 1], bases[layer]
            if start == stop or not n_above[layer]:
                continue
            gradient_bx = gradient_bld[: n_above[layer], layer : layer + rows.n_written].flatten(1)
            for first, last, block_nx in rows.tiles(start - base, stop - base):
                torch.mm(gradient_bx, block_nx.T, out=out_bn[: n_above[layer], base + first : base + last])
    return out_bn.mul_(activations.values)
