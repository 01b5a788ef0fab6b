"""How far to trust the terms of a score: what they predict for ablating nodes, beside what that does in the model.

With norms frozen the score is bilinear, so that prediction and measurement are the same but for rounding. With norms free the
denominators respond, to first order by the terms that `QKTerms` holds as responses.

Letters: S sources, P positions, D d_model, C keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import Ablate, ErrorAt, FeatureAt, Intervention, TokenAt
from crosstrace.replacement_model.interventions.attention_readings import read_attention
from crosstrace.replacement_model.local.sources import ascend
from crosstrace.tracer.attention.scores import HeadScores


@dataclass(frozen=True)
class Change:
    """What ablating nodes does to one key.

    Attributes:
        score: The change of the score before softmax.
        log_probability: The change of the log of the attention probability, with all competing keys in it.
    """

    score: float
    log_probability: float


@dataclass(frozen=True)
class AblationCheck:
    """The change predicted for ablating nodes beside the measured one.

    Attributes:
        nodes: The nodes.
        predicted: By the terms, norms frozen.
        measured: In the model, norms frozen.
        predicted_response: By the terms and the first-order response of the four norms of the score.
        measured_free: In the model, with every norm free.
    """

    nodes: tuple[int, ...]
    predicted: Change
    measured: Change
    predicted_response: Change
    measured_free: Change


def ablation_check(scores: HeadScores, key: int, nodes: Sequence[int]) -> AblationCheck:
    """Predict what ablating nodes does to a head's attention to a key, and measure it; everything else is held.

    Args:
        scores: The head and the query.
        key: The key's position.
        nodes: Features, errors or tokens of the graph, ablated together.

    Raises:
        ValueError: The query does not see the key, or a node is a target or does not exist.

    Example:
        >>> check = ablation_check(HeadScores(TracedPrompt(model, graph), 4, 2, 9), key=6, nodes=[12])
        >>> abs(check.predicted.score - check.measured.score) < 1e-3
        True
    """
    place = scores.check_key(key) - scores.keys.start
    traced, graph = scores.traced, scores.traced.graph
    interventions = [_ablate(graph, node) for node in nodes]
    exact_c, response_c = _predicted(scores, sorted(set(nodes)))
    readings = {
        (frozen, changed): read_attention(
            traced.model,
            traced.local,
            interventions if changed else [],
            scores.layer,
            scores.head,
            scores.query,
            frozen,
        )
        for frozen in (True, False)
        for changed in (False, True)
    }

    def measured(frozen: bool) -> Change:
        before, after = readings[frozen, False], readings[frozen, True]
        logs = [reading.probabilities_p[key].double().clamp_min(1e-300).log() for reading in (before, after)]
        return Change(float(after.scores_p[key] - before.scores_p[key]), float(logs[1] - logs[0]))

    def predicted(changes_c: Tensor) -> Change:
        # The change of log A_k with all of the score's change in it, not its first order alone.
        spread = (scores.probabilities.double() * changes_c.exp()).sum().log()
        return Change(float(changes_c[place]), float(changes_c[place] - spread))

    return AblationCheck(
        tuple(nodes), predicted(exact_c), measured(True), predicted(exact_c + response_c), measured(False)
    )


def _ablate(graph: AttributionGraph, node: int) -> Intervention:
    if not 0 <= node < graph.layout.n_sources:
        raise ValueError(f"node {node} cannot be ablated: nodes 0 to {graph.layout.n_sources - 1} are no targets")
    match graph.layout.kind(node):
        case "feature":
            layer, position, feature = graph.feature_of(node)
            return Ablate(FeatureAt(layer, feature, position))
        case "error":
            return Ablate(ErrorAt(*graph.layout.error_of(node)))
        case _:
            return Ablate(TokenAt(graph.layout.token_of(node)))


@torch.no_grad()
def _predicted(scores: HeadScores, nodes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The changes of the keys' scores (C,) float64 without the nodes: with norms frozen, and what the norms' response adds."""
    traced, layer = scores.traced, scores.layer
    local, size = traced.local, traced.local.description
    end = scores.query + 1
    sources = [one for one in traced.sources(np.array(nodes)) if one.layer < layer and one.first < end]
    gone_pd = torch.zeros(end, size.d_model, device=local.residuals_lpd.device)

    def meet_stream(at: int, after: bool, stream_psd: Tensor) -> None:
        if at == layer and not after:
            gone_pd.add_(stream_psd.sum(1))

    if sources:
        ordered = sorted(sources, key=lambda one: one.layer)
        record, folded = local.adjoint.record, local.adjoint.folded
        ascend(record, folded, ordered, slice(0, end), layer - 1, meet_stream=meet_stream)
    query = scores.query_side
    lost_w = (query.matrix_wd @ gone_pd[scores.query]).double()
    query_w = query.vector_w.double()
    of_query = query.response_d.double() @ gone_pd[scores.query].double()
    changes, responses = [], []
    for key in scores.keys:
        side = scores.side(key)
        key_w, key_lost_w = side.vector_w.double(), (side.matrix_wd @ gone_pd[key]).double()
        changes.append(-(lost_w @ key_w) - query_w @ key_lost_w + lost_w @ key_lost_w)
        of_key = side.response_d.double() @ gone_pd[key].double()
        responses.append(-(query_w @ key_w) * (of_query + of_key))
    return torch.stack(changes).cpu() * scores.scale, torch.stack(responses).cpu() * scores.scale
