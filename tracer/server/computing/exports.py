"""Graphs out of the database in every format, and pages of one or two."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from crosstrace.graphs import (
    AttributionGraph,
    Figure,
    GraphvizMissing,
    SavedState,
    read_state,
    with_card_labels,
    write_graph,
    write_json,
)
from crosstrace.graphs.formats import FIGURES, SUFFIXES
from crosstrace.graphs.page.comparison import comparison_page_data
from crosstrace.graphs.page.export import page
from crosstrace.graphs.text import short
from crosstrace.tracer.server.core.models import Served
from crosstrace.tracer.server.core.store import Entry, GraphStore

MEDIA_TYPES = {
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".pdf": "application/pdf",
}


def exported(store: GraphStore, served: Served | None, entry: Entry, suffix: str, slug: str | None = None) -> bytes:
    """Return a kept graph in a format, as `crosstrace trace -o` writes it, with the groups and pins of its page.

    Args:
        store: The database.
        served: The graph's model, whose cards label it; None where it is not served now.
        entry: Which graph.
        suffix: One of `crosstrace.graphs.formats.SUFFIXES`.
        slug: Its name in `.json`; from the prompt if None.

    Raises:
        ValueError: The graph is gone, or the format unknown or not drawn on this machine.
    """
    if suffix not in SUFFIXES:
        raise ValueError(f"unknown format {suffix[:20]!r}: known are {', '.join(SUFFIXES)}")
    if suffix == ".safetensors":
        if (content := store.graph_bytes(entry.id)) is None:
            raise ValueError("the graph is not kept any more")
        return content
    graph = _graph(store, entry)
    return as_file(graph, served, suffix, slug, saved_state(entry, graph))


def as_file(
    graph: AttributionGraph,
    served: Served | None,
    suffix: str,
    slug: str | None = None,
    state: SavedState | None = None,
) -> bytes:
    """Return a graph in a format; see `exported`."""
    cards = served.cards if served is not None else None
    with tempfile.TemporaryDirectory(prefix="crosstrace-") as temporary:
        path = Path(temporary) / f"graph{suffix}"
        try:
            if suffix == ".json":
                write_json(with_card_labels(graph, cards), path, slug, state=state)
            else:
                write_graph(graph, path, _figure(state) if suffix in FIGURES else None, cards, state)
        except GraphvizMissing:
            raise ValueError(f"no program on the server's machine draws {suffix}") from None
        return path.read_bytes()


def _figure(state: SavedState | None) -> Figure | None:
    return Figure(state.supernodes) if state is not None and state.supernodes else None


def _graph(store: GraphStore, entry: Entry) -> AttributionGraph:
    if (graph := store.graph(entry.id)) is None:
        raise ValueError("the graph is not kept any more")
    return graph


def saved_state(entry: Entry, graph: AttributionGraph) -> SavedState | None:
    """Return what the page pinned and grouped; None where that is nothing, or names nodes that the graph lacks."""
    if not entry.state.get("qParams"):
        return None
    with tempfile.TemporaryDirectory(prefix="crosstrace-") as temporary:
        path = Path(temporary) / "state.json"
        path.write_text(json.dumps({"qParams": entry.state["qParams"]}))
        try:
            return read_state(path, graph)
        except ValueError:
            return None


def graph_page(store: GraphStore, entry: Entry) -> bytes:
    """Return the page of a kept graph: the file that `crosstrace trace -o graph.html` writes.

    Raises:
        ValueError: The graph is gone.
    """
    if (data := store.page(entry.id)) is None:
        raise ValueError("the graph is not kept any more")
    return page(data)


def comparison_page(store: GraphStore, served: Served | None, entries: Sequence[Entry]) -> bytes:
    """Return the page of two kept graphs.

    Raises:
        ValueError: One is gone, they are of different models, or too large for a page.
    """
    cards = served.cards if served is not None else None
    a, b = (with_card_labels(_graph(store, entry), cards) for entry in entries)
    title = f"{short(a.prompt, 40)} and {short(b.prompt, 40)}"
    return page(comparison_page_data(a, b, cards=cards), "compare.html", title)
