"""Check an attribution graph against what interventions do to the model.

Ameisen et al. 2025, "Circuit Tracing", sections "Validating Attribution Graph Hypotheses with Interventions" and
"Evaluating Mechanistic Faithfulness". Five checks: direct effects (edges), head loadings, total effects (influence),
faithfulness curves (keep only some features, or remove only them), and how good the replacement model is on the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel
from crosstrace.tracer.attention.places import TracedPrompt
from crosstrace.tracer.cards.naming import with_guesses
from crosstrace.tracer.validation.direct_effects import DirectEffects, direct_effects
from crosstrace.tracer.validation.faithfulness import Curve, faithfulness_curves
from crosstrace.tracer.validation.heads import HeadCheck, head_check
from crosstrace.tracer.validation.replacement_quality import Quality, replacement_quality
from crosstrace.tracer.validation.total_effects import TotalEffects, total_effects
from crosstrace.tracer.weights import Note


@dataclass(frozen=True)
class Validation:
    """The five checks of one graph.

    Attributes:
        prompt: The graph's prompt.
        model_name: The model it was checked in.
        transcoders_name: The transcoders it was checked with.
        target: The output token on which total effects and curves are read.
        direct: Edges against changes when sources are doubled.
        heads: Head loadings against changes when heads are taken out.
        total: Influence against changes when features are ablated.
        curves: What is left of the target when features are kept or removed.
        quality: The replacement model against the model.
    """

    prompt: str
    model_name: str
    transcoders_name: str
    target: str
    direct: DirectEffects
    heads: HeadCheck
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
    note: Note | None = None,
) -> Validation:
    """Check a graph against the model it was traced in.

    Args:
        model: The model and transcoders of the graph.
        graph: Raw or pruned; a raw one is pruned with the default thresholds for the faithfulness curves.
        n_sources: How many sources to double for the direct effects, drawn at random from all that have an edge.
        n_features: How many of the most influential features to ablate one by one for the total effects.
        seed: Seed of the draw and of the bootstrap.
        supernodes: (name, nodes) pairs whose features are ablated together for the total effects, as
            `crosstrace.graphs.read_state` and `crosstrace.graphs.suggest_supernodes` give them.
        note: Called with one line if the graph is from before fingerprints could tell that these are its weights.

    Raises:
        ValueError: The graph is of other weights, in another dtype, or of another prompt, or has no output token among
            its targets.

    Example:
        >>> validation = validate_graph(model, trace(model, "The capital of the state containing Dallas is"))
        >>> validation.direct.relative_error < 1e-4
        True
    """
    traced = TracedPrompt(model, graph, note)
    model, local = traced.model, traced.local
    _check_same(model, local, graph)
    outputs = [i for i in range(len(graph.logit_tokens)) if int(graph.logit_tokens[i]) >= 0]
    if not outputs:
        raise ValueError("the graph has no output token among its targets: total effects need a logit to be read on")
    target = max(outputs, key=lambda i: graph.probability_of(i) or 0.0)
    graph = with_guesses(graph, model, n_features)
    pruned = graph if graph.node_mask is not None else prune(graph)
    return Validation(
        prompt=graph.prompt,
        model_name=model.name,
        transcoders_name=model.transcoders.name,
        target=graph.logit_strings[target],
        direct=direct_effects(model, local, graph, n_sources, seed),
        heads=head_check(traced, pruned),
        total=total_effects(model, local, graph, target, n_features, seed, supernodes),
        curves=faithfulness_curves(model, local, pruned, target),
        quality=replacement_quality(model, local),
    )


def _check_same(model: ReplacementModel, local: LocalReplacementModel, graph: AttributionGraph) -> None:
    said = f"the graph was traced in {graph.model_name} with {graph.transcoders_name}"
    active = local.activations.indices.cpu()
    mine, theirs = set(map(tuple, active.tolist())), set(map(tuple, graph.active_features.tolist()))
    # Rounding on another machine may flip a feature that is exactly at its threshold, not more.
    if len(mine ^ theirs) > max(1, len(theirs) // 100):
        raise ValueError(
            f"{said}; in {model.name} with {model.transcoders.name} other features are active "
            f"({len(mine & theirs)} of {len(theirs)} are the same): give the graph's own --model and --transcoders"
        )
