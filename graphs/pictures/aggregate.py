"""The aggregate circuit as a drawing: columns are roles, boxes as large as they are influential on average."""

from __future__ import annotations

import math

from crosstrace.graphs.aggregates.circuit import Aggregate, AggregateEdge, AggregateNode
from crosstrace.graphs.aggregates.defaults import MIN_EDGE
from crosstrace.graphs.aggregates.report import node_feature
from crosstrace.graphs.analysis.story import layer_range
from crosstrace.graphs.numbers import count, probability, share, signed
from crosstrace.graphs.pictures.drawing import Drawing, DrawnEdge, DrawnNode, Line, wrapped
from crosstrace.graphs.pictures.story import ERROR_ROW, LARGER, TOKEN_ROW, layers_of_a_row, row_name
from crosstrace.graphs.text import short

_KINDS = {"feature": "feature", "named": "supernode", "token": "token", "error": "unexplained", "target": "logit"}
_LABELLED = 14


def aggregate_drawing(
    aggregate: Aggregate, title: str = "", min_share: float | None = None, min_influence: float | None = None
) -> Drawing:
    """Return the drawing of an aggregate circuit.

    Args:
        aggregate: The aggregate.
        title: Over the picture; "" for the number of prompts, and what they have in common.
        min_share: Share of the prompts that nodes and edges are in; None: as in the aggregate's settings.
        min_influence: Mean influence of a node; None likewise.
    """
    least_share = aggregate.settings["min_share"] if min_share is None else min_share
    least_influence = aggregate.settings["min_influence"] if min_influence is None else min_influence
    chosen, edges = aggregate.circuit(least_share, least_influence, MIN_EDGE)
    most = max((aggregate.nodes[i].influence for i in chosen if aggregate.nodes[i].key.kind != "target"), default=1.0)
    nodes = [_node(aggregate, i, most) for i in chosen]
    strongest = sorted((edge.influence for edge in edges), reverse=True)[:_LABELLED]
    labelled = max(strongest[-1] if strongest else 1.0, 0.01)
    drawn = [_edge(aggregate, edge, edge.influence >= labelled) for edge in edges]
    rows = {TOKEN_ROW: "tokens", ERROR_ROW: "errors"}
    rows |= {row: row_name(row, aggregate.n_layers) for row in range(aggregate.n_layers)}
    return Drawing(
        title or default_title(aggregate),
        aggregate.n_layers,
        nodes,
        drawn,
        [],
        rows,
        _caption(aggregate, nodes, least_share, least_influence),
    )


def default_title(aggregate: Aggregate) -> str:
    """Return the number of prompts, their patterns or else the roles in their order, and the targets."""
    targets = [node.shown for node in aggregate.nodes if node.key.kind == "target"]
    inner = [role for role in aggregate.roles if not (role.startswith("<") and role.endswith(">"))]
    words = " / ".join(aggregate.settings.get("patterns", ())) or " ".join(role.partition("·")[0] for role in inner)
    return f"{count(len(aggregate.prompts), 'prompt')}: {short(words, 110)} → {', '.join(targets)}"


def _node(aggregate: Aggregate, i: int, most: float) -> DrawnNode:
    node = aggregate.nodes[i]
    scale = 1 + LARGER * math.sqrt(min(node.influence / most, 1.0))
    there, passing = share(round(node.share, 3)), share(round(node.influence, 3))
    band = layers_of_a_row(aggregate.n_layers)
    low, high = (share(end) for end in node.influence_interval)
    about = (
        f"in {there} of the prompts; {passing} of the influence passes through it on average ({low} to {high}), spread "
        f"{share(node.spread)}; in {share(node.selected)} of resampled circuits"
    )
    facts = Line(f"{passing} · in {there}", small=True)
    row = int(node.layer) // band * band
    lines: tuple[Line, ...]
    match node.key.kind:
        case "token":
            row, lines = TOKEN_ROW, (Line(short(node.label, 24), scale=scale), facts)
        case "error":
            row, lines = ERROR_ROW, (Line(f"unexplained {passing}", small=True),)
        case "target":
            row, lines = aggregate.n_layers, (Line(short(node.shown, 30), scale=scale), Line(f"in {there}", small=True))
        case "named":
            words = wrapped(node.shown, scale, 16, 3)
            lines = (*words, Line(layer_range(node.layers, aggregate.n_layers), small=True), facts)
        case _:
            number = node_feature(node) or ""
            words = wrapped(node.label, scale, 16, 3) if node.label.strip() else [Line(number, scale=scale)]
            below = (Line(number, small=True),) if node.label.strip() else ()
            lines = (*words, *below, facts)
    return DrawnNode(f"node-{i}", _KINDS[node.key.kind], row, node.position, lines, f"{called(node)}\n{about}")


def called(node: AggregateNode) -> str:
    """Return what to call a node where it stands alone: `its state @ {city}`."""
    name = node.shown if node.shown.strip() else node_feature(node) or ""
    if node.key.kind == "feature" and node.label.strip():
        name = f"{name} ({node_feature(node)})"
    return (
        name
        if node.key.kind == "target"
        else f"token {name}"
        if node.key.kind == "token"
        else f"{name} @ {node.key.role}"
    )


def _edge(aggregate: Aggregate, edge: AggregateEdge, labelled: bool) -> DrawnEdge:
    source, target = aggregate.nodes[edge.source], aggregate.nodes[edge.target]
    low, high = (signed(end) for end in edge.weight_interval)
    about = (
        f"{called(source)} → {called(target)}: {signed(edge.weight)} on average ({low} to {high}), in {share(edge.share)} of "
        f"the prompts; {share(edge.influence)} of the influence passes along it"
    )
    label = f"{edge.influence:.0%}" if labelled else ""
    return DrawnEdge(f"node-{edge.source}", f"node-{edge.target}", edge.weight, about, edge.influence, label)


def _caption(aggregate: Aggregate, nodes: list[DrawnNode], min_share: float, min_influence: float) -> list[str]:
    said = [
        f"Drawn: {count(len(nodes), 'node')} that at least {share(min_share)} of the {count(len(aggregate.prompts), 'prompt')} "
        f"keep and that carry {share(min_influence)} of the influence or more on average."
    ]
    if any(node.kind == "supernode" for node in nodes):
        said.append("its …: all features named after what the prompt's own … is, in each prompt others.")
    if (stable := aggregate.stability) is not None:
        said.append(
            f"Between random halves of the prompts, the features' influence correlates with {probability(stable.nodes)}, the "
            f"edges' weights with {probability(stable.edges)}; {share(stable.overlap)} of the features are in both circuits."
        )
    said.append("Figures on lines: mean share of the influence that passes along. Dashed lines lower.")
    return said
