"""Head loadings, checked by taking heads out of the model with everything else held.

With norms frozen a target changes by what all sources send it through the head, which is what the loadings of its edges add
up to, and the loading of what has no edge: biases, excluded positions, features without a node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import Source
from crosstrace.replacement_model.interventions.attention_readings import without_head
from crosstrace.tracer.attention.loadings import Sweep, loadings_of
from crosstrace.tracer.attention.places import TracedPrompt
from crosstrace.tracer.attention.ranking import rank_heads

# Exact arithmetic apart, loadings and measured changes are the same.
TOLERANCE = 1e-3
_MOST_EDGES = 20_000


@dataclass(frozen=True)
class HeadCheck:
    """Heads at zero: what the loadings say that targets lose, and what they lose.

    Attributes:
        heads: (layer, head) of each head taken out, those that carry most of the graph's influence.
        n_targets: How many targets are read.
        n_edges: How many edges lead to them.
        relative_error: ‖measured − loadings‖ / ‖loadings‖ over heads and targets, norms frozen.
        free_difference: The same with norms free: how much they respond.
        loadings: What the loadings of a head add up to, head by head and target by target.
        measured: The measured loss, norms frozen.
        measured_free: The measured loss, norms free.
    """

    heads: list[tuple[int, int]]
    n_targets: int
    n_edges: int
    relative_error: float
    free_difference: float
    loadings: list[float]
    measured: list[float]
    measured_free: list[float]

    @property
    def problem(self) -> str:
        """One line that says that loadings and measured changes disagree; empty if they agree."""
        if not self.heads or self.relative_error <= TOLERANCE:
            return ""
        return (
            f"head loadings are off by {self.relative_error:.2g} of what targets lose without a head (expected at most "
            f"{TOLERANCE:g})"
        )


def head_check(traced: TracedPrompt, pruned: AttributionGraph, n_heads: int = 6, n_targets: int = 8) -> HeadCheck:
    """Take the heads that carry most of a graph's influence out one by one, and compare what targets lose.

    Args:
        traced: The prompt of the graph.
        pruned: The graph with its masks.
        n_heads: How many heads.
        n_targets: How many targets at most: the output tokens first, then the features with the most influence.
    """
    layout, graph = pruned.layout, traced.graph
    ranked = rank_heads(traced, n_heads, checked=False).heads if traced.knows_targets else []
    outputs = [layout.logit_index(i) for i in range(layout.n_logits) if int(pruned.logit_tokens[i]) >= 0]
    assert pruned.influence is not None
    features = [int(node) for node in pruned.influence[layout.features].argsort(stable=True)]
    targets: list[int] = []
    n_edges = 0
    for node in (*outputs, *features):
        count = int(np.diff(graph.edges.indptr)[node])
        if len(targets) == n_targets or (targets and n_edges + count > _MOST_EDGES):
            break
        if count:
            targets.append(node)
            n_edges += count
    if not ranked or not targets:
        return HeadCheck([], 0, 0, 0.0, 0.0, [], [], [])
    rows = graph.edges[targets].tocoo()
    pairs = np.stack([np.array(targets)[rows.row], rows.col], axis=1).astype(np.int64)
    found = loadings_of(traced, pairs, checked=False)
    sums = torch.zeros(len(targets), *found.heads.shape[1:], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(rows.row.astype(np.int64)), found.heads.double())
    sums += _of_the_rest(traced, targets)
    places = [(one.layer, one.head) for one in ranked]
    expected = torch.stack([sums[:, layer, head] for layer, head in places])
    measured, free = (
        torch.stack([_losses(traced, targets, layer, head, frozen) for layer, head in places])
        for frozen in (True, False)
    )
    scale = float(expected.norm()) or 1.0
    return HeadCheck(
        places,
        len(targets),
        n_edges,
        float((measured - expected).norm()) / scale,
        float((free - expected).norm()) / scale,
        expected.flatten().tolist(),
        measured.flatten().tolist(),
        free.flatten().tolist(),
    )


def _of_the_rest(traced: TracedPrompt, targets: list[int]) -> torch.Tensor:
    """What passes through each head from what has no node, (T, L, H) float64: one source that writes everywhere."""
    record = traced.local.adjoint.record
    written_lpd = record.constants_lpd.clone()
    nodes = set(traced.entries.tolist())
    others = torch.tensor([entry for entry in range(len(record.activations)) if entry not in nodes], dtype=torch.int64)
    for source in traced.sources_of(others):
        steps = slice(source.layer, source.layer + len(source.vectors_jd))
        written_lpd[steps, source.position] += source.vectors_jd
    everywhere = Source(0, None, written_lpd)
    n = len(targets)
    sweep = Sweep(
        traced.local,
        lambda chosen: [everywhere],
        np.zeros(1, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
        traced.targets(targets),
        np.zeros(n, dtype=np.int64),
        np.arange(n),
    )
    sweep.run()
    return sweep.heads_elh.double().cpu()


def _losses(traced: TracedPrompt, targets: list[int], layer: int, head: int, frozen: bool) -> torch.Tensor:
    """(T,) float64 what each target loses without a head."""
    graph, layout = traced.graph, traced.graph.layout
    outputs = [layout.logit_of(node) for node in targets if node >= layout.logits.start]
    positions = sorted({int(graph.logit_positions[i]) for i in outputs}) or [0]
    features = [graph.feature_of(node) for node in targets if node < layout.features.stop]
    read = torch.tensor(features, dtype=torch.int64).reshape(-1, 3)
    outcome = without_head(traced.model, traced.local, layer, head, frozen, positions, read)
    logits_qv = outcome.logit_changes_qv.double()
    logits = [
        logits_qv[positions.index(int(graph.logit_positions[i])), int(graph.logit_tokens[i])]
        - logits_qv[positions.index(int(graph.logit_positions[i]))].mean()
        for i in outputs
    ]
    of_outputs, of_features = iter(logits), iter(outcome.preactivation_changes_t.double())
    lost = [next(of_features) if node < layout.features.stop else next(of_outputs) for node in targets]
    return -torch.stack(lost).cpu()
