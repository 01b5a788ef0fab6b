"""Faithfulness curves: how much of a logit is left when only some features are kept, or only those are removed.

Marks et al. 2024, "Sparse Feature Circuits", section 3.3, faithfulness and completeness of a circuit; here on one prompt,
with features ranked by their influence in the graph. Deviation: "mean" is a feature's (or error's) mean over the prompt's
positions, because a traced prompt comes without a data set.

Letters: N active features, K those with a row in the graph, L layers, P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import Tensor

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.replacement_model import (
    Ablate,
    AllFeatures,
    FeatureAt,
    Freeze,
    Intervention,
    LocalReplacementModel,
    ReplacementModel,
    Set,
    intervene_batch,
)

_POINTS = 12
_NOTHING_LOST = 1e-4  # of the logits' spread
Fill = Literal["zero", "mean"]


@dataclass(frozen=True)
class Curve:
    """The recovered logit against the number of features kept (or removed), the most influential first.

    Attributes:
        kind: `keep`: only those features are left, all others and all errors are filled in; `remove`: only those
            features are filled in.
        fill: What they are filled in with: `zero`, or the `mean` over the prompt's positions.
        counts: Numbers of features.
        recovered: The target's centred logit for each number: 1 for the model, 0 with nothing kept.
        area: The area under the curve over the share of the graph's features.
        pruned_count: The number of features that pruning keeps.
        pruned_recovered: What just those recover.
    """

    kind: Literal["keep", "remove"]
    fill: Fill
    counts: list[int]
    recovered: list[float]
    area: float
    pruned_count: int
    pruned_recovered: float


def faithfulness_curves(
    model: ReplacementModel,
    local: LocalReplacementModel,
    pruned: AttributionGraph,
    target: int,
    fills: Sequence[Fill] = ("zero", "mean"),
) -> list[Curve]:
    """Compute keep-only and remove-only curves under `Freeze.iterative()`.

    Args:
        model: The model and transcoders of the graph.
        local: The prompt's local replacement model.
        pruned: The graph with its node mask.
        target: Index of one of its targets, an output token.
        fills: The ways of filling.

    Returns:
        Two curves for each way of filling; none for a way that takes nothing away from the logit.
    """
    assert pruned.node_mask is not None
    edges = pruned.edges
    influence = spread(edges, row_scale(edges), target_weights(pruned))[pruned.layout.features]
    ranked = np.argsort(-influence, kind="stable")
    counts = np.unique(np.round(np.linspace(0, 1, _POINTS) ** 2 * len(ranked)).astype(int)).tolist()
    sets = [ranked[:count].tolist() for count in counts]
    sets.append(pruned.node_mask[pruned.layout.features].nonzero().flatten().tolist())
    token, position = int(pruned.logit_tokens[target]), int(pruned.logit_positions[target])
    whole = _centred(local.logits(position), token)
    curves = []
    for fill in fills:
        kept_out = [_keep_only(pruned, local, nodes, fill) for nodes in sets]
        taken_out = [_remove_only(pruned, local, nodes, fill) for nodes in sets]
        errors = torch.zeros_like(local.errors_lpd) if fill == "zero" else _mean_errors(local)
        kept = intervene_batch(model, [(local, edits) for edits in kept_out], Freeze.iterative(), errors, (position,))
        taken = intervene_batch(
            model, [(local, edits) for edits in taken_out], Freeze.iterative(), positions=(position,)
        )
        nothing = _centred(kept[0].logits_v, token)
        if abs(whole - nothing) <= _NOTHING_LOST * float(local.logits(position).std()):
            continue  # nothing was lost, so nothing can be recovered: the mean over a single position is its own value
        for kind, outcomes in (("keep", kept), ("remove", taken)):
            recovered = [(_centred(one.logits_v, token) - nothing) / (whole - nothing) for one in outcomes]
            shares = np.array(counts) / max(1, len(ranked))
            area = float(trapezoid(recovered[:-1], shares))
            curves.append(
                Curve(kind, fill, counts, recovered[:-1], area, len(sets[-1]), recovered[-1])  # type: ignore[arg-type]
            )
    return curves


def _centred(logits_v: Tensor, token: int) -> float:
    return (logits_v[token] - logits_v.mean()).item()


def _feature_at(graph: AttributionGraph, node: int) -> FeatureAt:
    layer, position, feature = graph.feature_of(node)
    return FeatureAt(layer, feature, position)


def _keep_only(
    graph: AttributionGraph, local: LocalReplacementModel, nodes: Sequence[int], fill: Fill
) -> list[Intervention]:
    kept = [_feature_at(graph, node) for node in nodes]
    edits: list[Intervention] = [Ablate(AllFeatures(but=tuple(kept)))]
    if fill == "mean":
        among_kept = set(kept)
        edits += _set_to_mean(local, [place for place in _active(local) if place not in among_kept])
    return edits


def _remove_only(
    graph: AttributionGraph, local: LocalReplacementModel, nodes: Sequence[int], fill: Fill
) -> list[Intervention]:
    removed = [_feature_at(graph, node) for node in nodes]
    return [Ablate(place) for place in removed] if fill == "zero" else _set_to_mean(local, removed)


def _active(local: LocalReplacementModel) -> list[FeatureAt]:
    return [FeatureAt(layer, feature, position) for layer, position, feature in local.activations.indices.tolist()]


def _set_to_mean(local: LocalReplacementModel, places: Sequence[FeatureAt]) -> list[Intervention]:
    """Set each feature to its mean activation over the prompt's positions after the excluded ones."""
    sums: dict[tuple[int, int], float] = {}
    for (layer, _, feature), value in zip(
        local.activations.indices.tolist(), local.activations.values.tolist(), strict=True
    ):
        sums[layer, feature] = sums.get((layer, feature), 0.0) + value
    n_positions = local.n_positions - local.description.excluded_first
    return [Set(place, sums.get((place.layer, place.feature), 0.0) / n_positions) for place in places]


def _mean_errors(local: LocalReplacementModel) -> Tensor:
    """Return every layer's mean error (L, P, D) over the positions after the excluded ones, at each of them."""
    errors_lpd, first = torch.zeros_like(local.errors_lpd), local.description.excluded_first
    errors_lpd[:, first:] = local.errors_lpd[:, first:].mean(1, keepdim=True)
    return errors_lpd
