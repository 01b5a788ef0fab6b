"""Hold an attribution graph against what interventions do to the model.

Ameisen et al. 2025, "Circuit Tracing", sections "Validating Attribution Graph Hypotheses with Interventions" and
"Evaluating Mechanistic Faithfulness". Four checks: direct effects (edges), total effects (influence), faithfulness
curves (keep only some features, or remove only them), and how good the replacement model is on the prompt.

Letters: N active features, K those with a row in the graph, L layers, P positions, D d_model, V vocabulary, n nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosstrace.graphs import AttributionGraph, prune
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
from crosstrace.tracer.validation.faithfulness import Curve, faithfulness_curves
from crosstrace.tracer.validation.total_effects import TotalEffects, total_effects

# An edge this much smaller than the largest measured one says nothing about its relative error but rounding.
_NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class DirectEffects:
    """Edges of a sample of sources, and the change that doubling each source makes with everything else held."""

    n_sources: int
    n_edges: int
    max_error: float  # largest |measured - edge|
    relative_error: float  # ‖measured - edges‖ / ‖edges‖
    max_relative_error: float  # largest |measured - edge| / |edge| over edges above 1e-4 of the largest
    edges: list[float]  # a subsample of the pairs, for plots
    measured: list[float]


@dataclass(frozen=True)
class Quality:
    """The replacement model (every MLP swapped, errors left out, attention free) beside the model, on the prompt."""

    n_positions: int  # past the excluded ones
    same_top_token: float  # share of the positions
    same_last_token: bool
    kl_mean: float  # KL(model ‖ replacement model) in nats, mean over those positions
    kl_last: float
    error_norms: list[float]  # a layer: ‖errors‖ / ‖MLP outputs‖ over those positions


@dataclass(frozen=True)
class Validation:
    """The four checks of one graph; ``target`` is the output token that total effects and curves are read on."""

    prompt: str
    model_name: str
    transcoders_name: str
    target: str
    direct: DirectEffects
    total: TotalEffects
    curves: list[Curve]
    quality: Quality


def validate_graph(
    model: ReplacementModel,
    graph: AttributionGraph,
    n_sources: int = 256,
    n_features: int = 64,
    seed: int = 0,
    supernodes: Sequence[tuple[str, Sequence[int]]] = (),
) -> Validation:
    """Check a graph against the model it was traced in.

    Args:
        model: the model and transcoders of the graph.
        graph: raw or pruned; a raw one is pruned with the default thresholds for the faithfulness curves.
        n_sources: sources doubled for the direct effects, drawn at random from all that have an edge.
        n_features: how many of the most influential features are ablated one by one for the total effects.
        seed: of the draw and of the bootstrap.
        supernodes: (name, nodes) pairs whose features are ablated as one for the total effects, as
            :func:`~crosstrace.graphs.read_state` and :func:`~crosstrace.graphs.suggest_supernodes` give them.

    Raises:
        ValueError: the graph is of another model, other transcoders or another prompt, or has no output token among
            its targets; one line.

    Example:
        >>> validation = validate_graph(model, trace(model, "The capital of the state containing Dallas is"))
        >>> validation.direct.relative_error < 1e-4
        True
    """
    excluded = graph.settings.get("excluded_first", model.description.excluded_first)
    model = model.excluding(int(excluded))
    _check_dtype(model, graph)
    local = model.local(graph.tokens)
    _check_same(model, local, graph)
    outputs = [i for i in range(len(graph.logit_tokens)) if int(graph.logit_tokens[i]) >= 0]
    if not outputs:
        raise ValueError("the graph has no output token among its targets: total effects need a logit to be read on")
    target = max(outputs, key=lambda i: float(graph.logit_probabilities[i]))
    pruned = graph if graph.node_mask is not None else prune(graph)
    return Validation(
        prompt=graph.prompt,
        model_name=model.name,
        transcoders_name=model.transcoders.name,
        target=graph.logit_strings[target],
        direct=direct_effects(model, local, graph, n_sources, seed),
        total=total_effects(model, local, graph, target, n_features, seed, supernodes),
        curves=faithfulness_curves(model, local, pruned, target),
        quality=replacement_quality(model, local),
    )


def _check_dtype(model: ReplacementModel, graph: AttributionGraph) -> None:
    """Edges are exact for the weights as they are used; rounded to another dtype, they are other weights."""
    traced, used = graph.settings.get("weights_dtype"), model.weights_dtype
    if traced is not None and traced != used:
        raise ValueError(f"the graph was traced with {traced} weights, and these are {used}: give --dtype {traced}")


def _check_same(model: ReplacementModel, local: LocalReplacementModel, graph: AttributionGraph) -> None:
    said = f"the graph was traced in {graph.model_name} with {graph.transcoders_name}"
    if graph.n_layers != model.description.n_layers:
        raise ValueError(f"{said}, which has {graph.n_layers} layers; {model.name} has {model.description.n_layers}")
    active = local.activations.indices.cpu()
    mine, theirs = set(map(tuple, active.tolist())), set(map(tuple, graph.active_features.tolist()))
    # Rounding on another machine may flip a feature that is exactly at its threshold, not more.
    if len(mine ^ theirs) > max(1, len(theirs) // 100):
        raise ValueError(
            f"{said}; in {model.name} with {model.transcoders.name} other features are active "
            f"({len(mine & theirs)} of {len(theirs)} are the same): give the graph's own --model and --transcoders"
        )


def direct_effects(
    model: ReplacementModel, local: LocalReplacementModel, graph: AttributionGraph, n_sources: int, seed: int
) -> DirectEffects:
    """Double sampled sources, one a row, under ``direct``, and compare every target's change with the edge."""
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
    shown = pairs[rng.permutation(len(pairs))[:2000]]
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


def replacement_quality(model: ReplacementModel, local: LocalReplacementModel) -> Quality:
    """The replacement model's next-token distributions and errors on the prompt."""
    first = min(model.description.excluded_first, local.n_positions - 1)
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
