"""What interventions do to attention itself: scores and patterns read in the model, and heads taken out of it.

The model runs under the hooks of a pass, so that what is read is computed by the model's own modules.

Letters: P positions, D d_model, H heads, K kv heads, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crosstrace.replacement_model.architectures.float32 import float32_arithmetic, inverse_rms, stored_weight
from crosstrace.replacement_model.architectures.hooks import Hook
from crosstrace.replacement_model.interventions.edited_features import EditTable
from crosstrace.replacement_model.interventions.edits import resolve
from crosstrace.replacement_model.interventions.freeze import Freeze
from crosstrace.replacement_model.interventions.frozen_pass import attend
from crosstrace.replacement_model.interventions.held_errors import HeldErrors
from crosstrace.replacement_model.interventions.hooked_pass import hooked_pass
from crosstrace.replacement_model.interventions.kinds import Intervention
from crosstrace.replacement_model.interventions.outcomes import Outcome, read_outcomes
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts
from crosstrace.replacement_model.local.attention_scores import check_scores_known
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.local.running_model import RunningModel


@dataclass(frozen=True)
class AttentionReading:
    """One head's attention for one query, as the model computes it in a pass.

    Attributes:
        scores_p: (P,) float32 the scores before softmax of the keys up to the query; 0 after it.
        probabilities_p: (P,) float32 the attention probabilities.
    """

    scores_p: Tensor
    probabilities_p: Tensor


def read_attention(
    model: RunningModel,
    local: LocalReplacementModel,
    interventions: Sequence[Intervention],
    layer: int,
    head: int,
    query: int,
    norms_frozen: bool,
) -> AttentionReading:
    """Run a prompt under interventions, everything else held, and read one head's attention.

    Features that are not named keep their activations, and earlier layers their attention patterns, so that what reaches the
    head is the direct effect of the interventions.

    Args:
        model: The replacement model.
        local: The prompt's local replacement model.
        interventions: What to change; an empty list reads the unchanged prompt.
        layer: The layer.
        head: The head.
        query: The query's position.
        norms_frozen: Whether every norm's denominator is held, those of queries and keys among them.

    Raises:
        ValueError: An intervention is not valid, or the description does not say how scores are made.
    """
    check_scores_known(local)
    size, sites = local.description, local.sites.layers[layer]
    normed: dict[str, Tensor] = {}
    read: dict[str, Any] = {}

    def keep(which: str, norm: nn.Module, projection: nn.Module) -> Hook:
        def hook(args: tuple[Tensor, ...], kwargs: Any, output: Tensor) -> Tensor | None:
            if not norms_frozen:
                normed[which] = output[0]
                return None
            stream_pd = local.layers[layer].input_norm[:] * local.residuals_lpd[layer]
            unchanged_phw = (stream_pd @ stored_weight(projection).float().T).unflatten(-1, (-1, size.head_dim))
            inverse_hp1 = inverse_rms(unchanged_phw.transpose(0, 1), size.rms_norm_eps)
            normed[which] = (local.sites.gain(norm) * inverse_hp1 * args[0][0].float()).to(output.dtype)
            return normed[which][None]

        return hook

    def attention(args: Any, kwargs: Any, output: tuple[Tensor, Tensor]) -> None:
        read["rotation"] = kwargs["position_embeddings"]
        read["probabilities"] = output[1][0, head, query].float()

    parts = (sites.query_norm, sites.query, sites.key_norm, sites.key)
    assert all(part is not None for part in parts)
    query_norm, query_projection, key_norm, key_projection = parts
    also: list[tuple[nn.Module, Hook]] = [
        (query_norm, keep("query", query_norm, query_projection)),  # type: ignore[list-item, arg-type]
        (key_norm, keep("key", key_norm, key_projection)),  # type: ignore[list-item, arg-type]
        (sites.attention, attention),
    ]
    _run(model, local, interventions, norms_frozen, also)
    assert size.score_scale is not None
    cosines_pw, sines_pw = (part[0].float() for part in read["rotation"])
    query_w = _rotated(normed["query"][head, query].float(), cosines_pw[query], sines_pw[query])
    keys_pw = _rotated(normed["key"][head // (size.n_heads // size.n_kv_heads)].float(), cosines_pw, sines_pw)
    scores_p = keys_pw @ query_w * size.score_scale
    scores_p[query + 1 :] = 0
    return AttentionReading(scores_p, read["probabilities"])


def without_head(
    model: RunningModel,
    local: LocalReplacementModel,
    layer: int,
    head: int,
    norms_frozen: bool,
    positions: Sequence[int],
    read_features: Tensor,
) -> Outcome:
    """Run a prompt with one head's output at zero and everything else held: features, errors, attention patterns.

    Args:
        model: The replacement model.
        local: The prompt's local replacement model.
        layer: The layer.
        head: The head.
        norms_frozen: Whether the norms' denominators are held too.
        positions: Positions whose logits are returned.
        read_features: (T, 3) int64 rows (layer, position, feature) whose pre-activations are returned.
    """
    only_hqk = torch.zeros_like(local.layers[layer].attention_hqk)
    only_hqk[head] = local.layers[layer].attention_hqk[head]

    def drop(args: Any, kwargs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        read_bpd = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        head_bpd = attend(read_bpd.float(), only_hqk[None].float(), local.layers[layer], local.description)
        return output[0] - head_bpd.to(output[0]), *output[1:]

    also: list[tuple[nn.Module, Hook]] = [(local.sites.layers[layer].attention, drop)]
    prompts, result = _run(model, local, [], norms_frozen, also)
    with float32_arithmetic():
        return read_outcomes(model, prompts, result, positions, read_features)[0]


def _run(
    model: RunningModel,
    local: LocalReplacementModel,
    interventions: Sequence[Intervention],
    norms_frozen: bool,
    also: Sequence[tuple[nn.Module, Hook]],
) -> tuple[PaddedPrompts, Any]:
    freeze = Freeze.constrained(local.description.n_layers - 1, norms="frozen" if norms_frozen else "free")
    edits = resolve(interventions, local, model.localizer())
    prompts = PaddedPrompts([local], [0], "right")
    table = EditTable([edits], model.transcoders.reader.n_features, model.device)
    with float32_arithmetic():
        return prompts, hooked_pass(model, prompts, table, freeze, HeldErrors.parse("frozen"), also)


def _rotated(vectors_xw: Tensor, cosines_xw: Tensor, sines_xw: Tensor) -> Tensor:
    first, second = vectors_xw.chunk(2, -1)
    return vectors_xw * cosines_xw + torch.cat([-second, first], -1) * sines_xw
