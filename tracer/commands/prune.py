"""`crosstrace prune`: a traced graph with other thresholds or in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.graphs.analysis.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.tracer.commands.delivery import check_graph_outputs, check_thresholds, deliver_graph
from crosstrace.tracer.commands.figure_options import (
    Everything,
    FigureChoice,
    GraphLayout,
    Groups,
    Layout,
    Merge,
    Supernodes,
    TopPaths,
)
from crosstrace.tracer.commands.messages import one_line_errors
from crosstrace.tracer.commands.options import CardsOption, Debug, EdgeThreshold, GraphOutputs, NodeThreshold, Quiet


def prune(
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="A .safetensors graph, raw or pruned.")],
    output: GraphOutputs = None,
    cards: CardsOption = None,
    quiet: Quiet = False,
    debug: Debug = False,
    node_threshold: NodeThreshold = NODE_THRESHOLD,
    edge_threshold: EdgeThreshold = EDGE_THRESHOLD,
    everything: Everything = False,
    supernodes: Supernodes = False,
    groups: Groups = None,
    merge: Merge = False,
    top_paths: TopPaths = None,
    layout: Layout = GraphLayout.POSITIONS,
) -> None:
    """Prune a traced graph again, with other thresholds or into other formats.

    Example: crosstrace prune dallas.safetensors --node-threshold 0.6 -o small.svg
    """
    if not output:
        raise typer.BadParameter("give at least one -o FILE to write the pruned graph to")
    figure = FigureChoice(everything, supernodes, groups, merge, top_paths, layout)
    with one_line_errors(debug):
        check_graph_outputs(output, figure)
        check_thresholds(node_threshold, edge_threshold)
        from crosstrace.graphs import prune as prune_graph
        from crosstrace.graphs import read_whole_graph
        from crosstrace.tracer.terminal.graph import show_graph

        pruned = prune_graph(read_whole_graph(raw, "pruning"), node_threshold, edge_threshold)
        show = None if quiet else lambda labelled, _: show_graph(labelled)
        deliver_graph(pruned, output, figure, cards, show, debug).finish(quiet)
