"""The page of an aggregate: its circuit with thresholds on share and strength, and the prompts behind each node.

`viewer/src/aggregate.ts` draws it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from crosstrace.graphs.aggregates.circuit import Aggregate
from crosstrace.graphs.aggregates.defaults import MIN_EDGE
from crosstrace.graphs.aggregates.groups import Comparison
from crosstrace.graphs.aggregates.report import aggregate_as_dict
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.page.export import page
from crosstrace.graphs.pictures.aggregate import default_title


class AggregatePageData(TypedDict):
    """The JSON value inside the page of an aggregate."""

    format: Literal["crosstrace-aggregate-page"]
    version: int
    title: str
    model: str
    transcoders: str
    layers: int
    roles: list[str]
    prompts: list[dict[str, Any]]
    """Of each: graph, prompt, tokens, targets and weights, roles, metadata, `page`: the address of its own page, or None."""
    nodes: list[dict[str, Any]]
    edges: list[list[float]]
    """Source, target, share of the prompts, weight, its interval, mean share of the influence; weakest first."""
    start: list[float]
    """Where the thresholds stand when the page opens: share of prompts, influence of nodes, of edges."""
    stability: dict[str, Any] | None
    comparison: dict[str, Any] | None
    leftOut: int


def write_aggregate_html(
    aggregate: Aggregate,
    path: str | os.PathLike[str],
    comparison: Comparison | None = None,
    title: str = "",
    pages: Mapping[str, str] | None = None,
) -> None:
    """Write the page of an aggregate: one `.html` file that opens offline.

    Args:
        aggregate: The aggregate.
        path: The file.
        comparison: Groups of its prompts.
        title: Of the page; "" for the number of prompts, and what they have in common.
        pages: Addresses of the prompts' own pages, by the names of their graphs.

    Raises:
        ValueError: The content is too large for a page.
        OSError: The file cannot be written; nothing is left behind.
    """
    known = aggregate_as_dict(aggregate, comparison)
    title = title or default_title(aggregate)
    data: AggregatePageData = {
        "format": "crosstrace-aggregate-page",
        "version": 1,
        "title": title,
        "model": aggregate.model_name,
        "transcoders": aggregate.transcoders_name,
        "layers": aggregate.n_layers,
        "roles": aggregate.roles,
        "prompts": [{**prompt, "page": (pages or {}).get(prompt["graph"])} for prompt in aggregate.prompts],
        "nodes": known["nodes"],
        "edges": [
            [edge.source, edge.target, edge.share, edge.weight, *edge.weight_interval, edge.influence]
            for edge in aggregate.edges
        ],
        "start": [aggregate.settings["min_share"], aggregate.settings["min_influence"], MIN_EDGE],
        "stability": known["stability"],
        "comparison": known["comparison"],
        "leftOut": len(aggregate.left_out),
    }
    write_atomically(path, page(data, "aggregate.html", title))
