"""The story of a graph as a drawing: what a figure shows unless it is asked for more."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crosstrace.graphs.analysis.story import Story, StoryNode, layer_range
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.numbers import count, probability, share, signed
from crosstrace.graphs.pictures.drawing import Drawing, DrawnEdge, DrawnNode, Line, wrapped
from crosstrace.graphs.text import short
from crosstrace.graphs.viewer_ids import node_ids

_KINDS = {"group": "supernode", "target": "logit", "error": "unexplained"}
_MOST_ROWS = 9
TOKEN_ROW, ERROR_ROW = -2, -1
LARGER = 0.45  # how much larger than the least the letters of the most influential node are
_LABEL_WIDTH, _LABEL_LINES = 15, 3
_LABELLED_EDGES, _LEAST_LABELLED = 14, 0.12
HOW_TO_GET_ALL = "--all draws the whole pruned graph, -o FILE.html is a page of it."


def story_drawing(story: Story, notes: Sequence[str] = ()) -> Drawing:
    """Return the drawing of a story: nodes as large as they are influential, edges as wide as their share of the input.

    Args:
        story: The story.
        notes: More sentences for the caption.
    """
    graph = story.graph
    ids = node_ids(graph)
    most = max((node.influence for node in story.nodes if node.kind not in ("target", "error")), default=0.0) or 1.0
    names = [
        ids[node.members[0]] if node.kind in ("token", "feature", "target") else f"{node.kind}-{i}"
        for i, node in enumerate(story.nodes)
    ]
    nodes = [_drawn(graph, node, name, most) for node, name in zip(story.nodes, names, strict=True)]
    strongest = sorted((edge.share for edge in story.edges), reverse=True)[:_LABELLED_EDGES]
    labelled = max(strongest[-1] if strongest else 1.0, _LEAST_LABELLED)
    edges = [
        DrawnEdge(
            names[edge.source],
            names[edge.target],
            edge.weight,
            f"{_called(graph, story.nodes[edge.source])} → {_called(graph, story.nodes[edge.target])}: "
            f"{signed(edge.weight)}, {share(edge.share)} of its input",
            edge.share,
            f"{edge.share:.0%}" if edge.share >= labelled else "",
        )
        for edge in story.edges
    ]
    rows = {TOKEN_ROW: "tokens", ERROR_ROW: "errors"}
    rows |= {row: row_name(row, graph.n_layers) for row in range(graph.n_layers)}
    keys = "Figures on lines: share of what a node receives. Dashed lines lower. "
    caption = [*story.sentences(), *notes, keys + HOW_TO_GET_ALL]
    return Drawing(title_of(graph, story.target), graph.n_layers, nodes, edges, [], rows, caption)


def layers_of_a_row(n_layers: int) -> int:
    """Return how many layers share a row: a deep model has too many for a page."""
    return math.ceil(n_layers / _MOST_ROWS)


def row_name(row: int, n_layers: int) -> str:
    """Return what to call the row that begins with a layer."""
    last = min(row + layers_of_a_row(n_layers), n_layers) - 1
    return f"layer {row}" if last == row else f"layers {row}–{last}"


def title_of(graph: AttributionGraph, target: int | None = None) -> str:
    """Return the prompt without `<bos>`, and a target.

    Args:
        graph: A graph.
        target: A target node; none is named if None.
    """
    prompt = graph.prompt.removeprefix("<bos>").strip() or graph.prompt
    if target is None:
        return prompt
    i = graph.layout.logit_of(target)
    chance = graph.probability_of(i)
    goal = graph.target_name(i)
    return f"{prompt} → {goal}" + ("" if chance is None else f" (p = {probability(chance)})")


def _called(graph: AttributionGraph, node: StoryNode) -> str:
    match node.kind:
        case "feature" | "target" | "token":
            return graph.describe(node.members[0])
        case "error":
            return f"errors @ {graph.token_name(node.position)}"
    layers = layer_range(node.layers, graph.n_layers)
    return f"{short(node.name, 60)} ({layers} @ {graph.token_name(node.position)})"


def _drawn(graph: AttributionGraph, node: StoryNode, name: str, most: float) -> DrawnNode:
    scale = 1 + LARGER * math.sqrt(min(node.influence / most, 1.0))
    passing = share(round(node.influence, 3))
    layers = layer_range(node.layers, graph.n_layers)
    members = [graph.describe(member) for member in node.members]
    listed = ", ".join(members[:8]) + (f" and {count(len(members) - 8)} more" if len(members) > 8 else "")
    about = f"{passing} of the influence passes through it"
    band = layers_of_a_row(graph.n_layers)
    row = TOKEN_ROW if node.kind == "token" else round(node.layer) // band * band
    lines: tuple[Line, ...]
    match node.kind:
        case "token":
            lines = (Line(node.name, scale=scale), Line(passing, small=True))
        case "target":
            i, row = graph.layout.logit_of(node.members[0]), graph.n_layers
            chance = graph.probability_of(i)
            lines = (Line(graph.target_name(i), scale=scale),)
            lines += () if chance is None else (Line(f"p = {probability(chance)}", small=True),)
        case "error":
            row = ERROR_ROW  # errors of all layers together enter here, as the token does
            lines = (Line(f"unexplained {passing}", small=True),)
            about = f"{passing} of the influence ends in errors at this position"
        case "rest":
            lines = (Line(f"{node.name}, {layers}", small=True), Line(passing, small=True))
        case "feature":
            number = f"L{graph.feature_of(node.members[0])[0]}/{graph.feature_of(node.members[0])[2]}"
            words = wrapped(node.name, scale, _LABEL_WIDTH, _LABEL_LINES) if node.name.strip() else []
            lines = (
                (*words, Line(f"{number} · {passing}", small=True))
                if words
                else (Line(number, scale=scale), Line(passing, small=True))
            )
        case _:
            words = wrapped(node.name, scale, _LABEL_WIDTH, _LABEL_LINES)
            lines = (*words, Line(f"{layers} · {len(members)} features · {passing}", small=True))
    return DrawnNode(
        name, _KINDS.get(node.kind, node.kind), row, node.position, lines, f"{_called(graph, node)}\n{about}: {listed}"
    )
