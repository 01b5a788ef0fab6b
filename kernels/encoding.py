"""`encode`: transcoder inputs to the sparse list of active features, without a dense activation tensor.

JumpReLU as in Rajamanoharan et al. 2024, "Jumping Ahead", equation 1; a ReLU is a threshold of 0. TopK as in Gao et al.
2024, "Scaling and evaluating sparse autoencoders", equation 5: a threshold of minus infinity, and the `k` largest.

Letters: P positions, D d_model, F features of a layer, n active entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crosstrace.kernels.checks import check_float, check_shape
from crosstrace.kernels.dispatch import choose_path

TILE_ELEMENTS = 1 << 20  # pre-activations held at a time on the CPU: 4 MB of float32
TILE_FEATURES = 256  # the fewest features in a matrix product

ActiveEntries = tuple[Tensor, Tensor, Tensor]


def encode_reference(
    x_pd: Tensor, w_enc_df: Tensor, b_enc_f: Tensor, threshold_f: Tensor, k: int | None = None
) -> ActiveEntries:
    """Compute the definition, densely: JumpReLU(x W_enc + b_enc), then its active entries, or the `k` largest of them."""
    h_pf = x_pd.float() @ w_enc_df.float() + b_enc_f.float()
    active_pf = h_pf > threshold_f.float()
    if k is not None:
        ranked_pf = h_pf.where(active_pf, -torch.inf).argsort(dim=1, descending=True, stable=True)
        largest_pf = torch.zeros_like(active_pf).scatter(1, ranked_pf[:, :k], True)
        active_pf = active_pf & largest_pf & (h_pf != 0)
    positions, features = active_pf.nonzero(as_tuple=True)
    return positions, features, h_pf[positions, features]


def encode(x_pd: Tensor, w_enc_df: Tensor, b_enc_f: Tensor, threshold_f: Tensor, k: int | None = None) -> ActiveEntries:
    """Find the active features of one layer: `h = x W_enc + b_enc`, active where `h > threshold` (not where equal).

    Args:
        x_pd: (P, D) transcoder inputs; float32, bfloat16 or float16.
        w_enc_df: (D, F) encoder with any strides, so that the transpose of a stored (F, D) works too; float32, bfloat16
            or float16. Products are accumulated in float32.
        b_enc_f: (F,) bias, used in float32.
        threshold_f: (F,) thresholds, used in float32; minus infinity for none.
        k: Of a position's active features only the `k` largest stay active, the first of equal ones. Among them may be
            negative ones, if the thresholds let them pass; a feature of 0 counts but is not returned. None: all.

    Returns:
        Positions (n,) int64, features (n,) int64 and values (n,) float32, ascending by (position, feature).

    Raises:
        ValueError: A shape, dtype or device does not fit, or `k` is not positive; the message names the argument and
            what was expected.

    Example:
        >>> encode(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.zeros(2), torch.zeros(2))
        (tensor([0]), tensor([0]), tensor([1.]))
    """
    check_shape("x_pd", x_pd, ("P", "D"))
    check_shape("w_enc_df", w_enc_df, (x_pd.shape[1], "F"))
    for name, vector in (("b_enc_f", b_enc_f), ("threshold_f", threshold_f)):
        check_shape(name, vector, (w_enc_df.shape[1],))
    for name, tensor in (("x_pd", x_pd), ("w_enc_df", w_enc_df), ("b_enc_f", b_enc_f), ("threshold_f", threshold_f)):
        check_float(name, tensor, x_pd.device)
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    path = choose_path("encode", x_pd.device)
    if path == "reference":
        return encode_reference(x_pd, w_enc_df, b_enc_f, threshold_f, k)
    # The k largest of a token are known only when all its features are: torch finds them tile by tile on any device.
    # The Triton kernel writes what passes a threshold, which for a TopK would be everything.
    if path == "triton" and k is None:
        from crosstrace.kernels.encoding_triton import encode_triton
        from crosstrace.kernels.triton_parts import launching_on

        with launching_on(x_pd.device):
            return encode_triton(x_pd, w_enc_df, b_enc_f, threshold_f)
    return encode_torch(x_pd, w_enc_df, b_enc_f, threshold_f, k)


def encode_torch(
    x_pd: Tensor, w_enc_df: Tensor, b_enc_f: Tensor, threshold_f: Tensor, k: int | None = None
) -> ActiveEntries:
    """Encode one tile of features at a time, through buffers of one tile."""
    x_pd, b_enc_f, threshold_f = x_pd.float(), b_enc_f.float(), threshold_f.float()
    (n_positions, d_model), n_features = x_pd.shape, w_enc_df.shape[1]
    width = min(n_features, max(TILE_FEATURES, TILE_ELEMENTS // max(n_positions, d_model, 1)))
    h_buffer = torch.empty(n_positions * width, device=x_pd.device)
    w_buffer = torch.empty(0 if w_enc_df.dtype == torch.float32 else d_model * width, device=x_pd.device)
    floor_p1 = torch.full((n_positions, 1), -torch.inf, device=x_pd.device)  # k features reach it, in the tiles so far
    parts = []
    for start in range(0, n_features, max(width, 1)):
        tile = slice(start, min(start + width, n_features))
        w_df = w_enc_df[:, tile]
        if w_df.dtype != torch.float32:
            # in the stored order, whichever of the two dimensions that is
            w_df = (
                w_buffer[: w_df.numel()].view(w_df.T.shape).T.copy_(w_df)
                if w_df.stride(0) == 1
                else (w_buffer[: w_df.numel()].view(w_df.shape).copy_(w_df))
            )
        h_pf = h_buffer[: n_positions * w_df.shape[1]].view(n_positions, w_df.shape[1])
        torch.addmm(b_enc_f[tile], x_pd, w_df, out=h_pf)
        active_pf = h_pf > threshold_f[tile]
        if k is not None:
            if k <= h_pf.shape[1]:
                candidates_pf = h_pf.where(active_pf, -torch.inf)
                floor_p1 = torch.maximum(floor_p1, candidates_pf.topk(k, dim=1, sorted=False).values.amin(1, True))
            active_pf &= h_pf >= floor_p1
        positions, features = active_pf.nonzero(as_tuple=True)
        parts.append((positions, features + start, h_pf[positions, features]))
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=x_pd.device)
        return none, none, none.float()
    positions, features, values = (torch.cat(part) for part in zip(*parts, strict=True))
    if len(parts) > 1:  # tiles come one after the other: a stable sort by position leaves the features ascending
        order = torch.argsort(positions, stable=True)
        positions, features, values = positions[order], features[order], values[order]
    return (positions, features, values) if k is None else _largest(positions, features, values, n_positions, k)


def _largest(positions: Tensor, features: Tensor, values: Tensor, n_positions: int, k: int) -> ActiveEntries:
    """Keep the `k` largest entries of each position, the first of equal ones, and drop zeros."""
    order = torch.argsort(values, descending=True, stable=True)
    order = order[torch.argsort(positions[order], stable=True)]  # by position, the largest first
    starts_p = torch.searchsorted(positions, torch.arange(n_positions, device=positions.device))
    rank = torch.arange(len(order), device=order.device) - starts_p[positions[order]]
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[order[rank < k]] = True
    kept &= values != 0
    return positions[kept], features[kept], values[kept]
