"""A graph in the terminal: prompt, targets, scores, strongest features, strongest paths."""

from __future__ import annotations

import math

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crosstrace.graphs import AttributionGraph, graph_scores, prune, strongest_paths
from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.analysis.pruning import unpruned
from crosstrace.graphs.text import probability, short, visible

_BAR = 24


def show_graph(graph: AttributionGraph, console: Console | None = None, features: int = 12, paths: int = 5) -> None:
    """Print a graph's prompt, targets and scores, its strongest features and paths.

    Args:
        graph: Raw or pruned; a raw one is pruned with the default thresholds to choose features and paths.
        console: Where to print; None for standard output.
        features: How many features to list.
        paths: How many paths to list.
    """
    pruned = graph if graph.node_mask is not None else prune(graph)
    parts: list[RenderableType] = [_heading(graph), _targets(graph), _scores(graph, pruned)]
    if features and pruned.node_mask is not None and pruned.node_mask[pruned.layout.features].any():
        parts.append(_features(pruned, features))
    if paths:
        parts.append(_paths(pruned, paths))
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


def _features(pruned: AttributionGraph, count: int) -> Table:
    """Among the features that pruning kept, those with the most influence on the targets."""
    influence = spread(pruned.edges, row_scale(pruned.edges), target_weights(pruned))
    share = influence / influence.sum() if influence.any() else influence
    assert pruned.node_mask is not None
    kept = np.flatnonzero(pruned.node_mask[pruned.layout.features].numpy())
    strongest = kept[np.argsort(-share[kept], kind="stable")][:count]
    first_target = pruned.layout.logits.start
    direct = pruned.edges[[first_target]].toarray()[0]
    table = plain_table(f"Strongest features (of {len(kept)} kept)")
    table.add_column("label", style="bold")
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
            short(pruned.feature_labels[node], 32) if pruned.feature_labels[node] else "",
            f"L{layer}/{feature}",
            f"{pruned.token_name(position)} ({position})",
            f"{activation:.2f}",
            f"{share[node]:.1%}",
            Text(f"{direct[node]:+.3f}", style="cyan" if direct[node] >= 0 else "red"),
        )
    return table


def _paths(pruned: AttributionGraph, count: int) -> Table:
    table = plain_table(f"Strongest paths to {pruned.target_name(0, 32)}")
    table.add_column("share", justify="right")
    table.add_column("path")
    for path in strongest_paths(pruned, n=count):
        # The path's steps are weighed by share, its sign says whether it raises or lowers the target.
        steps = Text(" → ").join(Text(_step(pruned, node)) for node in path.nodes)
        add_row(table, Text(f"{path.strength:.2%}" if path.sign > 0 else f"−{path.strength:.2%}"), steps)
    return table


def _step(graph: AttributionGraph, node: int) -> str:
    if graph.layout.kind(node) != "feature":
        return graph.describe(node).removeprefix("token ").removeprefix("logit ").removeprefix("target ")
    layer, position, feature = graph.feature_of(node)
    label = graph.feature_labels[node]
    at = graph.token_name(position)
    return f"{short(label, 32)} [L{layer}/{feature} {at}]" if label else f"L{layer}/{feature} [{at}]"
