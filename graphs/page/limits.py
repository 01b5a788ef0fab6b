"""How much a page may hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageLimits:
    """Bounds of an interactive page; the defaults are what a browser handles well."""

    live_nodes: int = 4_000
    """The most nodes that go in with all edges between them, dropped ones too: up to here the page prunes in 0.1 s."""
    live_edges: int = 400_000
    """The most edges that go in with such nodes."""
    most_nodes: int = 20_000
    """A pruned graph with more nodes is refused."""
    most_edges: int = 1_000_000
    """A pruned graph with more edges is refused."""
    contexts: int = 4_000
    """Number of contexts on all cards together."""
    contexts_of_card: int = 2
    """Number of contexts that each card shows however many cards there are."""
    page_bytes: int = 100_000_000
    """Size of the largest content."""
    json_bytes: int = 100_000_000
    """Size of the largest JSON graph that a page is made from."""


LIMITS = PageLimits()
FRAME_LIMITS = PageLimits(
    live_nodes=1_500, live_edges=60_000, most_nodes=3_000, most_edges=60_000, page_bytes=5_000_000
)
"""Of a page in a notebook, whose file keeps it."""
