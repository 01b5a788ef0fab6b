"""One graph in the terms of an aggregate: what each node and edge weighs there, by what they are in all prompts.

A node is a feature at a role; features whose names say the prompt's own values (`values.py`) at a role, as one; the token at a
role; all errors at a role; a target. Of a node that several features of a prompt make up, the influence is the sum of
theirs less what passes from one of them to another; an edge between nodes is the sum of the edges between their members.
Only what pruning kept counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from crosstrace.graphs.aggregates.measured import edge_shares, node_shares, shares_by_target
from crosstrace.graphs.aggregates.roles import Placed
from crosstrace.graphs.aggregates.values import in_terms_of
from crosstrace.graphs.graph import AttributionGraph

NodeType = Literal["feature", "named", "token", "error", "target"]
TOP, OTHERS = "top answer", "other answers"


class NodeKey(NamedTuple):
    """What a node is in all prompts.

    Attributes:
        kind: `named` is of features whose names say the prompt's own values.
        name: Of a named node, or a target.
        role: "" for targets.
        layer: Of a feature; -1 for what is not one.
        feature: Its index; -1 for what is not one.
    """

    kind: NodeType
    name: str
    role: str
    layer: int = -1
    feature: int = -1


@dataclass
class NodeSeen:
    """A node in one prompt.

    Attributes:
        features: (layer, feature) of its features.
        influence: The share of the influence on the targets that passes through it.
        activation: The sum of its features' activations; 0 for what is not a feature.
        on: What of its influence is on each target, by the target's text.
    """

    features: list[tuple[int, int]] = field(default_factory=list)
    influence: float = 0.0
    activation: float = 0.0
    on: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """One prompt.

    Attributes:
        name: Of its graph.
        prompt: The text.
        tokens: What to show for each token.
        targets: What to show for each target, with its weight.
        roles: Of every position.
        metadata: What is known of the prompt; slots of the pattern included.
        n_layers: L.
        nodes: What is there.
        edges: (weight, share of the influence) of each edge, by source and target.
        labels: What the features are called.
    """

    name: str
    prompt: str
    tokens: list[str]
    targets: list[tuple[str, float]]
    roles: list[str]
    metadata: Mapping[str, Any]
    n_layers: int
    nodes: dict[NodeKey, NodeSeen]
    edges: dict[tuple[NodeKey, NodeKey], tuple[float, float]]
    labels: dict[tuple[int, int], str]


def observe(
    graph: AttributionGraph, name: str, placed: Placed, metadata: Mapping[str, Any], keys: Sequence[str] = ()
) -> Observation:
    """Return a graph in the terms of an aggregate.

    Args:
        graph: Pruned and labelled.
        name: What to call it.
        placed: The roles of its positions.
        metadata: What is known of the prompt.
        keys: Whose values features and targets may be named after; slots of a pattern are always among them.
    """
    values = {key: str(value) for key, value in metadata.items() if key in keys and value is not None}
    values = {**placed.slots, **values}
    of_node = [_key(graph, node, placed, values) for node in graph.kept_nodes()]
    kept = graph.kept_nodes()
    shares, by_target = node_shares(graph), shares_by_target(graph)
    targets = graph.names()[1]
    seen: dict[NodeKey, NodeSeen] = defaultdict(NodeSeen)
    labels = {}
    for node, key in zip(kept, of_node, strict=True):
        one = seen[key]
        one.influence += float(shares[node])
        for target, through in zip(targets, by_target, strict=True):
            if through[node] > 0:
                one.on[target] = one.on.get(target, 0.0) + float(through[node])
        if key.kind in ("feature", "named"):
            one.activation += float(graph.activations[graph.selected_features[graph.layout.feature_of(node)]])
            one.features.append(graph.feature_key(node))
            labels[graph.feature_key(node)] = graph.name_of(node)
    keys_at = dict(zip(kept, of_node, strict=True))
    edges, inner = _edges(graph, keys_at)
    for key, passed in inner.items():
        one = seen[key]
        left = max(one.influence - passed, 0.0)
        one.on = {target: part * left / one.influence for target, part in one.on.items()} if one.influence else {}
        one.influence = left
    return Observation(
        name,
        graph.prompt,
        graph.names()[0],
        list(zip(targets, graph.logit_probabilities.tolist(), strict=True)),
        placed.roles,
        {**placed.slots, **metadata},
        graph.n_layers,
        dict(seen),
        edges,
        labels,
    )


def _edges(
    graph: AttributionGraph, keys: Mapping[int, NodeKey]
) -> tuple[dict[tuple[NodeKey, NodeKey], tuple[float, float]], dict[NodeKey, float]]:
    """Sums of the kept edges between nodes, and what passes within each."""
    kept = graph.kept_edges().tocoo()
    shares = np.asarray(edge_shares(graph)[kept.row, kept.col]).ravel() if kept.nnz else np.zeros(0)
    edges: dict[tuple[NodeKey, NodeKey], tuple[float, float]] = {}
    inner: dict[NodeKey, float] = defaultdict(float)
    for target, source, weight, share in zip(
        kept.row.tolist(), kept.col.tolist(), kept.data.tolist(), shares.tolist(), strict=True
    ):
        ends = keys[source], keys[target]
        if ends[0] == ends[1]:
            inner[ends[0]] += share
        else:
            before = edges.get(ends, (0.0, 0.0))
            edges[ends] = before[0] + weight, before[1] + share
    return edges, inner


def _key(graph: AttributionGraph, node: int, placed: Placed, values: Mapping[str, str]) -> NodeKey:
    kind = graph.layout.kind(node)
    if kind == "logit":
        return NodeKey("target", _target(graph, graph.layout.logit_of(node), values), "")
    role = placed.roles[graph.place_of(node)[1]]
    if kind != "feature":
        return NodeKey(kind, "", role)
    if (named := in_terms_of(graph.name_of(node), values)) is not None:
        return NodeKey("named", named, role)
    layer, _, feature = graph.feature_of(node)
    return NodeKey("feature", "", role, layer, feature)


def _target(graph: AttributionGraph, target: int, values: Mapping[str, str]) -> str:
    text = graph.logit_strings[target].strip().casefold()
    for key, value in values.items():
        if value.strip().casefold() == text:
            return f"{{{key}}}"
    return TOP if target == int(graph.logit_probabilities.argmax()) else OTHERS
