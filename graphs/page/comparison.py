"""Two graphs of the same model on one interactive page: what `analysis/comparison.py` finds, to look at.

The page (`viewer/src/compare.ts`) holds both graphs as `page_data` returns them, and for each node of either its
counterpart in the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypedDict

from crosstrace.graphs.analysis.alignment import Counterpart, counterparts, feature_counterparts
from crosstrace.graphs.analysis.comparison import check_comparable, pruned_alike
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.page.contents import Card, Key, PageData
from crosstrace.graphs.page.data import page_data
from crosstrace.graphs.page.export import page
from crosstrace.graphs.page.limits import LIMITS, PageLimits
from crosstrace.graphs.text import short
from crosstrace.graphs.viewer_ids import node_ids

FORMAT, VERSION = "crosstrace-comparison-page", 1
# What stands for a counterpart that the other page does not hold; `viewer/src/pair.ts` knows them.
ABSENT, ELSEWHERE, UNTRACED = -1, -2, -3  # ELSEWHERE: it is a node there, beyond the page's limits


class ComparisonPageData(TypedDict):
    """The JSON value inside a page of two graphs."""

    format: str
    version: int
    names: list[str]
    graphs: list[PageData]
    counterparts: list[list[int]]
    """For each node on either page its number on the other, or `ABSENT`, `ELSEWHERE`, `UNTRACED`."""
    unaligned: list[dict[str, list[int]]]
    """For features on either page that are absent at their place on the other: where they fire there all the same."""


def write_comparison_html(
    a: AttributionGraph,
    b: AttributionGraph,
    path: str | os.PathLike[str],
    names: Sequence[str] = ("A", "B"),
    cards: Mapping[Key, Card] | None = None,
) -> None:
    """Write both graphs on one interactive page: an `.html` file that opens offline.

    Shape and colour tell what both have from what only one has; a node selected in one is found in the other, and the
    page lists what became more or less important. It prunes both graphs live.

    Args:
        a: A raw or pruned graph.
        b: Another one, of the same model and transcoders.
        path: The file.
        names: What the two are called on the page, for example "before" and "after".
        cards: What is known of features, as for `write_html`.

    Raises:
        ValueError: The graphs are not of the same model, are too large for a page, or `names` are not two.
        OSError: The file cannot be written; nothing is left behind.

    Example:
        >>> write_comparison_html(dallas, oakland, "page.html", names=("Dallas", "Oakland"))
    """
    title = f"{short(a.prompt, 40)} and {short(b.prompt, 40)}"
    write_atomically(path, page(comparison_page_data(a, b, names, cards), "compare.html", title))


def comparison_page_data(
    a: AttributionGraph,
    b: AttributionGraph,
    names: Sequence[str] = ("A", "B"),
    cards: Mapping[Key, Card] | None = None,
    limits: PageLimits = LIMITS,
) -> ComparisonPageData:
    """Return the content of a page of two graphs; for the arguments see `write_comparison_html`.

    Raises:
        ValueError: As `write_comparison_html`.
    """
    check_comparable(a, b)
    if len(names) != 2:
        raise ValueError(f"names must be two, one for each graph, not {len(names)}")
    a, b = pruned_alike(a, b)  # the page has one pair of sliders
    # Neither page may hold what the other has dropped: a graph from JSON has no more than what pruning kept.
    only_kept = a.json_origin is not None or b.json_origin is not None
    data = [
        page_data(graph, cards, supernodes=(), limits=limits, stories=False, only_kept=only_kept) for graph in (a, b)
    ]
    # The page looks in both, so no card has to be there twice.
    data[1]["cards"] = {key: card for key, card in data[1]["cards"].items() if key not in data[0]["cards"]}
    to_b = counterparts(a, b)
    to_a = {node_b: node_a for node_a, node_b in to_b.items()}
    in_b, in_a = feature_counterparts(a, b)
    first = _partners(a, data[0], _numbers(b, data[1]), to_b, in_b)
    second = _partners(b, data[1], _numbers(a, data[0]), to_a, in_a)
    return {
        "format": FORMAT,
        "version": VERSION,
        "names": list(names),
        "graphs": data,
        "counterparts": [first[0], second[0]],
        "unaligned": [first[1], second[1]],
    }


def _numbers(graph: AttributionGraph, data: PageData) -> dict[int, int]:
    """For each node that the page holds, its number there."""
    on_page = {name: i for i, name in enumerate(data["nodes"]["id"])}
    return {node: on_page[name] for node, name in enumerate(node_ids(graph)) if name in on_page}


def _partners(
    graph: AttributionGraph,
    data: PageData,
    on_other_page: Mapping[int, int],
    partner_of: Mapping[int, int],
    features: Sequence[Counterpart],
) -> tuple[list[int], dict[str, list[int]]]:
    """For each node on a graph's page its number on the other's, or what stands for one; and where the absent ones fire."""
    partners: list[int] = []
    unaligned: dict[str, list[int]] = {}
    for node, number in _numbers(graph, data).items():
        found = features[node] if node < len(features) else Counterpart()
        if node in partner_of:
            partners.append(on_other_page.get(partner_of[node], ELSEWHERE))
        elif found.row is not None:
            partners.append(UNTRACED)
        else:
            partners.append(ABSENT)
            if found.elsewhere:
                unaligned[str(number)] = list(found.elsewhere)
    return partners, unaligned
