"""A graph in the terminal: prompt, targets, scores, strongest features, strongest paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crosstrace.graphs import AttributionGraph, graph_scores, prune, strongest_paths, trivial_share
from crosstrace.graphs.analysis.pruning import influence_shares, unpruned
from crosstrace.graphs.analysis.scores import untraced
from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.cards.labels import GUESS_MARK
from crosstrace.graphs.numbers import count, error, plain, probability, share, signed
from crosstrace.graphs.origins.json_origin import JsonOrigin
from crosstrace.graphs.text import short, visible
from crosstrace.tracer.terminal.tables import (
    NARROW,
    add_feature_columns,
    add_numbers,
    add_row,
    add_words,
    at,
    coloured,
    explain_guesses,
    feature_cells,
    fitted,
    is_narrow,
    plain_table,
)

_BAR = 24


@dataclass(frozen=True)
class LeftOut:
    """What the lists of a graph leave out as trivial.

    Attributes:
        path_features: Paths with fewer features than this.
        last_position: Features at the last position of the prompt.
        max_firing_rate: Features that fire on more than this share of tokens, where cards know it; None for none.
    """

    path_features: int = 0
    last_position: bool = False
    max_firing_rate: float | None = None

    @property
    def any_features(self) -> bool:
        """Whether some features are left out."""
        return self.last_position or self.max_firing_rate is not None

    def listed(self, graph: AttributionGraph, nodes: Sequence[int], cards: FeatureCards | None) -> list[int]:
        """Return those of some feature nodes that are not left out."""
        last = len(graph.tokens) - 1
        if self.last_position:
            nodes = [node for node in nodes if graph.place_of(node)[1] < last]
        if self.max_firing_rate is not None and cards is not None:
            keys = {key: cards.firing_rate(key) for key in map(graph.feature_key, nodes) if key in cards}
            nodes = [node for node in nodes if keys.get(graph.feature_key(node), 0.0) <= self.max_firing_rate]
        return list(nodes)


_NOTHING_LEFT_OUT = LeftOut()


def show_graph(
    graph: AttributionGraph,
    console: Console | None = None,
    features: int = 12,
    paths: int = 5,
    left_out: LeftOut = _NOTHING_LEFT_OUT,
    cards: FeatureCards | None = None,
) -> None:
    """Print a graph's prompt, targets and scores, its strongest features and paths.

    Args:
        graph: Raw or pruned; a raw one is pruned with the default thresholds to choose features and paths.
        console: Where to print; None for standard output.
        features: How many features to list.
        paths: How many paths to list.
        left_out: What the two lists leave out. A path is listed if at least one of its features is.
        cards: Feature cards, which know how often features fire.
    """
    pruned = graph if graph.node_mask is not None else prune(graph)
    console = console or Console()
    parts: list[RenderableType] = [_heading(graph, console.width), _targets(graph, console), _scores(graph, pruned)]
    assert pruned.node_mask is not None
    kept = pruned.node_mask[pruned.layout.features].nonzero().flatten().tolist()
    listed = left_out.listed(pruned, kept, cards)
    if features and kept:
        parts.append(_features(pruned, features, listed, len(kept), console))
    if paths:
        min_features = max(left_out.path_features, int(left_out.any_features))
        parts.append(_paths(pruned, paths, min_features, listed))
    console.print(Group(*parts))


def _heading(graph: AttributionGraph, width: int) -> Panel:
    sizes = f"{count(len(graph.tokens), 'token')}, {count(graph.n_layers, 'layer')}"
    room = max(8, min(32, (width - len(sizes) - 16) // 2))  # for each name, beside the frame and two points
    names = (_tail(visible(name), room) for name in (graph.model_name, graph.transcoders_name))
    details = "  ·  ".join([*filter(None, names), sizes])
    return Panel(Text(visible(graph.prompt), style="bold"), subtitle=Text(details, style="dim"), box=box.ROUNDED)


def _tail(name: str, length: int) -> str:
    """Shorten a long path to its end, which tells more than its beginning."""
    return name if len(name) <= length else "…" + name[1 - length :]


def _targets(graph: AttributionGraph, console: Console) -> Table:
    bar = min(_BAR, console.width - NARROW + 8)
    table = plain_table("Targets")
    add_words(table, "target", style="bold")
    add_words(table, "at")
    add_numbers(table, "probability")
    if bar > 0:
        add_numbers(table, "")
    for i in _weighed(graph):
        position = int(graph.logit_positions[i])
        cells = [graph.target_name(i, 48), at(graph.token_name(position), position)]
        value = graph.probability_of(i)
        if value is None:
            add_row(table, *cells)
            continue
        cells.append(probability(value))
        bars = [Text("█" * round(value * bar) + " " * (bar - round(value * bar)), style="cyan")] if bar > 0 else []
        add_row(table, *cells, *bars)
    if (spans := graph.spans) is not None and spans.answer is not None and spans.log_probability is not None:
        said = count(len(spans.log_probabilities), "token")
        table.caption = Text(f"the whole answer: log p {signed(spans.log_probability)} over {said}")
        table.caption_justify = "left"
    return table


def _weighed(graph: AttributionGraph) -> list[int]:
    """The targets on which influence is read: those with weight; all of them where none has any."""
    found = graph.logit_probabilities.nonzero().flatten().tolist()
    return found or list(range(len(graph.logit_strings)))


def _scores(graph: AttributionGraph, pruned: AttributionGraph) -> Text:
    if graph.json_origin is not None:
        return _said_by_file(graph, graph.json_origin)
    # Of the whole graph: pruning drops most errors, and the scores of what is left would flatter the transcoders.
    replacement, completeness = graph_scores(unpruned(graph))
    assert pruned.node_mask is not None
    assert pruned.edge_mask_sparse is not None
    kept = int(pruned.node_mask[pruned.layout.features].sum())
    active, rows = len(graph.active_features), len(graph.selected_features)
    left_out = untraced(graph)
    of_what = (
        f": at least, as\n{count(left_out, 'feature')} without a row count as errors"
        if left_out
        else " of the whole graph"
    )
    lines = [
        "replacement and completeness score –: no features and no errors, so nothing is explained"
        if math.isnan(replacement)
        else f"replacement score {probability(replacement)}, completeness score {probability(completeness)}{of_what}",
        f"completeness error {error(graph.completeness_error())}",
        f"{count(active, 'active feature')}, {count(rows)} traced, {count(kept)} kept by pruning",
        f"{count(int(pruned.node_mask.sum()))} of {count(graph.n)} nodes, "
        f"{count(pruned.edge_mask_sparse.nnz)} of {count(graph.edges.nnz)} edges kept",
    ]
    return Text("\n".join(lines) + "\n")


def _said_by_file(graph: AttributionGraph, origin: JsonOrigin) -> Text:
    """The scores of a graph that was read from JSON, and what is not known of it."""
    said = origin.whole_scores or origin.scores
    if said is None:
        scores = "replacement and completeness score not known: the JSON file has none"
    elif said["replacement"] is None or said["completeness"] is None:
        scores = "replacement and completeness score –: nothing is explained, as the file says"
    else:
        values = f"replacement score {probability(said['replacement'])}, completeness score {probability(said['completeness'])}"
        counted = f",\nof {visible(said['counted'])}" if said["counted"] else ""
        scores = f"{values}: as the file says{counted}"
    kept = count(len(graph.selected_features))
    active, traced = ("not known" if number is None else count(number) for number in (origin.n_active, origin.n_traced))
    lines = [
        scores,
        "completeness error not known (read from JSON)",
        f"active features: {active}, traced: {traced}, in the file: {kept}",
        f"{count(len(graph.kept_nodes()), 'node')} and {count(graph.edges.nnz, 'edge')} in the file",
    ]
    if not origin.knows_layers:
        lines.append("the number of layers is not known; counted are those that nodes are in")
    return Text("\n".join((*lines, *map(visible, origin.notes))) + "\n")


def _features(pruned: AttributionGraph, most: int, listed: Sequence[int], n_kept: int, console: Console) -> Table:
    """Among the features that pruning kept, those with the most influence on the targets."""
    shares = influence_shares(pruned)
    kept = np.array(listed, dtype=np.int64)
    strongest = kept[np.argsort(-shares[kept], kind="stable")][:most]
    first = _weighed(pruned)[0]
    direct = pruned.edges[[pruned.layout.logit_index(first)]].toarray()[0]
    left_out = f", {n_kept - len(kept):,} left out" if len(kept) < n_kept else ""
    table = plain_table(f"Strongest features (of {n_kept:,} kept{left_out})")
    add_feature_columns(table, console)
    add_numbers(table, "activation", "influence", f"→ {fitted(pruned.target_name(first, 12), 12)}")
    if is_narrow(console):
        for column, name in zip(table.columns[1:], ("act.", "infl.", "→ target"), strict=True):
            column.header = name
    for node in strongest.tolist():
        layer, position, feature = pruned.feature_of(node)
        add_row(
            table,
            *feature_cells(
                console, pruned.name_of(node), f"L{layer}/{feature}", at(pruned.token_name(position), position)
            ),
            plain(float(pruned.activations[pruned.selected_features[node]])),
            share(float(shares[node])),
            coloured(signed(float(direct[node])), float(direct[node])),
        )
    explain_guesses(table, map(pruned.name_of, strongest.tolist()))
    return table


def _paths(pruned: AttributionGraph, most: int, min_features: int, listed: Sequence[int]) -> Table:
    said = "" if not min_features else f", with {count(min_features, 'feature')} or more"
    first = _weighed(pruned)[0]
    target = pruned.layout.logit_index(first)
    table = plain_table(f"Strongest paths to {pruned.target_name(first, 32)}{said}")
    add_numbers(table, "share")
    add_words(table, "path")
    if min_features:
        paths = strongest_paths(pruned, target, n=most, min_features=min_features, counted=listed)
    else:
        paths = strongest_paths(pruned, target, most, telling=True) or strongest_paths(pruned, target, most)
        if (trivial := trivial_share(pruned, target)) > 0:
            end = pruned.token_name(pruned.place_of(target)[1], 16)
            table.caption = Text(
                f"token → output, and token → one feature at {end} → output, together {share(trivial)}"
            )
    for path in paths:
        # The path's steps are weighed by share, its sign says whether it raises or lowers the target.
        steps = Text(" → ").join(Text(_step(pruned, node)) for node in path.nodes)
        add_row(table, share(path.strength if path.sign > 0 else -path.strength), steps)
    return table


def _step(graph: AttributionGraph, node: int) -> str:
    if graph.layout.kind(node) != "feature":
        return graph.describe(node).removeprefix("token ").removeprefix("logit ").removeprefix("target ")
    layer, position, feature = graph.feature_of(node)
    name = graph.name_of(node)
    at = graph.token_name(position)
    if GUESS_MARK in name:  # an arrow of its own, which is not the path's
        return f"L{layer}/{feature} ({short(name, 32)}) [{at}]"
    return f"{short(name, 32)} [L{layer}/{feature} {at}]" if name else f"L{layer}/{feature} [{at}]"
