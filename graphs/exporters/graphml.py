"""The graph as GraphML, for Gephi, Cytoscape, yEd, igraph and networkx itself."""

from __future__ import annotations

import io
import os
from typing import Any

from crosstrace.graphs.exporters.networkx_graph import to_networkx
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.pictures.figure import Figure
from crosstrace.graphs.text import visible


def write_graphml(graph: AttributionGraph, path: str | os.PathLike[str], figure: Figure | None = None) -> None:
    """Write what the masks keep (all of a raw graph), or what `figure` shows of it, as `.graphml`.

    Nodes are named as in the JSON export and have the attributes of `to_networkx`, each with its type (string, long,
    double), and `supernode`: the name of the group that `figure` puts them in, "" for none. Edges have `weight`. Strings
    are unchanged, except that what XML cannot hold (control characters, lone surrogates) becomes visible signs.

    Args:
        graph: Raw or pruned.
        path: The file.
        figure: What of it is written; all that the masks keep if None.

    Raises:
        OSError: The file cannot be written; nothing is left behind.

    Example:
        >>> write_graphml(prune(graph), "dallas.graphml")
        >>> networkx.read_graphml("dallas.graphml").nodes["3_417_7"]["label"]
        'Texas (L3/417 @ Dallas)'
    """
    # Imported here because it is slow to import.
    import networkx

    figure = figure or Figure()
    digraph = to_networkx(figure.part_of(graph))
    for _, attributes in digraph.nodes(data=True):
        attributes["supernode"] = ""
    for name, nodes in figure.supernodes:
        for node in nodes:
            if node in digraph:
                digraph.nodes[node]["supernode"] = name
    for holder in (digraph.graph, *(attributes for _, attributes in digraph.nodes(data=True))):
        _make_writable(holder)
    named = networkx.relabel_nodes(digraph, dict(digraph.nodes(data="node_id")))
    content = io.BytesIO()
    networkx.write_graphml_xml(named, content, named_key_ids=True)
    write_atomically(path, content.getvalue())


def _make_writable(attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if isinstance(value, str):
            attributes[name] = "".join(map(_sign, value))


def _sign(character: str) -> str:
    """Keep direction marks, which are data here; not carriage returns, which would come back as line feeds."""
    code = ord(character)
    in_xml = character in "\t\n" or 0x20 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or code >= 0x10000
    return character if in_xml else visible(character)
