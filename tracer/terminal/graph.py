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

from crosstrace.graphs import AttributionGraph, graph_scores, prune, strongest_paths
from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.analysis.pruning import unpruned
from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.cards.labels import GUESS_MARK, is_guess
from crosstrace.graphs.text import probability, short, visible

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
    parts: list[RenderableType] = [_heading(graph), _targets(graph), _scores(graph, pruned)]
    assert pruned.node_mask is not None
    kept = pruned.node_mask[pruned.layout.features].nonzero().flatten().tolist()
    listed = left_out.listed(pruned, kept, cards)
    if features and kept:
        parts.append(_features(pruned, features, listed, len(kept)))
    if paths:
        min_features = max(left_out.path_features, int(left_out.any_features))
        parts.append(_paths(pruned, paths, min_features, listed))
    (console or Console()).print(Group(*parts))


def _heading(graph: AttributionGraph) -> Panel:
    names = "  ·  ".join(_tail(visible(name)) for name in (graph.model_name, graph.transcoders_name))
    details = f"{names}  ·  {len(graph.tokens)} tokens, {graph.n_layers} layers"
    return Panel(Text(visible(graph.prompt), style="bold"), subtitle=Text(details, style="dim"), box=box.ROUNDED)


def _tail(name: str, length: int = 32) -> str:
    """Shorten a long path to its end, which tells more than its beginning."""
    return name if len(name) <= length else "…" + name[1 - length :]


def plain_table(title: str) -> Table:
    """Return an empty table with a title."""
    return Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def add_row(table: Table, *cells: str | Text) -> None:
    """Add a row of data, in which square brackets are text and not markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _targets(graph: AttributionGraph) -> Table:
    table = plain_table("Targets")
    table.add_column("target", style="bold")
    table.add_column("at")
    table.add_column("probability", justify="right")
    table.add_column("")
    for i in range(len(graph.logit_strings)):
        position = int(graph.logit_positions[i])
        at = f"{graph.token_name(position)} ({position})"
        share = graph.probability_of(i)
        if share is None:
            add_row(table, graph.target_name(i, 48), at, "", "")
            continue
        add_row(table, graph.target_name(i, 48), at, probability(share), Text("█" * round(share * _BAR), style="cyan"))
    return table


def _scores(graph: AttributionGraph, pruned: AttributionGraph) -> Text:
    # Of the whole graph: pruning drops most errors, and the scores of what is left would flatter the transcoders.
    replacement, completeness = graph_scores(unpruned(graph))
    assert pruned.node_mask is not None
    assert pruned.edge_mask_sparse is not None
    kept = pruned.node_mask[pruned.layout.features].sum().item()
    active, rows = len(graph.active_features), len(graph.selected_features)
    lines = [
        "replacement and completeness score –: no features and no errors, so nothing is explained"
        if math.isnan(replacement)
        else f"replacement score {replacement:.3f}, completeness score {completeness:.3f} of the whole graph",
        f"completeness error {graph.completeness_error():.0e}",
        f"{active:,} active features, {rows:,} traced, {kept:,} kept by pruning",
        f"{pruned.node_mask.sum().item():,} of {graph.n:,} nodes, "
        f"{pruned.edge_mask_sparse.nnz:,} of {graph.edges.nnz:,} edges kept",
    ]
    return Text("\n".join(lines) + "\n")


def _features(pruned: AttributionGraph, count: int, listed: Sequence[int], n_kept: int) -> Table:
    """Among the features that pruning kept, those with the most influence on the targets."""
    influence = spread(pruned.edges, row_scale(pruned.edges), target_weights(pruned))
    share = influence / influence.sum() if influence.any() else influence
    kept = np.array(listed, dtype=np.int64)
    strongest = kept[np.argsort(-share[kept], kind="stable")][:count]
    first_target = pruned.layout.logits.start
    direct = pruned.edges[[first_target]].toarray()[0]
    left_out = f", {n_kept - len(kept)} left out" if len(kept) < n_kept else ""
    table = plain_table(f"Strongest features (of {n_kept} kept{left_out})")
    table.add_column("label")
    table.add_column("feature", style="dim", no_wrap=True)
    table.add_column("at", no_wrap=True)
    table.add_column("activation", justify="right")
    table.add_column("influence", justify="right")
    table.add_column(Text(f"→ {pruned.target_name(0, 12)}"), justify="right", no_wrap=True)
    for node in strongest.tolist():
        layer, position, feature = pruned.feature_of(node)
        activation = pruned.activations[pruned.selected_features[node]].item()
        add_row(
            table,
            name_cell(pruned.name_of(node)),
            f"L{layer}/{feature}",
            f"{pruned.token_name(position)} ({position})",
            f"{activation:.2f}",
            f"{share[node]:.1%}",
            Text(f"{direct[node]:+.3f}", style="cyan" if direct[node] >= 0 else "red"),
        )
    return table


def name_cell(name: str, limit: int = 32) -> Text:
    """Return a feature's name for a table: given labels are bold, automatic ones and guesses are not."""
    shown = short(name, limit) if name else ""
    return Text(shown, style="" if is_guess(name) else "bold", no_wrap=True, overflow="ellipsis")


def _paths(pruned: AttributionGraph, count: int, min_features: int, listed: Sequence[int]) -> Table:
    said = "" if not min_features else f", with {min_features} feature{'s' if min_features > 1 else ''} or more"
    table = plain_table(f"Strongest paths to {pruned.target_name(0, 32)}{said}")
    table.add_column("share", justify="right")
    table.add_column("path")
    for path in strongest_paths(pruned, n=count, min_features=min_features, counted=listed):
        # The path's steps are weighed by share, its sign says whether it raises or lowers the target.
        steps = Text(" → ").join(Text(_step(pruned, node)) for node in path.nodes)
        add_row(table, Text(f"{path.strength:.2%}" if path.sign > 0 else f"−{path.strength:.2%}"), steps)
    return table


def _step(graph: AttributionGraph, node: int) -> str:
    if graph.layout.kind(node) != "feature":
        return graph.describe(node).removeprefix("token ").removeprefix("logit ").removeprefix("target ")
    layer, position, feature = graph.feature_of(node)
    name = graph.name_of(node)
    at = graph.token_name(position)
    if name.startswith(GUESS_MARK):  # an arrow of its own, which is not the path's
        return f"L{layer}/{feature} ({short(name, 32)}) [{at}]"
    return f"{short(name, 32)} [L{layer}/{feature} {at}]" if name else f"L{layer}/{feature} [{at}]"
