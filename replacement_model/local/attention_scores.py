"""One head's attention scores before softmax as a bilinear form of the residual stream, with norms frozen.

With x the residual stream that enters the layer, at the query's position q and the key's position k,

    score = ⟨ M_q x_q, N_k x_k ⟩ · scale,     M_q = R_q diag((1 + w) σ_q) W_Q diag(g_in σ_in,q),     N_k alike,

where R is the layer's own rotation at a position, and σ the frozen 1 / rms of the norm of the query (or key) and of the norm
before attention. `M_q x_q` is the query, `N_k x_k` the key.

Letters: D d_model, W head width, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.float32 import stored_weight
from crosstrace.replacement_model.local.local_model import LocalReplacementModel

Which = Literal["query", "key"]


@dataclass(frozen=True)
class ScoreSide:
    """One side of a score at one position, linear in the residual stream there.

    Attributes:
        matrix_wd: (W, D) float32: times the residual stream that enters the layer, it gives the query or the key.
        vector_w: (W,) float32, the query or the key, rotated.
        response_d: (D,) float32: times a small change of the residual stream, it gives the relative change of the vector
            that comes of the denominators alone: of the norm before attention, and of that of the query or the key.
    """

    matrix_wd: Tensor
    vector_w: Tensor
    response_d: Tensor


def check_scores_known(local: LocalReplacementModel) -> None:
    """Check that the description of the model says how attention scores are made.

    Raises:
        ValueError: It does not.
    """
    modules, size = local.description.modules, local.description
    paths = (modules.query, modules.key, modules.query_norm, modules.key_norm)
    if None in paths or size.score_scale is None or local.layers[0].rotation is None:
        raise ValueError(
            "the description of this model does not say how its attention scores are made: ModulePaths needs query, key, "
            "query_norm and key_norm, and ModelDescription score_scale"
        )


def score_side(local: LocalReplacementModel, layer: int, head: int, position: int, which: Which) -> ScoreSide:
    """Return one side of a head's scores.

    Args:
        local: The prompt's local replacement model.
        layer: The layer.
        head: The head, of all H; several may share a key.
        position: Where in the prompt.
        which: The query's side or the key's.
    """
    size, sites, frozen = local.description, local.sites.layers[layer], local.layers[layer]
    number = head if which == "query" else head // (size.n_heads // size.n_kv_heads)
    projection, norm = (sites.query, sites.query_norm) if which == "query" else (sites.key, sites.key_norm)
    assert projection is not None
    assert norm is not None
    assert frozen.rotation is not None
    device, eps = local.residuals_lpd.device, size.rms_norm_eps
    rows = slice(number * size.head_dim, (number + 1) * size.head_dim)
    raw_wd = stored_weight(projection)[rows].to(device, torch.float32) * frozen.input_norm[position]
    gain_w = local.sites.gain(norm).to(device)
    x_d = local.residuals_lpd[layer, position]
    raw_w = raw_wd @ x_d
    square = raw_w.pow(2).mean()
    inverse = torch.rsqrt(square + eps)
    cosines_w, sines_w = (part[position] for part in frozen.rotation)
    scaled_wd = (gain_w * inverse)[:, None] * raw_wd
    matrix_wd = cosines_w[:, None] * scaled_wd + sines_w[:, None] * _half_turned(scaled_wd)
    # The two denominators undo each other but for ε: a norm does not see what scales its input.
    left = eps / (square + eps)
    response_d = -(raw_w @ raw_wd) * inverse.pow(2) / size.head_dim
    response_d -= left * x_d * frozen.input_norm.inverse_rms_p1[position].pow(2) / size.d_model
    return ScoreSide(matrix_wd, matrix_wd @ x_d, response_d)


def _half_turned(vectors_wx: Tensor) -> Tensor:
    """Turn the pairs (i, i + W / 2) by a quarter, as the rotation of `transformers` pairs them."""
    first, second = vectors_wx.chunk(2)
    return torch.cat([-second, first])
