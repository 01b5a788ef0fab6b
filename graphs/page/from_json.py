"""The page of a graph in JSON: crosstrace's own, circuit-tracer's, Neuronpedia's, Anthropic-style ones.

Where the file holds a graph of transcoders, that graph is read (`readers/json_graph.py`) and its page is as any graph's.
This module makes the page of what such a graph cannot express: nodes of other types, features without activation.

Letters: m nodes of the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from crosstrace.graphs.analysis.pruning import shares_of_entries
from crosstrace.graphs.conversations.spans import spans_of
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.page.contents import PageData, PageNode, PageSource, firing_places, page_contents, page_label
from crosstrace.graphs.page.data import MADE_FROM_JSON, never_dropped
from crosstrace.graphs.page.limits import LIMITS, PageLimits
from crosstrace.graphs.readers.json_content import JsonContent, JsonNode, check_shape, json_content, load_json
from crosstrace.graphs.readers.json_graph import InexpressibleError, graph_of_content
from crosstrace.graphs.saved_state import origin_of
from crosstrace.graphs.text import distinct, marked


def open_json(path: str | os.PathLike[str], limits: PageLimits = LIMITS) -> AttributionGraph | PageData:
    """Return the graph in a `.json` file; of one that holds more than a graph can express, the content of its page.

    Raises:
        OSError: There is no such file.
        ValueError: It is too large for a page, not JSON, or not an attribution graph; one line that names it and says which.
    """
    file = Path(path)
    if file.is_file() and (size := file.stat().st_size) > limits.json_bytes:
        raise ValueError(
            f"{path}: {size / 1e6:,.0f} MB is too much for a page (at most {limits.json_bytes / 1e6:,.0f} MB): prune the "
            "graph first, for example crosstrace prune RAW --node-threshold 0.6 -o page.html"
        )
    content = load_json(path)
    try:
        _check_size(content, limits)
        read = json_content(content)
        try:
            return graph_of_content(read)
        except InexpressibleError:
            return _page_data(read)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def page_data_from_json(content: Any, limits: PageLimits = LIMITS) -> PageData:
    """Return the content of a page that shows the nodes and links of a JSON graph as they are, of whatever type.

    Args:
        content: The value in the file.
        limits: How much the page may hold.

    Raises:
        ValueError: It is not an attribution graph, or too large; the message says what is wrong.
    """
    _check_size(content, limits)
    return _page_data(json_content(content))


def _page_data(content: JsonContent) -> PageData:
    tokens, n_layers = content.tokens, content.n_layers
    spans = spans_of(content.settings, len(tokens))
    template = frozenset[int]() if spans is None else spans.template
    names = [marked(name) if place in template else name for place, name in enumerate(distinct(tokens))]
    nodes = [_page_node(node, names, n_layers) for node in content.nodes]
    influence = None if content.entries is None else never_dropped(shares_of_entries(content.entries))
    fires = [(node, node.activation) for node in nodes if node.kind == "f" and node.activation is not None]
    return page_contents(
        PageSource(
            prompt=content.prompt,
            model=content.model,
            transcoders=content.transcoders,
            fingerprints=origin_of({"metadata": content.metadata}).fingerprints,
            tokens=tokens,
            names=names,
            n_layers=n_layers,
            nodes=nodes,
            edges=content.edges,
            influence=influence,
            influence_total=1.0 if influence is None else max(1.0, float(influence.sum())),
            only_kept=True,
            whole={"nodes": len(nodes), "edges": int(content.edges.nnz), "untraced": 0},
            # With a threshold of 1 the page shows all that the file holds.
            start={"node": 1.0, "edge": 1.0, "nodeLimit": 1.0},
            fires=firing_places(
                ((node.layer, node.position, node.feature) for node, _ in fires), (value for _, value in fires)
            ),
            slug=str(content.metadata.get("slug") or ""),
            template=None if spans is None else sorted(template),
            notes=[*content.notes, MADE_FROM_JSON],
            q_params=content.q_params,
        )
    )


def _page_node(node: JsonNode, names: list[str], n_layers: int) -> PageNode:
    found = PageNode(node.id, node.kind, node.layer, node.position, node.feature, node.label, node.activation)
    if node.kind == "f" and node.other_type:
        name = node.label or (f"L{node.layer}/{node.feature}" if node.feature >= 0 else "")
        found.label = f"{node.other_type}: {name}" if name else node.other_type
    elif node.kind == "e":
        found.label = node.other_type
    elif node.kind == "t":
        found.label = page_label(node.label, names[node.position])
    elif node.kind == "l":
        found.layer = n_layers
        found.probability, found.chance = node.weight, node.probability
        found.is_token = re.fullmatch(r"\d+_-\d+_\d+", node.id) is None
    return found


def _check_size(content: Any, limits: PageLimits) -> None:
    check_shape(content)
    if len(content["nodes"]) > limits.most_nodes or len(content["links"]) > limits.most_edges:
        raise ValueError(
            f"{len(content['nodes']):,} nodes and {len(content['links']):,} links are too many for a page (at most "
            f"{limits.most_nodes:,} and {limits.most_edges:,}): prune the graph further first"
        )
