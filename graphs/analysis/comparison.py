"""Two graphs of the same model side by side: which features they share, and how much each matters in either.

Letters: P positions of a prompt.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.fingerprints import same_weights
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.notebook import note, table

_SHOWN = 10


class InGraph(NamedTuple):
    """A feature in one of the graphs."""

    position: int
    activation: float
    influence: float
    """Its share of the influence of all nodes on the targets, 0 to 1."""
    kept: bool
    """Whether pruning kept it; True in a raw graph."""


@dataclass(frozen=True)
class ComparedFeature:
    """A feature at a position that the two prompts share, or that only one of them has."""

    layer: int
    feature: int
    label: str
    token: str
    """The text of the token at its position."""
    a: InGraph | None
    """What it is in the first graph; None where it is not active or was not selected."""
    b: InGraph | None
    """Likewise in the second."""

    @property
    def change(self) -> float:
        """Influence in B minus influence in A; where the feature is missing it has none."""
        return (self.b.influence if self.b else 0.0) - (self.a.influence if self.a else 0.0)


@dataclass(frozen=True)
class GraphComparison:
    """What `compare` finds; each list starts with the largest change of influence."""

    shared: list[ComparedFeature]
    """Features of both graphs."""
    only_a: list[ComparedFeature]
    """Features of the first graph alone."""
    only_b: list[ComparedFeature]
    """Features of the second graph alone."""
    aligned: list[tuple[int, int]]
    """(position in A, position in B) of the tokens in common."""
    prompts: tuple[str, str]
    """Of A and B."""
    targets: tuple[list[tuple[str, float | None]], list[tuple[str, float | None]]]
    """Of A and B: (text, probability) of each target; None where it is not a token and so has no probability."""

    def to_json(self) -> dict[str, Any]:
        """Return plain Python values, as `write_comparison` writes them."""

        def feature(item: ComparedFeature) -> dict[str, Any]:
            sides = {name: side and side._asdict() for name, side in (("a", item.a), ("b", item.b))}
            return asdict(item) | sides | {"change": item.change}

        lists = {name: [feature(item) for item in getattr(self, name)] for name in ("shared", "only_a", "only_b")}
        return (
            {"format": "crosstrace-comparison/1", "prompts": self.prompts, "targets": self.targets}
            | lists
            | {"aligned_positions": self.aligned}
        )

    def _repr_html_(self) -> str:
        """Tables of the largest changes, for notebooks."""
        columns = ("label", "feature", "at", "influence in A", "in B", "change")

        def percent(side: InGraph | None) -> str:
            return f"{side.influence:.1%}" if side else "–"

        parts = [note(f"A: {self.prompts[0]}"), note(f"B: {self.prompts[1]}")]
        for title, items in (("Changed most", self.shared), ("Only in A", self.only_a), ("Only in B", self.only_b)):
            rows = [
                (
                    item.label,
                    f"L{item.layer}/{item.feature}",
                    item.token,
                    percent(item.a),
                    percent(item.b),
                    f"{item.change:+.1%}",
                )
                for item in items[:_SHOWN]
            ]
            if rows:
                parts.append(table(f"{title} ({len(rows)} of {len(items)})", columns, rows))
        return "".join(parts)


def compare(a: AttributionGraph, b: AttributionGraph) -> GraphComparison:
    """Compare two graphs of the same model: two prompts, or one prompt before and after an intervention.

    Features are matched by layer, index and token: positions are aligned by the longest runs of tokens in common
    (`difflib.SequenceMatcher`), and a feature at a position without a counterpart is matched with nothing. Only features
    that pruning kept in at least one of the graphs are listed; influence is the same in a raw and a pruned graph.

    Args:
        a: A raw or pruned graph.
        b: Another one, of the same model and transcoders.

    Raises:
        ValueError: The graphs are not of the same model and transcoders; both names are given.

    Example:
        >>> comparison = compare(AttributionGraph.load("dallas.safetensors"), AttributionGraph.load("oakland.safetensors"))
        >>> [(item.label, item.change) for item in comparison.only_b[:3]]
        [('say Sacramento', 0.083), ('California', 0.061), ('Oakland', 0.02)]
    """
    check_comparable(a, b)
    aligned = aligned_positions(a, b)
    to_a = {position_b: position_a for position_a, position_b in aligned}
    # A position of B without a counterpart keeps a key of its own, which no position of A has.
    found_a = {(layer, feature, position): node for node, (layer, position, feature) in _features(a)}
    found_b = {
        (layer, feature, to_a.get(position, ~position)): node for node, (layer, position, feature) in _features(b)
    }
    sides_a, sides_b = _sides(a), _sides(b)
    shared: list[ComparedFeature] = []
    only_a: list[ComparedFeature] = []
    only_b: list[ComparedFeature] = []
    for key in sorted(found_a.keys() | found_b.keys()):
        node_a, node_b = found_a.get(key), found_b.get(key)
        side_a = None if node_a is None else sides_a[node_a]
        side_b = None if node_b is None else sides_b[node_b]
        if not any(side and side.kept for side in (side_a, side_b)):
            continue
        graph, node = (b, node_b) if node_a is None else (a, node_a)
        assert node is not None
        layer, position, feature = graph.feature_of(node)
        name = (node_a is not None and a.name_of(node_a)) or (node_b is not None and b.name_of(node_b)) or ""
        item = ComparedFeature(layer, feature, name, graph.token_strings[position], side_a, side_b)
        (shared if side_a and side_b else only_a if side_a else only_b).append(item)
    for items in (shared, only_a, only_b):
        items.sort(key=lambda item: -abs(item.change))
    return GraphComparison(shared, only_a, only_b, aligned, (a.prompt, b.prompt), (_targets(a), _targets(b)))


def _targets(graph: AttributionGraph) -> list[tuple[str, float | None]]:
    return [(string, graph.probability_of(i)) for i, string in enumerate(graph.logit_strings)]


def check_comparable(a: AttributionGraph, b: AttributionGraph) -> None:
    """Check that both graphs are of one model and the same transcoders.

    Raises:
        ValueError: They are not; both names are given.
    """
    for what, left, right in (
        ("model", a.model_name, b.model_name),
        ("transcoders", a.transcoders_name, b.transcoders_name),
        ("number of layers", a.n_layers, b.n_layers),
    ):
        if left != right:
            raise ValueError(
                f"the graphs cannot be compared: {what} is {left!r} in the first and {right!r} in the second"
            )
    for what, name in (("model", a.model_name), ("transcoders", a.transcoders_name)):
        if same_weights(what, a.settings.get("fingerprints"), b.settings.get("fingerprints")) is False:
            raise ValueError(f"the graphs cannot be compared: {what} {name!r} had other weights in the first")


def aligned_positions(a: AttributionGraph, b: AttributionGraph) -> list[tuple[int, int]]:
    """Return (position in A, position in B) of the tokens in common: the longest runs of them, in order."""
    blocks = difflib.SequenceMatcher(a=a.tokens.tolist(), b=b.tokens.tolist(), autojunk=False).get_matching_blocks()
    return [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]


def counterparts(a: AttributionGraph, b: AttributionGraph) -> dict[int, int]:
    """Return, for each node of A that B has too, its number in B.

    Features and errors are the same if layer (and index) are and their positions are aligned; tokens if their positions
    are aligned; targets if they are the same token (or, without one, have the same name) of the same layer.

    Example:
        >>> counterparts(dallas, oakland)[dallas.layout.token_index(0)] == oakland.layout.token_index(0)
        True
    """
    to_a = {position_b: position_a for position_a, position_b in aligned_positions(a, b)}
    keys_a = {key: node for node, key in _keys(a, {position: position for position in range(len(a.tokens))})}
    return {keys_a[key]: node for node, key in _keys(b, to_a) if key in keys_a}


def _keys(graph: AttributionGraph, position_in_a: dict[int, int]) -> Iterable[tuple[int, tuple[Any, ...]]]:
    """What makes a node the same in both graphs; nodes at positions without a counterpart have none."""
    layout = graph.layout
    for node in range(graph.n):
        kind = layout.kind(node)
        layer, position = graph.place_of(node)
        if kind == "logit":
            i = layout.logit_of(node)
            token = int(graph.logit_tokens[i])
            yield node, (kind, layer, token if token >= 0 else graph.logit_strings[i])
        elif position in position_in_a:
            feature = graph.feature_of(node)[2] if kind == "feature" else -1
            yield node, (kind, layer, position_in_a[position], feature)


def write_comparison(comparison: GraphComparison, path: str | os.PathLike[str]) -> None:
    """Write a comparison as JSON.

    Raises:
        OSError: The file cannot be written; nothing is left behind.

    Example:
        >>> write_comparison(compare(dallas, oakland), "both.json")
    """
    write_atomically(path, json.dumps(comparison.to_json(), indent=1, allow_nan=False).encode())


def _features(graph: AttributionGraph) -> Iterable[tuple[int, tuple[int, int, int]]]:
    rows = graph.active_features[graph.selected_features].tolist()
    return enumerate((layer, position, feature) for layer, position, feature in rows)


def _sides(graph: AttributionGraph) -> list[InGraph]:
    """What each feature node is in its graph."""
    influence = spread(graph.edges, row_scale(graph.edges), target_weights(graph))
    share = influence / influence.sum() if influence.any() else influence
    activations = graph.activations[graph.selected_features].tolist()
    kept = [True] * len(activations) if graph.node_mask is None else graph.node_mask.tolist()
    return [
        InGraph(position, activations[node], float(share[node]), kept[node])
        for node, (_, position, _) in _features(graph)
    ]
