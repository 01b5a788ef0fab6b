"""How much a page may hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageLimits:
    """Bounds of an interactive page; the defaults are what a browser handles well."""

    live_nodes: int = 4_000
    """Up to so many nodes go in with all edges between them, dropped ones too; then the page prunes in about 0.1 s."""
    live_edges: int = 400_000
    """Likewise for edges."""
    most_nodes: int = 20_000
    """A pruned graph with more nodes is refused."""
    most_edges: int = 1_000_000
    """Likewise for edges."""
    contexts: int = 4_000
    """Contexts on all cards together."""
    contexts_of_card: int = 2
    """Contexts that a card shows in any case."""
    page_bytes: int = 100_000_000
    """Size of the page's content."""
    json_bytes: int = 100_000_000
    """Size of a JSON graph that a page is made from."""


LIMITS = PageLimits()
FRAME_LIMITS = PageLimits(
    live_nodes=1_500, live_edges=60_000, most_nodes=3_000, most_edges=60_000, page_bytes=5_000_000
)
"""Of a page inside a notebook, which keeps it in its file."""
