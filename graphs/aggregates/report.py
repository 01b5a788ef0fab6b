"""An aggregate as JSON and as a table of its nodes."""

from __future__ import annotations

import csv
import io
from typing import Any

from crosstrace.graphs.aggregates.circuit import Aggregate, AggregateNode
from crosstrace.graphs.aggregates.groups import Comparison
from crosstrace.graphs.viewer_ids import feature_name

FORMAT, VERSION = "crosstrace-aggregate", 1


def aggregate_as_dict(aggregate: Aggregate, comparison: Comparison | None = None) -> dict[str, Any]:
    """Return an aggregate as its JSON has it: `prompts`, `roles`, `nodes`, `edges`, `circuit`, `stability`, `comparison`.

    Args:
        aggregate: The aggregate.
        comparison: Groups of its prompts.
    """
    nodes, edges = aggregate.circuit(aggregate.settings["min_share"], aggregate.settings["min_influence"])
    stability = aggregate.stability
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": aggregate.model_name,
        "transcoders": aggregate.transcoders_name,
        "settings": aggregate.settings,
        "layers": aggregate.n_layers,
        "prompts": aggregate.prompts,
        "left_out": aggregate.left_out,
        "roles": aggregate.roles,
        "nodes": [node_as_dict(node) for node in aggregate.nodes],
        "edges": [
            {
                "source": edge.source,
                "target": edge.target,
                "share": edge.share,
                "weight": edge.weight,
                "weight_interval": list(edge.weight_interval),
                "spread": edge.spread,
                "influence": edge.influence,
            }
            for edge in aggregate.edges
        ],
        "circuit": {"nodes": nodes, "edges": [[edge.source, edge.target] for edge in edges]},
        "stability": stability
        and {
            "nodes": stability.nodes,
            "edges": stability.edges,
            "overlap": stability.overlap,
            "splits": stability.splits,
        },
        "comparison": comparison
        and {
            "key": comparison.key,
            "groups": comparison.groups,
            "sizes": comparison.sizes,
            "left_out": comparison.left_out,
            "tested": comparison.tested,
            "false_discovery_rate": comparison.rate,
            "permutations": comparison.permutations,
            "nodes": [
                {"node": one.node, "means": one.means, "shares": one.shares, "p": one.p, "q": one.q}
                for one in comparison.nodes
            ],
        },
    }


def node_as_dict(node: AggregateNode) -> dict[str, Any]:
    """Return a node as the JSON has it."""
    return {
        "kind": node.key.kind,
        "name": node.shown,
        "label": node.label,
        "role": node.key.role,
        "feature": node_feature(node),
        "layers": list(node.layers),
        "layer": node.layer,
        "position": node.position,
        "share": node.share,
        "share_interval": list(node.share_interval),
        "influence": node.influence,
        "influence_interval": list(node.influence_interval),
        "spread": node.spread,
        "activation": node.activation,
        "selected": node.selected,
        "features": [[feature_name(layer, feature), times] for layer, feature, times in node.features],
        "targets": node.targets,
        "prompts": [[number, influence] for number, influence in node.prompts],
    }


def node_feature(node: AggregateNode) -> str | None:
    """Return the feature that a node is, such as `L3/417`; None for what is not one feature."""
    return feature_name(node.key.layer, node.key.feature) if node.key.kind == "feature" else None


def node_table(aggregate: Aggregate) -> bytes:
    """Return the nodes as CSV, the most influential first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "kind",
            "name",
            "role",
            "feature",
            "first_layer",
            "last_layer",
            "share",
            "influence",
            "influence_low",
            "influence_high",
            "spread",
            "activation",
            "selected",
            "targets",
        ]
    )
    for node in sorted(aggregate.nodes, key=lambda node: -node.influence):
        writer.writerow(
            [
                node.key.kind,
                node.shown,
                node.key.role,
                node_feature(node) or "",
                *node.layers,
                node.share,
                node.influence,
                *node.influence_interval,
                node.spread,
                node.activation,
                node.selected,
                "; ".join(node.targets),
            ]
        )
    return text.getvalue().encode()
