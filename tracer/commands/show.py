"""`crosstrace show`: a graph, or some of its features, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.tracer.commands.delivery import check_graph_outputs, deliver_graph
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
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import (
    BeforeLast,
    CardsOption,
    Debug,
    GraphOutputs,
    MaxFiringRate,
    PathFeatures,
    Quiet,
)
from crosstrace.tracer.commands.prompt_choice import HideTemplate

if TYPE_CHECKING:
    from crosstrace.graphs import AttributionGraph, FeatureCards


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A graph, .safetensors or .json.")],
    features: Annotated[int, typer.Option(min=0, metavar="N", help="List the N strongest features.")] = 12,
    paths: Annotated[int, typer.Option(min=0, metavar="N", help="List the N strongest paths.")] = 5,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature",
            metavar="FEATURE",
            help="Show this feature instead, such as L3/417 or a label: its edges and its card. Repeatable.",
        ),
    ] = None,
    path_features: PathFeatures = 0,
    before_last: BeforeLast = False,
    max_firing_rate: MaxFiringRate = None,
    of: Annotated[
        str | None,
        typer.Option(
            "--of",
            metavar="TOKENS",
            help="Read influence on a part of the answer: 3 is one token, counted from 0, 2:5 several, -1 the last.",
        ),
    ] = None,
    hide_template: HideTemplate = False,
    output: GraphOutputs = None,
    cards: CardsOption = None,
    quiet: Quiet = False,
    debug: Debug = False,
    everything: Everything = False,
    supernodes: Supernodes = False,
    groups: Groups = None,
    merge: Merge = False,
    top_paths: TopPaths = None,
    layout: Layout = GraphLayout.POSITIONS,
) -> None:
    """Print a graph's targets, scores, strongest features and paths, or some of its features.

    With -o it also writes the graph, pruned as it is.

    Example: crosstrace show dallas.safetensors --feature L3/417
    """
    figure = FigureChoice(everything, supernodes, groups, merge, top_paths, layout)
    with one_line_errors(debug):
        check_graph_outputs(output, figure)
        from crosstrace.graphs import answer_targets, of_answer, prune, read_graph, without_template
        from crosstrace.graphs.analysis.answers import parse_span
        from crosstrace.tracer.terminal.features.feature import show_features
        from crosstrace.tracer.terminal.graph import LeftOut, show_graph

        left_out = LeftOut(path_features, before_last, max_firing_rate)
        graph = read_graph(file)
        if of is not None:
            graph = of_answer(graph, *parse_span(of, len(answer_targets(graph))))
        if (output or hide_template) and graph.node_mask is None:
            graph = prune(graph)
        if hide_template:
            graph = without_template(graph)

        def print_it(labelled: AttributionGraph, found: FeatureCards | None) -> None:
            if feature:
                show_features(labelled, feature, found)
            else:
                if max_firing_rate is not None and found is None:
                    note("--max-firing-rate leaves nothing out: there are no feature cards of these transcoders")
                show_graph(labelled, features=features, paths=paths, left_out=left_out, cards=found)

        show = None if quiet else print_it
        deliver_graph(graph, output, figure, cards, show, debug).finish(quiet or bool(feature))
