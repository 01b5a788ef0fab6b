"""Graph files by suffix."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from crosstrace.graphs.analysis.pruning import unpruned
from crosstrace.graphs.cards.feature_cards import FeatureCards, with_card_labels
from crosstrace.graphs.exporters.graphml import write_graphml
from crosstrace.graphs.exporters.neuronpedia import write_json
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.page.export import write_html
from crosstrace.graphs.pictures.dot import write_dot
from crosstrace.graphs.pictures.figure import Figure
from crosstrace.graphs.pictures.graphviz import PICTURES, render
from crosstrace.graphs.saved_state import SavedState

_DRAWERS: dict[str, Callable[[AttributionGraph, str | os.PathLike[str], Figure | None], None]] = {
    ".dot": write_dot,
    **dict.fromkeys(PICTURES, render),
    ".graphml": write_graphml,
}
FIGURES = tuple(_DRAWERS)
"""Suffixes of the formats in which a `Figure` says what is shown."""
SUFFIXES = (".safetensors", ".json", ".html", *FIGURES)


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix, in lower case.

    Raises:
        ValueError: It is none of `SUFFIXES`; the message names it and them.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        said = f"unknown suffix {Path(path).suffix!r}" if suffix else "no suffix"
        raise ValueError(f"{said} in {os.fspath(path)!r}: known are {', '.join(SUFFIXES)}")
    return suffix


def write_graph(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    figure: Figure | None = None,
    cards: FeatureCards | None = None,
    state: SavedState | None = None,
) -> None:
    """Writes the graph in the format that the suffix says: the whole of it as `.safetensors`, else what masks keep.

    Args:
        graph: Raw or pruned.
        path: The file.
        figure: What of it pictures and GraphML show, and how; the other formats do not ask for it.
        cards: Of its features: pages show them, and features without a label get the automatic one in every format
            but `.safetensors`, which keeps the graph as it is.
        state: What is pinned and grouped when the page, or a viewer of the JSON, opens.

    Raises:
        ValueError: Unknown suffix; the message names it and the known ones.
        OSError: The file cannot be written; nothing is left behind.
        GraphvizMissing: A picture without Graphviz; a `.dot` has been written instead.

    Example:
        >>> for name in ("dallas.json", "dallas.svg"):
        ...     write_graph(prune(graph), name)
    """
    suffix = check_suffix(path)
    if suffix == ".safetensors":
        graph.save(path)
        return
    labelled = with_card_labels(graph, cards)
    if suffix == ".html":
        write_html(labelled, path, cards, state=None if state is None else state.q_params(unpruned(labelled)))
    elif suffix == ".json":
        write_json(labelled, path, state=state)
    else:
        _DRAWERS[suffix](labelled, path, figure)


def read_graph(path: str | os.PathLike[str]) -> AttributionGraph:
    """Reads a `.safetensors` graph; the other formats do not hold the whole of one.

    Raises:
        ValueError: Another suffix, or a damaged file.
        OSError: There is no such file.

    Example:
        >>> graph = read_graph("raw.safetensors")
    """
    if Path(path).suffix.lower() != ".safetensors":
        raise ValueError(f"cannot read a graph from {os.fspath(path)!r}: only .safetensors files hold a whole graph")
    return AttributionGraph.load(path)
