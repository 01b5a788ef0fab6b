"""Total effects: what a graph predicts for a target when a feature is removed, checked by ablating it in the model.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions".

Letters: n nodes, m sources (features or supernodes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.stats import rankdata

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.analysis.influence import row_scale, spread
from crosstrace.graphs.cards.labels import MARK
from crosstrace.replacement_model import (
    Ablate,
    FeatureAt,
    Freeze,
    LocalReplacementModel,
    ReplacementModel,
    Supernode,
    intervene_batch,
)

_RESAMPLES = 1000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation with the 95 % interval of a bootstrap over sources.

    Attributes:
        value: The correlation; None with fewer than three sources, or where all values are alike.
        low: The interval's lower end, or None.
        high: The interval's upper end, or None.
    """

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "undefined (fewer than three, or all alike)"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class TotalEffects:
    """For each source, what the graph predicts and what ablating it does to the target's centred logit.

    Attributes:
        sources: The names of the features and supernodes.
        is_supernode: Whether each source is a supernode.
        influence: The graph's own measure, without a sign: normalised absolute paths.
        predicted: The signed sum over paths, which is what the linear model loses with the source.
        measured: Logit before less logit after, with free norms.
        measured_frozen: The same with frozen norm denominators, as in the graph: what is left between it and `predicted`
            are features that cross their thresholds, and those without a row.
        influence_correlation: Of `influence` and the absolute values of `measured`.
        signed_correlation: Of `predicted` and `measured`.
        frozen_correlation: Of `predicted` and `measured_frozen`.
    """

    sources: list[str]
    is_supernode: list[bool]
    influence: list[float]
    predicted: list[float]
    measured: list[float]
    measured_frozen: list[float]
    influence_correlation: RankCorrelation
    signed_correlation: RankCorrelation
    frozen_correlation: RankCorrelation


def total_effects(
    model: ReplacementModel,
    local: LocalReplacementModel,
    graph: AttributionGraph,
    target: int,
    n_features: int,
    seed: int,
    supernodes: Sequence[tuple[str, Sequence[int]]] = (),
) -> TotalEffects:
    """Ablate the features with the most influence on a target, then supernodes, with everything else recomputed.

    Args:
        model: The model and transcoders of the graph.
        local: The prompt's local replacement model.
        graph: Raw or pruned.
        target: Index of one of the graph's targets, an output token.
        n_features: How many features to ablate.
        seed: Seed of the bootstrap.
        supernodes: (name, nodes) pairs; nodes that are not features are left out.

    Returns:
        Single features first, then the given supernodes, then groups of the single features that share a label.
    """
    weights = np.zeros(graph.n)
    weights[graph.layout.logits.start + target] = 1.0
    influence = spread(graph.edges, row_scale(graph.edges), weights)[graph.layout.features]
    top = np.argsort(-influence, kind="stable")[:n_features]
    groups = [[int(node)] for node in top if influence[node] > 0]
    places = [_supernode(graph, group, graph.describe(*group)) for group in groups]
    n_single = len(groups)
    for name, nodes in (*supernodes, *_same_label(graph, {node for (node,) in groups})):
        if features := [node for node in nodes if node < graph.layout.n_features]:
            groups.append(features)
            places.append(_supernode(graph, features, name))
    token, position = int(graph.logit_tokens[target]), int(graph.logit_positions[target])

    def measure(norms: Literal["free", "frozen"]) -> list[float]:
        ablated = [(local, [Ablate(place)]) for place in places]
        outcomes = intervene_batch(model, ablated, Freeze.iterative(norms=norms), positions=(position,))
        return [(one.logit_changes_qv[0].mean() - one.logit_changes_qv[0, token]).item() for one in outcomes]

    measured, measured_frozen = measure("free"), measure("frozen")
    values = np.ones(graph.n)
    values[graph.layout.features] = graph.activations[graph.selected_features].numpy()
    shares, predicted = [], []
    for group in groups:
        edges = without_rows(graph.edges, group)
        shares.append(float(spread(edges, row_scale(edges), weights)[group].sum()))
        predicted.append(float(signed_effects(edges, weights, values)[group].sum()))
    return TotalEffects(
        sources=[place.name for place in places],
        is_supernode=[number >= n_single for number in range(len(groups))],
        influence=shares,
        predicted=predicted,
        measured=measured,
        measured_frozen=measured_frozen,
        influence_correlation=rank_correlation(shares, np.abs(measured), seed),
        signed_correlation=rank_correlation(predicted, measured, seed),
        frozen_correlation=rank_correlation(predicted, measured_frozen, seed),
    )


