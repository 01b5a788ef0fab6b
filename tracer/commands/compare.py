"""`crosstrace compare`: two graphs of the same model side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.tracer.commands.delivery import PAGES, open_page, write_each
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import CardsOption, Debug, OpenIt, Quiet

if TYPE_CHECKING:
    from crosstrace.graphs import AttributionGraph


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A graph, .safetensors or .json.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another graph of the same model.")],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the comparison as .json, or as .html: a page of both graphs. Repeatable.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=0, metavar="N", help="List N features of each kind.")] = 10,
    cards: CardsOption = None,
    open_it: OpenIt = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two graphs: the features they share, those of one alone, and how importance changed.

    Example: crosstrace compare dallas.safetensors oakland.safetensors -o both.html --open
    """
    with one_line_errors(debug):
        for path in output or ():
            if path.suffix.lower() not in (".json", *PAGES):
                said = f"unknown suffix {path.suffix!r}" if path.suffix else "no suffix"
                raise ValueError(f"{said} in {str(path)!r}: a comparison is written as .json or .html")
        pages = [path for path in output or () if path.suffix.lower() in PAGES]
        if open_it and not pages:
            raise ValueError("--open opens the page of a comparison: name it with -o PAGE.html")
        from crosstrace.graphs import compare as compare_graphs
        from crosstrace.graphs import prune, read_graph, with_card_labels, write_comparison, write_comparison_html
        from crosstrace.graphs.analysis.comparison import pruned_alike
        from crosstrace.tracer.cards.lookup import cards_of
        from crosstrace.tracer.terminal.comparison import show_comparison

        read = read_graph(a), read_graph(b)
        alike = pruned_alike(*read)
        for line in _about_thresholds((a, b), read, alike):
            note(line)
        # The page begins with the default thresholds where no graph has any; table and file say the same.
        graph_a, graph_b = (graph if graph.node_mask is not None else prune(graph) for graph in alike)
        found = cards_of(graph_a, cards, note)
        graph_a, graph_b = with_card_labels(graph_a, found), with_card_labels(graph_b, found)
        comparison = compare_graphs(graph_a, graph_b)
        for file, graph, other, alone in ((a, graph_a, "B", comparison.only_b), (b, graph_b, "A", comparison.only_a)):
            if graph.json_origin is not None and alone:
                note(f"{file} lacks what its pruning dropped: what is only in {other} may be active there all the same")

        def write(path: Path) -> None:
            if path in pages:
                write_comparison_html(graph_a, graph_b, path, cards=found)
            else:
                write_comparison(comparison, path)

        delivery = write_each(output, write, debug)
        if not quiet:
            show_comparison(comparison, top)
        if open_it and pages[0] in delivery.written:
            open_page(pages[0])
        delivery.finish(quiet)


def _about_thresholds(
    files: tuple[Path, Path],
    read: tuple[AttributionGraph, AttributionGraph],
    alike: tuple[AttributionGraph, AttributionGraph],
) -> list[str]:
    """What is to be said where two graphs were pruned with different thresholds."""
    said = []
    for own, other in ((0, 1), (1, 0)):
        if read[own].node_mask is not None and read[other].node_mask is not None and alike[own] is not read[own]:
            node, edge = (alike[own].settings["pruning"][f"{kind}_threshold"] for kind in ("node", "edge"))
            said.append(
                f"{files[own]} was pruned with other thresholds; both are compared at those of {files[other]}: nodes {node:g}, "
                f"edges {edge:g}"
            )
    if any(graph.json_origin is not None for graph in alike) and _thresholds(alike[0]) != _thresholds(alike[1]):
        said.append(
            "the graphs are not known to be pruned with the same thresholds, and one from JSON cannot be pruned again: "
            "features may be missing in one of them because less of it was kept"
        )
    return said


def _thresholds(graph: AttributionGraph) -> object:
    return graph.settings.get("pruning") if graph.node_mask is not None else None
