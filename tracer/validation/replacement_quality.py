"""How close the replacement model is to the model on a prompt.

Ameisen et al. 2025, "Circuit Tracing", section "Evaluating Mechanistic Faithfulness".
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from crosstrace.replacement_model import Freeze, LocalReplacementModel, ReplacementModel


@dataclass(frozen=True)
class Quality:
    """The replacement model (every MLP swapped, errors left out, attention free) beside the model, on the prompt.

    Attributes:
        n_positions: Positions after the excluded ones, over which shares and means are taken.
        same_top_token: Share of the positions at which both have the same top token.
        same_last_token: Whether they have at the last position.
        kl_mean: KL(model ‖ replacement model) in nats, mean over the positions.
        kl_last: The same at the last position.
        error_norms: For each layer, ‖errors‖ / ‖MLP outputs‖ over the positions.
    """

    n_positions: int
    same_top_token: float
    same_last_token: bool
    kl_mean: float
    kl_last: float
    error_norms: list[float]


def replacement_quality(model: ReplacementModel, local: LocalReplacementModel) -> Quality:
    """Compare the replacement model's next-token distributions with the model's, and measure its errors."""
    first = min(local.description.excluded_first, local.n_positions - 1)
    positions = range(first, local.n_positions)
    replaced = model.intervene(
        local, [], freeze=Freeze.iterative(attention="free"), errors="dropped", positions=positions
    )
    before_pv = (replaced.logits_qv - replaced.logit_changes_qv).double().log_softmax(-1)
    after_pv = replaced.logits_qv.double().log_softmax(-1)
    kl_p = (before_pv.exp() * (before_pv - after_pv)).sum(-1)
    same_p = before_pv.argmax(-1) == after_pv.argmax(-1)
    outputs_lpd = local.residuals_lpd[1:] - local.mids_lpd
    norms_l: Tensor = local.errors_lpd[:, first:].flatten(1).norm(dim=1) / outputs_lpd[:, first:].flatten(1).norm(dim=1)
    return Quality(
        n_positions=len(positions),
        same_top_token=same_p.double().mean().item(),
        same_last_token=bool(same_p[-1]),
        kl_mean=kl_p.mean().item(),
        kl_last=kl_p[-1].item(),
        error_norms=norms_l.tolist(),
    )
