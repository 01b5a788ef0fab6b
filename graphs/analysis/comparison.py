"""Two graphs of the same model side by side: which features they share, and how much each matters in either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from crosstrace.graphs.analysis.alignment import aligned_positions, feature_counterparts
from crosstrace.graphs.analysis.pruning import influence_shares, prune
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.fingerprints import same_weights
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.notebook import note, table
from crosstrace.graphs.numbers import count, points, share

_SHOWN = 10
_ROUNDING = 1e-12  # JSON holds cumulative influence: what is told from it differs by less from what it was made of


class InGraph(NamedTuple):
    """A feature in one of the graphs."""

    position: int
    activation: float
    influence: float | None
    """Its share of the influence of all nodes on the targets, 0 to 1; None where it is active but was not traced."""
    kept: bool
    """Whether pruning kept it; True in a raw graph, False where it was not traced."""


@dataclass(frozen=True)
class ComparedFeature:
    """A feature at a position that the two prompts share, or that only one of them has."""

    layer: int
    feature: int
    label: str
    token: str
    """The text of the token at its position, in A where it is there."""
    place: str
    """What to show for that token: no two tokens of a prompt are shown alike."""
    a: InGraph | None
    """What it is in the first graph; None where it is not active at that place."""
    b: InGraph | None
    """Likewise in the second."""
    elsewhere: tuple[int, ...] = ()
    """Where one graph lacks it: the positions in that graph at which it is active all the same, at other tokens."""

    @property
    def change(self) -> float | None:
        """Influence in B minus influence in A; where the feature is missing it has none.

        None where a graph has it active but untraced: a cap left it out, and its influence there is not known.
        """
        before = self.a.influence if self.a else 0.0
        after = self.b.influence if self.b else 0.0
        if before is None or after is None:
            return None
        return after - before if abs(after - before) > _ROUNDING else 0.0

    @property
    def _size(self) -> float:
        """What it is sorted by: its change, or what is known of its influence."""
        known = [side.influence for side in (self.a, self.b) if side and side.influence is not None]
        return max(known, default=0.0) if self.change is None else abs(self.change)


LISTS = ("shared", "not_traced_in_a", "not_traced_in_b", "only_a", "only_b")
TITLES = ("Changed most", "Not traced in A", "Not traced in B", "Only in A", "Only in B")
"""Of `LISTS`, in tables."""


@dataclass(frozen=True)
class GraphComparison:
    """What `compare` finds; each list starts with the largest change of influence."""

    shared: list[ComparedFeature]
    """Features of both graphs."""
    not_traced_in_a: list[ComparedFeature]
    """Features of the second graph that are active in the first too, but were not traced there: a cap left them out."""
    not_traced_in_b: list[ComparedFeature]
    """The other way round."""
    only_a: list[ComparedFeature]
    """Features that are active in the first graph alone, at that place."""
    only_b: list[ComparedFeature]
    """Features that are active in the second graph alone, at that place."""
    aligned: list[tuple[int, int]]
    """(position in A, position in B) of the tokens in common."""
    prompts: tuple[str, str]
    """Of A and B."""
    targets: tuple[list[tuple[str, float | None]], list[tuple[str, float | None]]]
    """Of A and B: (text, probability) of each target; None where it is not a token and so has no probability."""
    target_names: tuple[list[str], list[str]]
    """Of A and B: what to show for each target; no two of a graph are shown alike."""

    @property
    def summary(self) -> str:
        """How many features of each kind there are, in one line."""
        counts = [
            count(len(self.shared), "feature") + " shared",
            *(f"{count(len(items))} {words}" for items, words in self._alone() if items or words.startswith("only")),
        ]
        return ", ".join(counts)

    def _alone(self) -> list[tuple[list[ComparedFeature], str]]:
        words = ("not traced in A", "not traced in B", "only in A", "only in B")
        return list(zip((getattr(self, name) for name in LISTS[1:]), words, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return plain Python values, as `write_comparison` writes them."""

        def feature(item: ComparedFeature) -> dict[str, Any]:
            sides = {name: side and side._asdict() for name, side in (("a", item.a), ("b", item.b))}
            return asdict(item) | sides | {"change": item.change}

        lists = {name: [feature(item) for item in getattr(self, name)] for name in LISTS}
        return (
            {"format": "crosstrace-comparison/2", "prompts": self.prompts, "targets": self.targets}
            | lists
            | {"aligned_positions": self.aligned}
        )

    def __repr__(self) -> str:
        return f"<GraphComparison {self.summary}>"

    def _repr_html_(self) -> str:
        """Tables of the largest changes, for notebooks."""
        columns = ("label", "feature", "at", "influence in A", "in B", "change")
        parts = [note(f"A: {self.prompts[0]}"), note(f"B: {self.prompts[1]}"), note(self.summary)]
        for title, name in zip(TITLES, LISTS, strict=True):
            items = getattr(self, name)
            rows = [
                (item.label, f"L{item.layer}/{item.feature}", item.place, *numbers_of(item)) for item in items[:_SHOWN]
            ]
            if rows:
                parts.append(table(f"{title} ({len(rows)} of {len(items)})", columns, rows))
        return "".join(parts)


