"""Graph files by suffix: where `-o` picks a format, and where a new exporter is registered.

Nothing heavy is imported before a file is written, so that the command line can check a suffix at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosstrace.graphs.cards.feature_cards import FeatureCards
    from crosstrace.graphs.graph import AttributionGraph
    from crosstrace.graphs.pictures.figure import Figure
    from crosstrace.graphs.saved_state import SavedState


@dataclass(frozen=True)
class Export:
    """What a writer is given beside the graph and the path; each may be ignored."""

    figure: Figure | None = None
    """What of the graph is shown, and how; None for all of it."""
    cards: FeatureCards | None = None
    """Cards of its features."""
    state: SavedState | None = None
    """What is pinned and grouped when a viewer opens the file."""


Writer = Callable[["AttributionGraph", str | os.PathLike[str], Export], str | None]
"""Writes a graph to a path. Returns the name of the program that drew it, None if none did."""


@dataclass(frozen=True)
class Exporter:
    """A format that graphs are written in.

    Attributes:
        suffix: Its files' suffix, such as ".json".
        writer: What writes it.
        takes_figure: Whether a `Figure` says what is shown.
        is_page: Whether a browser opens it.
        labels_features: Whether features without a label are given the automatic one from cards before writing.
    """

    suffix: str
    writer: Writer
    takes_figure: bool = False
    is_page: bool = False
    labels_features: bool = True


_exporters: dict[str, Exporter] = {}


def register_exporter(
    suffix: str, writer: Writer, *, takes_figure: bool = False, is_page: bool = False, labels_features: bool = True
) -> None:
    """Add a format: from then on `write_graph` and the command line's `-o` know its suffix.

    Args:
        suffix: With its dot, in lower case, such as ".csv".
        writer: Called with the graph, the path, and an `Export`. It should write the file whole or not at all
            (`write_atomically`) and write what the graph's masks keep.
        takes_figure: Whether it draws what a `Figure` says.
        is_page: Whether a browser opens it.
        labels_features: Whether features without a label are given the automatic one from cards before writing.

    Raises:
        ValueError: The suffix is malformed, or is already registered.

    Example:
        >>> def write_names(graph, path, export):
        ...     write_atomically(path, "\\n".join(map(graph.describe, graph.kept_nodes())).encode())
        >>> register_exporter(".txt", write_names)
        >>> write_graph(prune(graph), "dallas.txt")
    """
    if suffix in ("", ".") or suffix != Path("graph" + suffix).suffix.lower():
        raise ValueError(f"a suffix is a dot and letters in lower case, such as '.csv', not {suffix!r}")
    if suffix in _exporters:
        raise ValueError(f"there is already an exporter for {suffix!r}")
    _exporters[suffix] = Exporter(suffix, writer, takes_figure, is_page, labels_features)


def unregister_exporter(suffix: str) -> None:
    """Remove a format that `register_exporter` added.

    Raises:
        ValueError: It is not registered.
    """
    if _exporters.pop(suffix, None) is None:
        raise ValueError(f"there is no exporter for {suffix!r}")


class _Suffixes(Sequence[str]):
    """Suffixes of the registered exporters, always up to date."""

    def __init__(self, chosen: Callable[[Exporter], bool]) -> None:
        self._chosen = chosen

    def _now(self) -> tuple[str, ...]:
        return tuple(exporter.suffix for exporter in _exporters.values() if self._chosen(exporter))

    def __getitem__(self, index: Any) -> Any:
        return self._now()[index]

    def __len__(self) -> int:
        return len(self._now())

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __repr__(self) -> str:
        return repr(self._now())


SUFFIXES: Sequence[str] = _Suffixes(lambda exporter: True)
"""Suffixes of all formats."""
FIGURES: Sequence[str] = _Suffixes(lambda exporter: exporter.takes_figure)
"""Suffixes of the formats in which a `Figure` says what is shown."""
PAGES: Sequence[str] = _Suffixes(lambda exporter: exporter.is_page)
"""Suffixes of the formats that a browser opens."""


def check_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a path, in lower case.

    Raises:
        ValueError: No exporter is registered for it; the message names it and those that are.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _exporters:
        said = f"unknown suffix {Path(path).suffix!r}" if suffix else "no suffix"
        raise ValueError(f"{said} in {os.fspath(path)!r}: known are {', '.join(SUFFIXES)}")
    return suffix


def write_graph(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    figure: Figure | None = None,
    cards: FeatureCards | None = None,
    state: SavedState | None = None,
) -> str | None:
    """Write the graph in the format that the suffix names: as `.safetensors` all of it, otherwise what its masks keep.

    Args:
        graph: Raw or pruned.
        path: The file.
        figure: What of it pictures and GraphML show, and how; the other formats ignore it.
        cards: Cards of its features: pages show them, and features without a label are given the automatic one in
            every format but `.safetensors`, which keeps the graph as it is.
        state: What is pinned and grouped when the page, or a viewer of the JSON, opens.

    Returns:
        For pictures the program that drew it, such as "dot 2.43.0"; otherwise None.

    Raises:
        ValueError: Unknown suffix; the message names it and the known ones.
        OSError: The file cannot be written; nothing is left behind.
        GraphvizMissing: No program on this machine draws that picture; a `.dot` file has been written instead.

    Example:
        >>> for name in ("dallas.json", "dallas.svg"):
        ...     write_graph(prune(graph), name)
    """
    exporter = _exporters[check_suffix(path)]
    if cards is not None and exporter.labels_features:
        from crosstrace.graphs.cards.feature_cards import with_card_labels

        graph = with_card_labels(graph, cards)
    return exporter.writer(graph, path, Export(figure, cards, state))


def read_graph(path: str | os.PathLike[str]) -> AttributionGraph:
    """Read a graph from `.safetensors`, or what pruning kept of one from the JSON of crosstrace, circuit-tracer, Neuronpedia.

    Raises:
        ValueError: The file has another suffix, is damaged, or (`.json`) holds what a graph of transcoders cannot express;
            one line that names it and says which.
        OSError: There is no such file.

    Example:
        >>> graph = read_graph("raw.safetensors")
        >>> read_graph("dallas.json").json_origin.n_active
        2768
    """
    match Path(path).suffix.lower():
        case ".safetensors":
            from crosstrace.graphs.graph import AttributionGraph

            return AttributionGraph.load(path)
        case ".json":
            from crosstrace.graphs.readers.json_graph import read_json_graph

            return read_json_graph(path)
    raise ValueError(f"cannot read a graph from {os.fspath(path)!r}: expected .safetensors or .json")


def read_whole_graph(path: str | os.PathLike[str], what: str) -> AttributionGraph:
    """Read a graph for something that needs more than what pruning kept.

    Args:
        path: The file.
        what: What needs it, for the message.

    Raises:
        ValueError: As `read_graph`, or the file is JSON, or was made from it.
        OSError: There is no such file.

    Example:
        >>> read_whole_graph("dallas.json", "validate")
        ValueError: dallas.json: validate needs the whole graph; a JSON file holds only …
    """
    graph = read_graph(path)
    from crosstrace.graphs.analysis.pruning import check_whole

    try:
        check_whole(graph, what)
    except ValueError as problem:
        raise ValueError(f"{os.fspath(path)}: {problem}") from None
    return graph


def _write_safetensors(graph: AttributionGraph, path: str | os.PathLike[str], export: Export) -> None:
    graph.save(path)


def _write_json(graph: AttributionGraph, path: str | os.PathLike[str], export: Export) -> None:
    from crosstrace.graphs.exporters.neuronpedia import write_json

    write_json(graph, path, state=export.state)


def _write_html(graph: AttributionGraph, path: str | os.PathLike[str], export: Export) -> None:
    from crosstrace.graphs.analysis.pruning import unpruned
    from crosstrace.graphs.page.export import write_html

    # The page prunes by itself, so that what its graph drops now may be grouped too.
    state = None if export.state is None else export.state.q_params(unpruned(graph))
    write_html(graph, path, export.cards, state=state)


def _write_dot(graph: AttributionGraph, path: str | os.PathLike[str], export: Export) -> None:
    from crosstrace.graphs.pictures.dot import write_dot

    write_dot(graph, path, _with_story(graph, export))


def _write_picture(graph: AttributionGraph, path: str | os.PathLike[str], export: Export) -> str:
    from crosstrace.graphs.pictures.graphviz import render

    return render(graph, path, _with_story(graph, export))


def _with_story(graph: AttributionGraph, export: Export) -> Figure:
    """The figure, whose story knows the cards."""
    from crosstrace.graphs.analysis.story import story_of
    from crosstrace.graphs.pictures.figure import Figure

    figure = export.figure or Figure()
    if figure.tells_story and figure.story is None and graph.layout.n_logits:
        figure = replace(figure, story=story_of(graph, export.cards))
    return figure


def _write_graphml(graph: AttributionGraph, path: str | os.PathLike[str], export: Export) -> None:
    from crosstrace.graphs.exporters.graphml import write_graphml

    write_graphml(graph, path, export.figure)


register_exporter(".safetensors", _write_safetensors, labels_features=False)
register_exporter(".json", _write_json)
register_exporter(".html", _write_html, is_page=True)
register_exporter(".dot", _write_dot, takes_figure=True)
register_exporter(".svg", _write_picture, takes_figure=True)
register_exporter(".pdf", _write_picture, takes_figure=True)
register_exporter(".png", _write_picture, takes_figure=True)
register_exporter(".graphml", _write_graphml, takes_figure=True)
