"""One HTML file with everything inside: the graph, its cards, and the scripts that draw them.

`page/page.html` is built from `viewer/` and shipped, so that writing a page does not need node; the data is put into it
here. Two things keep strings in the graph from ever acting as anything but text:

- the data is JSON in a script element of a type that browsers do not run, with `<`, `>`, `&` and everything outside ASCII
  written as escapes, so that no string can end the element;
- a content security policy names the hashes of the one script and the one style sheet, and forbids everything else: other
  scripts, event handlers in markup, and every request to the network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from crosstrace.graphs.cards.feature_cards import FeatureCards, with_card_labels
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.page.contents import Card, Key, PageData, cards_as_json, features_of
from crosstrace.graphs.page.data import cards_of_features, page_data
from crosstrace.graphs.page.from_json import open_json
from crosstrace.graphs.page.limits import LIMITS, PageLimits
from crosstrace.graphs.text import short

Cards = Mapping[Key, Card]
CardFinder = Callable[[str, str, Mapping[str, str] | None], Cards | None]
"""Given the names of model and transcoders, and the weights' fingerprints where known, finds the cards."""


def write_html(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    cards: Cards | None = None,
    supernodes: Sequence[tuple[str, Sequence[int]]] | None = None,
    state: Mapping[str, Any] | None = None,
    limits: PageLimits = LIMITS,
    notes: Sequence[str] = (),
) -> None:
    """Write the graph as an interactive page: one `.html` file that opens offline.

    The page prunes live. It opens at the graph's own thresholds (the defaults for a raw graph). It holds the dropped nodes
    and edges too; of a large graph it holds the most influential 4,000 nodes.

    Args:
        graph: Raw or pruned.
        path: The file.
        cards: For (layer, feature), what is known of the feature; JSON-able, every key optional: `label`, `promoted` and
            `suppressed` (tokens, or [token, value] pairs), `contexts` (each with `tokens` and `activations` of the same
            length), `histogram` (`counts`, and one more `edges`), `firing_rate` (0 to 1). `FeatureCards` will do.
        supernodes: Groups that the page suggests, (name, nodes); `suggest_supernodes` chooses them if None.
        state: What is pinned and grouped when the page opens: `pinnedIds`, `supernodes`, `clickedId`, as the page saves it.
        limits: How much the page may hold.
        notes: Sentences that the page shows, such as what interventions on its groups did.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
        ValueError: The graph is too large for a page even when pruned, or `cards` or `state` cannot be written as JSON.

    Example:
        >>> write_html(prune(graph), "dallas.html", cards={(3, 417): {"label": "Texas", "promoted": [" Austin"]}})
    """
    write_atomically(path, page(page_data(graph, cards, supernodes, state, limits, notes=notes), limits=limits))


def view(
    file: str | os.PathLike[str],
    path: str | os.PathLike[str],
    cards: Cards | CardFinder | None = None,
    limits: PageLimits = LIMITS,
) -> None:
    """Write the page of a graph file: crosstrace's `.safetensors`, or JSON of crosstrace, circuit-tracer, Neuronpedia.

    Args:
        file: The graph.
        path: The page.
        cards: As for `write_html`, or a function that finds them once it is known what the graph is of. `FeatureCards` also
            label features that have no label.
        limits: How much the page may hold.

    Raises:
        OSError: There is no such file, or the page cannot be written.
        ValueError: The file is something else, damaged, or too large; one line that names it and says which.

    Example:
        >>> view("dallas.json", "dallas.html")
    """
    match Path(file).suffix.lower():
        case ".safetensors":
            opened: AttributionGraph | PageData = AttributionGraph.load(file)
        case ".json":
            opened = open_json(file, limits)
        case _:
            raise ValueError(f"cannot view {os.fspath(file)!r}: expected a graph as .safetensors or .json")
    if isinstance(opened, AttributionGraph):
        names = opened.model_name, opened.transcoders_name, opened.settings.get("fingerprints")
        known = cards(*names) if callable(cards) else cards
        if isinstance(known, FeatureCards):
            opened = with_card_labels(opened, known)
        write_html(opened, path, known, limits=limits)
    else:
        found = cards(opened["model"], opened["transcoders"], opened["fingerprints"]) if callable(cards) else cards
        opened["cards"] = cards_as_json(cards_of_features(found or {}, features_of(opened), limits))
        write_atomically(path, page(opened, limits=limits))


def page(
    data: Mapping[str, Any],
    template: str = "page.html",
    title: str | None = None,
    limits: PageLimits = LIMITS,
    permits: Sequence[str] = (),
) -> bytes:
    """Return the finished page around its content.

    Args:
        data: What `page_data` returns.
        template: One of those built from `viewer/`.
        title: The page's title; from the prompt if None.
        limits: How much the page may hold.
        permits: Further directives of the content security policy, for a page that a server stands behind.

    Raises:
        ValueError: `data` cannot be written as JSON (it holds NaN, for example), or is too large.
    """
    empty = files("crosstrace.graphs.page").joinpath(template).read_text(encoding="utf-8")
    try:
        content = script_safe(data)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"the page's content cannot be written as JSON: {problem}") from None
    if len(content) > limits.page_bytes:
        raise ValueError(
            f"the page would hold {len(content) / 1e6:,.0f} MB (at most {limits.page_bytes / 1e6:,.0f} MB): prune the "
            "graph further first, or give fewer cards"
        )
    filled = empty.replace("{{CSP}}", html.escape(_policy(empty, permits)))
    title = f"{title or short(str(data.get('prompt') or 'graph'), 80)} · crosstrace"
    # The data comes last: nothing is looked for inside it.
    filled = filled.replace("{{TITLE}}", html.escape(title))
    return filled.replace("{{DATA}}", content).encode("utf-8")


def script_safe(value: Any) -> str:
    """Return JSON that can end neither the script element it stands in nor a line of it; ASCII.

    Example:
        >>> script_safe("</script>")
        '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(template: str, permits: Sequence[str]) -> str:
    """The content security policy: the hashes of the template's own script and style, what is permitted, nothing else."""
    scripts = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", template, re.DOTALL)
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {' '.join(map(_hash, styles))}",
            "base-uri 'none'",
            "form-action 'none'",
            *permits,
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