def numbers_of(item: ComparedFeature) -> tuple[str, str, str]:
    """Return a feature's influence in A and in B and the change, as they are shown."""

    def influence(side: InGraph | None) -> str:
        return "–" if side is None else "untraced" if side.influence is None else share(side.influence)

    return influence(item.a), influence(item.b), "–" if item.change is None else points(item.change)


def compare(a: AttributionGraph, b: AttributionGraph) -> GraphComparison:
    """Compare two graphs of the same model: two prompts, or one prompt before and after an intervention.

    Features are matched by layer, index and token, as `crosstrace.graphs.analysis.alignment` says. Only features that
    pruning kept in at least one of the graphs are listed; influence is the same in a raw and a pruned graph. Graphs that
    were pruned with different thresholds are pruned alike first; see `pruned_alike`.

    A graph that was read from JSON lacks what pruning dropped: a feature that only the other graph has may be active in it
    all the same.

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
    a, b = pruned_alike(a, b)
    lists: dict[str, list[ComparedFeature]] = {name: [] for name in LISTS}
    sides_a, sides_b = _sides(a), _sides(b)
    in_b, in_a = feature_counterparts(a, b)
    for node, (side, other) in enumerate(zip(sides_a, in_b, strict=True)):
        there = sides_b[other.node] if other.node is not None else _untraced(b, other.row)
        if not (side.kept or (there is not None and there.kept)):
            continue
        name = "shared" if other.node is not None else "only_a" if there is None else "not_traced_in_b"
        also = b.name_of(other.node) if other.node is not None else ""
        lists[name].append(_compared(a, node, also, side, there, other.elsewhere))
    for node, (side, other) in enumerate(zip(sides_b, in_a, strict=True)):
        if side.kept and other.node is None:
            there = _untraced(a, other.row)
            name = "only_b" if there is None else "not_traced_in_a"
            lists[name].append(_compared(b, node, "", there, side, other.elsewhere))
    for items in lists.values():
        items.sort(key=lambda item: -item._size)
    return GraphComparison(
        **lists,
        aligned=aligned_positions(a, b),
        prompts=(a.prompt, b.prompt),
        targets=(_targets(a), _targets(b)),
        target_names=(a.names()[1], b.names()[1]),
    )


def pruned_alike(a: AttributionGraph, b: AttributionGraph) -> tuple[AttributionGraph, AttributionGraph]:
    """Return both graphs pruned with one pair of thresholds: those of the first, or of the second where the first is raw.

    Otherwise a feature could be missing in one of them because less was kept there. Two raw graphs stay raw, and masks
    that thresholds did not make stay as they are. So do graphs that were read from JSON, which cannot be pruned again: their
    thresholds are the pair.

    Example:
        >>> a, b = pruned_alike(prune(dallas, 0.8, 0.98), prune(oakland, 0.5, 0.9))
        >>> b.settings["pruning"]
        {'node_threshold': 0.8, 'edge_threshold': 0.98}
    """
    known = [graph.settings.get("pruning") if graph.node_mask is not None else None for graph in (a, b)]
    fixed = [own for graph, own in zip((a, b), known, strict=True) if graph.json_origin is not None and own]
    chosen = next(iter(fixed), None) or known[0] or known[1]
    if not chosen:
        return a, b
    a, b = (
        graph
        if own == chosen or graph.json_origin is not None or (graph.node_mask is not None and not own)
        else prune(graph, **chosen)
        for graph, own in zip((a, b), known, strict=True)
    )
    return a, b


def _compared(
    graph: AttributionGraph,
    node: int,
    other_label: str,
    a: InGraph | None,
    b: InGraph | None,
    elsewhere: tuple[int, ...],
) -> ComparedFeature:
    layer, position, feature = graph.feature_of(node)
    # Names are given to what pruning kept, which it may have done in the other graph alone.
    label = graph.name_of(node) or other_label
    token, place = graph.token_strings[position], graph.token_name(position)
    return ComparedFeature(layer, feature, label, token, place, a, b, elsewhere)


def _untraced(graph: AttributionGraph, row: int | None) -> InGraph | None:
    if row is None:
        return None
    return InGraph(int(graph.active_features[row, 1]), float(graph.activations[row]), None, False)


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
    shares = influence_shares(graph)
    activations = graph.activations[graph.selected_features].tolist()
    kept = [True] * len(activations) if graph.node_mask is None else graph.node_mask.tolist()
    return [
        InGraph(position, activations[node], float(shares[node]), kept[node])
        for node, (_, position, _) in _features(graph)
    ]
