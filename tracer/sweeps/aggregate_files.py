"""Files of aggregates by suffix, as `graphs/formats.py` is for graphs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from crosstrace.graphs.aggregates.circuit import Aggregate
from crosstrace.graphs.aggregates.groups import Comparison
from crosstrace.graphs.aggregates.report import aggregate_as_dict, node_table
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.page.aggregate import write_aggregate_html
from crosstrace.graphs.pictures.aggregate import aggregate_drawing
from crosstrace.graphs.pictures.dot import dot_of_drawing
from crosstrace.graphs.pictures.graphviz import PICTURES, render

AGGREGATE_SUFFIXES = (".json", ".html", ".htm", ".csv", ".dot", *PICTURES)
"""Suffixes of the formats that aggregates are written in."""


def check_aggregate_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a path, in lower case.

    Raises:
        ValueError: Aggregates are not written in it.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in AGGREGATE_SUFFIXES:
        said = f"unknown suffix {Path(path).suffix!r}" if suffix else "no suffix"
        raise ValueError(f"{said} in {os.fspath(path)!r}: aggregates are written as {', '.join(AGGREGATE_SUFFIXES)}")
    return suffix


def write_aggregate(
    aggregate: Aggregate,
    path: str | os.PathLike[str],
    comparison: Comparison | None = None,
    title: str = "",
    pages: Mapping[str, str] | None = None,
) -> str | None:
    """Write an aggregate in the format that the suffix names.

    Args:
        aggregate: The aggregate.
        path: `.json`, `.html`, `.csv` (the nodes), `.dot`, `.svg`, `.pdf` or `.png`.
        comparison: Groups of its prompts, for JSON and the page.
        title: Of pictures and the page; "" for the number of prompts, and what they have in common.
        pages: Addresses of the prompts' own pages, by the names of their graphs, for the page.

    Returns:
        The program that drew it; None if none did.

    Raises:
        ValueError: The suffix is unknown.
        OSError: The file cannot be written; nothing is left behind.
        GraphvizMissing: Nothing on this machine draws this format.

    Example:
        >>> write_aggregate(found, "cities.svg")
        'dot 2.43.0'
    """
    suffix = check_aggregate_suffix(path)
    if suffix == ".json":
        write_atomically(path, json.dumps(aggregate_as_dict(aggregate, comparison), indent=1).encode())
    elif suffix == ".csv":
        write_atomically(path, node_table(aggregate))
    elif suffix in (".html", ".htm"):
        write_aggregate_html(aggregate, path, comparison, title, pages)
    else:
        dot = dot_of_drawing(aggregate_drawing(aggregate, title))
        if suffix == ".dot":
            write_atomically(path, dot.to_string().encode("utf-8"))
        else:
            return render(dot, path)
    return None
