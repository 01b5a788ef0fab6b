"""Which nodes of two graphs are the same thing: by layer, index and token.

Positions are aligned by the longest runs of tokens in common (`difflib.SequenceMatcher`). Between two such runs one
prompt has other tokens in the place of the other's: within such a replaced span a feature is matched by layer and index
alone, in the order of its positions, because what stands there plays the same part in both prompts.

Letters: P positions of a prompt.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from crosstrace.graphs.graph import AttributionGraph

Place = tuple[int, int, int]
"""(layer, position, feature) of an active feature."""


@dataclass(frozen=True)
class Counterpart:
    """What a feature of one graph is in the other; all empty where it is not active there at all."""

    node: int | None = None
    """Its node there; None where it has none."""
    row: int | None = None
    """Its row of `active_features` there; with no node it is active there, but was not traced: a cap left it out."""
    elsewhere: tuple[int, ...] = ()
    """Without a row: the positions there at which it is active all the same, at tokens that are not aligned with its own."""


def aligned_positions(a: AttributionGraph, b: AttributionGraph) -> list[tuple[int, int]]:
    """Return (position in A, position in B) of the tokens in common: the longest runs of them, in order."""
    blocks = _matcher(a, b).get_matching_blocks()
    return [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]


def feature_counterparts(a: AttributionGraph, b: AttributionGraph) -> tuple[list[Counterpart], list[Counterpart]]:
    """Return what each feature node of A is in B, and what each of B is in A.

    Example:
        >>> [found.node for found in feature_counterparts(dallas, dallas)[0]][:2]
        [0, 1]
    """
    row_in_b = _matched_rows(a, b)
    row_in_a = {row: other for other, row in row_in_b.items()}
    return _found(a, b, row_in_b), _found(b, a, row_in_a)


def _found(graph: AttributionGraph, other: AttributionGraph, row_there: dict[int, int]) -> list[Counterpart]:
    node_of_row = {row: node for node, row in enumerate(other.selected_features.tolist())}
    fires: dict[tuple[int, int], list[int]] = defaultdict(list)
    for layer, position, feature in other.active_features.tolist():
        fires[layer, feature].append(position)
    found = []
    for row in graph.selected_features.tolist():
        matched = row_there.get(row)
        if matched is None:
            layer, _, feature = graph.active_features[row].tolist()
            found.append(Counterpart(elsewhere=tuple(fires.get((layer, feature), ()))))
        else:
            found.append(Counterpart(node_of_row.get(matched), matched))
    return found


def counterparts(a: AttributionGraph, b: AttributionGraph) -> dict[int, int]:
    """Return, for each node of A that B has too, its number in B.

    Features are matched as `feature_counterparts` says; errors are the same if their layer is and their positions are
    aligned; tokens if their positions are aligned; targets if they are the same token (or, without one, have the same
    name) of the same layer.

    Example:
        >>> counterparts(dallas, oakland)[dallas.layout.token_index(0)] == oakland.layout.token_index(0)
        True
    """
    found = {node: other.node for node, other in enumerate(feature_counterparts(a, b)[0]) if other.node is not None}
    to_a = {position_b: position_a for position_a, position_b in aligned_positions(a, b)}
    keys_a = {key: node for node, key in _keys(a, {position: position for position in range(len(a.tokens))})}
    return found | {keys_a[key]: node for node, key in _keys(b, to_a) if key in keys_a}


def _matcher(a: AttributionGraph, b: AttributionGraph) -> difflib.SequenceMatcher[int]:
    return difflib.SequenceMatcher(a=a.tokens.tolist(), b=b.tokens.tolist(), autojunk=False)


def _matched_rows(a: AttributionGraph, b: AttributionGraph) -> dict[int, int]:
    """For each active feature of A that is active in B at the same place its row there, traced or not."""
    same_place: dict[int, int] = {}
    span_a: dict[int, int] = {}
    span_b: dict[int, int] = {}
    for number, (kind, a0, a1, b0, b1) in enumerate(_matcher(a, b).get_opcodes()):
        if kind == "equal":
            same_place |= dict(zip(range(a0, a1), range(b0, b1), strict=True))
        elif kind == "replace":
            span_a |= dict.fromkeys(range(a0, a1), number)
            span_b |= dict.fromkeys(range(b0, b1), number)
    rows_b: dict[Place, int] = {}
    in_span: dict[Place, list[int]] = defaultdict(list)
    for row, (layer, position, feature) in enumerate(b.active_features.tolist()):
        rows_b[layer, position, feature] = row
        if position in span_b:
            in_span[layer, span_b[position], feature].append(row)
    found: dict[int, int] = {}
    taken: dict[Place, int] = defaultdict(int)
    for row, (layer, position, feature) in enumerate(a.active_features.tolist()):
        if position in same_place:
            if (other := rows_b.get((layer, same_place[position], feature))) is not None:
                found[row] = other
        elif position in span_a:
            key = (layer, span_a[position], feature)
            if taken[key] < len(in_span.get(key, ())):
                found[row] = in_span[key][taken[key]]
                taken[key] += 1
    return found


def _keys(graph: AttributionGraph, position_in_a: dict[int, int]) -> Iterable[tuple[int, tuple[Any, ...]]]:
    """What makes a node that is not a feature the same in both graphs; at positions without a counterpart there is nothing."""
    layout = graph.layout
    for node in range(layout.n_features, graph.n):
        kind = layout.kind(node)
        layer, position = graph.place_of(node)
        if kind == "logit":
            i = layout.logit_of(node)
            token = int(graph.logit_tokens[i])
            yield node, (kind, layer, token if token >= 0 else graph.logit_strings[i])
        elif position in position_in_a:
            yield node, (kind, layer, position_in_a[position])