def signed_effects(
    edges: scipy.sparse.csr_array, weights: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what each node adds to the weighted targets over all paths, with its sign.

    An edge out of a feature is what its whole activation adds. What a source adds to that activation goes on in
    proportion, so along a path every edge into a feature is divided by that feature's activation:
    w · Σ_{j≥0} edges · (diag(1/values) · edges)ʲ for the targets' rows.

    Args:
        edges: (n, n) direct effects as in a graph: a row's sources that have rows come before it.
        weights: (n,) weights of the targets.
        values: (n,) what the edges out of a node are of: activations of features, 1 for targets.

    Returns:
        (n,) effects.
    """
    effects = weights.astype(np.float64)
    for row in np.flatnonzero(np.diff(edges.indptr))[::-1]:
        if effects[row]:
            part = slice(edges.indptr[row], edges.indptr[row + 1])
            effects[edges.indices[part]] += effects[row] / values[row] * edges.data[part].astype(np.float64)
    return effects


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, seed: int) -> RankCorrelation:
    """Return Spearman's rank correlation of two lists with a percentile bootstrap of 1,000 resamples.

    Args:
        x: One value for each source.
        y: Another value for each source.
        seed: Seed of the bootstrap.

    Returns:
        The correlation, undefined with fewer than three pairs or where one list is all alike.
    """
    pairs_2n = np.array([x, y], dtype=np.float64)
    n = pairs_2n.shape[1]
    value = _spearman(pairs_2n[:, None])[0] if n >= 3 else np.nan
    if np.isnan(value):
        return RankCorrelation(None, None, None)
    drawn_r = _spearman(pairs_2n[:, np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))])
    low, high = np.nanpercentile(drawn_r, [2.5, 97.5])  # a draw of one value throughout has no correlation
    return RankCorrelation(float(value), float(low), float(high))


def _spearman(pairs_2rn: np.ndarray) -> np.ndarray:
    """Spearman's rank correlations (R,) of R lists of n pairs (2, R, n); NaN where one side is all alike."""
    ranks_2rn = rankdata(pairs_2rn, axis=-1)
    ranks_2rn -= ranks_2rn.mean(-1, keepdims=True)
    x_rn, y_rn = ranks_2rn
    spread_r = np.sqrt((x_rn**2).sum(-1) * (y_rn**2).sum(-1))
    return np.divide((x_rn * y_rn).sum(-1), spread_r, out=np.full(len(x_rn), np.nan), where=spread_r > 0)


def _same_label(graph: AttributionGraph, nodes: set[int]) -> list[tuple[str, list[int]]]:
    """Group nodes by label. Automatic labels do not count: `~ is` says where a feature fires, not what it means."""
    groups: dict[str, list[int]] = {}
    for node in sorted(nodes):
        if (label := graph.feature_labels[node].strip()) and not label.startswith(MARK):
            groups.setdefault(label, []).append(node)
    return [(label, group) for label, group in groups.items() if len(group) > 1]


def _supernode(graph: AttributionGraph, group: Sequence[int], name: str) -> Supernode:
    members = []
    for node in group:
        layer, position, feature = graph.feature_of(node)
        members.append(FeatureAt(layer, feature, position))
    return Supernode(name, tuple(members))


def without_rows(edges: scipy.sparse.csr_array, rows: Sequence[int]) -> scipy.sparse.csr_array:
    """Return the edges with some nodes held: what flows into them ends there, so no path passes through two of them."""
    if len(rows) == 1:
        return edges
    kept = np.ones(edges.shape[0], dtype=edges.dtype)
    kept[list(rows)] = 0
    held = scipy.sparse.csr_array(scipy.sparse.diags_array(kept) @ edges)
    held.eliminate_zeros()
    return held
