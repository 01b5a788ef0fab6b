"""Nodes of a graph and heads of its model as people write them."""

from __future__ import annotations

import re

from crosstrace.graphs import AttributionGraph, node_ids
from crosstrace.graphs.text import short
from crosstrace.replacement_model.interventions.references import parse_feature

_PLACED = re.compile(r"(?:(?P<error>error\s+L(?P<layer>\d+))|token)\s*@\s*(?P<position>\d+)")
_HEAD = re.compile(r"L?(\d+)\.H?(\d+)")
_HOW = "write a feature as L3/417@7, an error as 'error L3@7', a token as 'token @7', a target by its text"


def find_node(graph: AttributionGraph, text: str) -> int:
    """Return the node that a text names.

    Args:
        graph: The graph.
        text: `L3/417@7` (the position may be left out where the feature fires once), `error L3@7`, `token @7`, the text of a
            target with or without double quotes, a label, or a node's id in the JSON export.

    Raises:
        ValueError: It names no node, or several.

    Example:
        >>> graph.describe(find_node(graph, '" Austin"'))
        'logit Austin (p=0.997)'
    """
    layout, written = graph.layout, text.strip()
    if placed := _PLACED.fullmatch(written):
        position = int(placed["position"])
        try:
            return (
                layout.error_index(int(placed["layer"]), position) if placed["error"] else layout.token_index(position)
            )
        except IndexError as problem:
            raise ValueError(f"{written!r} is not in the graph: {problem}") from None
    features = range(layout.n_features)
    if (feature := parse_feature(written, graph.feature_labels)) is not None:
        found = [
            node
            for node in features
            if graph.feature_key(node) == (feature.layer, feature.feature)
            and feature.positions in (None, graph.place_of(node)[1])
        ]
        return _only(graph, found, written)
    unquoted = written[1:-1] if len(written) > 1 and written[0] == written[-1] == '"' else written
    names = [graph.target_name(i) for i in range(layout.n_logits)]
    for known in (graph.logit_strings, names, [name.strip() for name in graph.logit_strings]):
        if found := [layout.logit_index(i) for i, name in enumerate(known) if name in (written, unquoted)]:
            return _only(graph, found, written)
    if found := [node for node in features if graph.name_of(node).strip() == unquoted]:
        return _only(graph, found, written)
    ids = node_ids(graph)
    return _only(graph, [ids.index(written)] if written in ids else [], written)


def _only(graph: AttributionGraph, found: list[int], written: str) -> int:
    if not found:
        raise ValueError(f"{written!r} names no node of the graph; {_HOW}")
    if len(found) > 1:
        some = ", ".join(short(graph.describe(node), 60) + f" at {graph.place_of(node)[1]}" for node in found[:4]) + (
            ", …" if len(found) > 4 else ""
        )
        raise ValueError(f"{written!r} names {len(found)} nodes ({some}): write one as L3/417@7")
    return found[0]


def parse_head(text: str) -> tuple[int, int]:
    """Return (layer, head) of a head that is written as `4.2` or `L4.H2`.

    Raises:
        ValueError: It is written otherwise.
    """
    if match := _HEAD.fullmatch(text.strip()):
        return int(match[1]), int(match[2])
    raise ValueError(f"head {text!r} cannot be read; write LAYER.HEAD, such as 4.2")
