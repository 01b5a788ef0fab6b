"""Direct effects: the edges of a graph, checked by doubling sources in the model with everything else held.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import (
    ErrorAt,
    FeatureAt,
    Freeze,
    LocalReplacementModel,
    ReplacementModel,
    Scale,
    TokenAt,
    intervene_batch,
)

# An edge this much smaller than the largest one says nothing about relative errors but rounding.
_NEGLIGIBLE = 1e-4
_PLOTTED = 2000

# Exact arithmetic apart, edges and measured changes are the same: what float32 loses is a hundredth of this.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class DirectEffects:
    """Edges of a sample of sources, and the change that doubling each source makes with everything else held.

    Attributes:
        n_sources: How many sources were doubled.
        n_edges: How many edges they have.
        max_error: Largest |measured - edge|.
        relative_error: ‖measured - edges‖ / ‖edges‖.
        max_relative_error: Largest |measured - edge| / |edge| over edges above 1e-4 of the largest one.
        edges: A subsample of the edges, for plots.
        measured: The measured changes of that subsample.
    """

    n_sources: int
    n_edges: int
    max_error: float
    relative_error: float
    max_relative_error: float
    edges: list[float]
    measured: list[float]

    @property
    def problem(self) -> str:
        """One line that says that edges and measured changes disagree; empty if they agree."""
        if self.relative_error <= TOLERANCE:
            return ""
        return (
            f"direct effects are off by {self.relative_error:.2g} of the edges (expected at most {TOLERANCE:g}): "
            "these are not the graph's weights, or the graph is not what was traced"
        )


def direct_effects(
    model: ReplacementModel, local: LocalReplacementModel, graph: AttributionGraph, n_sources: int, seed: int
) -> DirectEffects:
    """Double sampled sources one at a time under `Freeze.direct()`, and compare every target's change with the edge.

    Args:
        model: The model and transcoders of the graph.
        local: The prompt's local replacement model.
        graph: Raw or pruned.
        n_sources: How many sources to double, drawn at random from all that have an edge.
        seed: Seed of the draw.
    """
    layout, edges = graph.layout, graph.edges
    has_edge = np.unique(edges.indices)
    rng = np.random.default_rng(seed)
    sources = np.sort(rng.permutation(has_edge)[:n_sources])
    outputs = [i for i in range(layout.n_logits) if int(graph.logit_tokens[i]) >= 0]
    positions = sorted({int(graph.logit_positions[i]) for i in outputs})
    outcomes = intervene_batch(
        model,
        [(local, [Scale(_place(graph, int(node)), 2.0)]) for node in sources],
        Freeze.direct(),
        positions=positions,
        read_features=graph.active_features[graph.selected_features],
    )
    columns = []
    for outcome in outcomes:
        centred_qv = outcome.logit_changes_qv - outcome.logit_changes_qv.mean(-1, keepdim=True)
        logits = [
            centred_qv[positions.index(int(graph.logit_positions[i])), int(graph.logit_tokens[i])] for i in outputs
        ]
        columns.append(torch.cat([outcome.preactivation_changes_t, torch.stack(logits)]).cpu())
    measured = torch.stack(columns, dim=1).double().numpy()
    rows = np.concatenate([np.arange(layout.n_features), layout.logits.start + np.array(outputs)])
    expected = edges[rows][:, sources].toarray().astype(np.float64)
    error = np.abs(measured - expected)
    counted = np.abs(expected) > _NEGLIGIBLE * np.abs(expected).max()
    pairs = np.argwhere(expected != 0)
    shown = pairs[rng.permutation(len(pairs))[:_PLOTTED]]
    return DirectEffects(
        n_sources=len(sources),
        n_edges=int((expected != 0).sum()),
        max_error=float(error.max()),
        relative_error=float(np.linalg.norm(error) / np.linalg.norm(expected)),
        max_relative_error=float((error[counted] / np.abs(expected[counted])).max()),
        edges=expected[tuple(shown.T)].tolist(),
        measured=measured[tuple(shown.T)].tolist(),
    )


def _place(graph: AttributionGraph, node: int) -> FeatureAt | ErrorAt | TokenAt:
    match graph.layout.kind(node):
        case "feature":
            layer, position, feature = graph.feature_of(node)
            return FeatureAt(layer, feature, position)
        case "error":
            return ErrorAt(*graph.layout.error_of(node))
        case _:
            return TokenAt(graph.layout.token_of(node))
