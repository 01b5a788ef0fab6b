"""`encode`: transcoder inputs to the sparse list of active features, without a dense activation tensor.

JumpReLU as in Rajamanoharan et al. 2024, "Jumping Ahead", equation 1; a ReLU is a threshold of 0.

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


def encode_reference(x_pd: Tensor, w_enc_df: Tensor, b_enc_f: Tensor, threshold_f: Tensor) -> ActiveEntries:
    """Compute the definition, densely: JumpReLU(x W_enc + b_enc), then its active entries."""
    h_pf = x_pd.float() @ w_enc_df.float() + b_enc_f.float()
    positions, features = (h_pf > threshold_f.float()).nonzero(as_tuple=True)
    return positions, features, h_pf[positions, features]


def encode(x_pd: Tensor, w_enc_df: Tensor, b_enc_f: Tensor, threshold_f: Tensor) -> ActiveEntries:
    """Find the active features of one layer: `h = x W_enc + b_enc`, active where `h > threshold` (not where equal).

    Args:
        x_pd: (P, D) transcoder inputs; float32, bfloat16 or float16.
        w_enc_df: (D, F) encoder with any strides, so that the transpose of a stored (F, D) works too; float32, bfloat16
            or float16. Products are accumulated in float32.
        b_enc_f: (F,) bias, used in float32.
        threshold_f: (F,) thresholds, used in float32.

    Returns:
        Positions (n,) int64, features (n,) int64 and values (n,) float32, ascending by (position, feature).

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names the argument and what was expected.

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
    path = choose_path("encode", x_pd.device)
    if path == "reference":
        return encode_reference(x_pd, w_enc_df, b_enc_f, threshold_f)
    if path == "triton":
        from crosstrace.kernels.encoding_triton import encode_triton
        from crosstrace.kernels.triton_parts import launching_on

        with launching_on(x_pd.device):
            return encode_triton(x_pd, w_enc_df, b_enc_f, threshold_f)
    return encode_torch(x_pd, w_enc_df, b_enc_f, threshold_f)


def encode_torch(x_pd: Tensor, w_enc_df: Tensor, b_enc_f: Tensor, threshold_f: Tensor) -> ActiveEntries:
    """Encode one tile of features at a time, through buffers of one tile."""
    x_pd, b_enc_f, threshold_f = x_pd.float(), b_enc_f.float(), threshold_f.float()
    (n_positions, d_model), n_features = x_pd.shape, w_enc_df.shape[1]
    width = min(n_features, max(TILE_FEATURES, TILE_ELEMENTS // max(n_positions, d_model, 1)))
    h_buffer = torch.empty(n_positions * width, device=x_pd.device)
    w_buffer = torch.empty(0 if w_enc_df.dtype == torch.float32 else d_model * width, device=x_pd.device)
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
        positions, features = (h_pf > threshold_f[tile]).nonzero(as_tuple=True)
        parts.append((positions, features + start, h_pf[positions, features]))
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=x_pd.device)
        return none, none, none.float()
    positions, features, values = (torch.cat(part) for part in zip(*parts, strict=True))
    if len(parts) > 1:  # tiles come one after the other: a stable sort by position leaves the features ascending
        order = torch.argsort(positions, stable=True)
        positions, features, values = positions[order], features[order], values[order]
    return positions, features, values
