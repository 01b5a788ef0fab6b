"""Pins and groups that the page has saved, or that a graph's JSON holds as `qParams`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from crosstrace.graphs.fingerprints import same_weights
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.viewer_ids import node_ids

_WANTED = "expected 'qParams' with 'supernodes', as the page saves it"


class SavedState(NamedTuple):
    """What is pinned and grouped, as numbers in the graph's node order."""

    pinned: list[int]
    """Members of supernodes included."""
    supernodes: list[tuple[str, list[int]]]
    """(name, nodes) pairs; a node is in at most one."""

    def q_params(self, graph: AttributionGraph) -> dict[str, Any]:
        """Return it as viewers read it, for the nodes that the graph's masks keep."""
        ids, kept = node_ids(graph), set(graph.kept_nodes())
        groups = [[name, *(ids[node] for node in nodes if node in kept)] for name, nodes in self.supernodes]
        return {
            "pinnedIds": [ids[node] for node in self.pinned if node in kept],
            "supernodes": [group for group in groups if len(group) > 1],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        }


class Origin(NamedTuple):
    """What a saved state says of the graph that it was saved for."""

    model: str
    transcoders: str
    fingerprints: dict[str, str]
    """Of the weights, as in the graph's settings; empty in a file from before they were saved, or from another viewer."""


def read_origin(path: str | os.PathLike[str]) -> Origin:
    """Read what a file that the page saved, or a graph's JSON, says of its graph; empty where it says nothing.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a saved state; one line that names the file and says why.
    """
    return origin_of(_content(path))


def origin_of(content: Mapping[str, Any]) -> Origin:
    """Return what the value in a graph's JSON file, or in a saved state, says of the graph."""
    metadata = _mapping(content.get("metadata"))
    info = metadata | _mapping(metadata.get("info"))
    fingerprints = metadata.get("fingerprints") or _mapping(metadata.get("generation_settings")).get("fingerprints")
    return Origin(
        str(info.get("model") or ""),
        str(info.get("transcoders") or ""),
        {name: value for name, value in _mapping(fingerprints).items() if isinstance(value, str)},
    )


def read_state(path: str | os.PathLike[str], graph: AttributionGraph) -> SavedState:
    """Read pins and groups from a file that the page saved for this graph.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a saved state, was saved for a graph of other weights, or names a node that the graph does
            not have; one line that says which.

    Example:
        >>> state = read_state("dallas.state.json", graph)
        >>> write_dot(graph, "paper.dot", Figure(state.supernodes, merged=True, only=state.pinned))
    """
    given, origin = check_state(path), read_origin(path)
    for what in ("model", "transcoders"):
        if same_weights(what, origin.fingerprints, graph.settings.get("fingerprints")) is False:
            named = origin.model if what == "model" else origin.transcoders
            raise ValueError(f"{path}: was saved for a graph of other {what}: {named}; save it from this graph's page")
    number = {name: node for node, name in enumerate(node_ids(graph))}
    pinned: dict[int, None] = {}

    def nodes(names: Any) -> list[int]:
        found = []
        for name in names:
            if name not in number:
                raise ValueError(f"{path}: node {name!r} is not in this graph: was the state saved for another one?")
            found.append(number[name])
        return found

    supernodes: list[tuple[str, list[int]]] = []
    taken: set[int] = set()
    for name, *members in given["supernodes"]:
        own = [node for node in dict.fromkeys(nodes(members)) if node not in taken]
        taken.update(own)
        if own:
            supernodes.append((name, own))
    for node in [*nodes(given["pinnedIds"]), *sorted(taken)]:
        pinned.setdefault(node)
    return SavedState(list(pinned), supernodes)


def check_state(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """Return a file's `pinnedIds` and `supernodes`, checked for their shape.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a saved state; one line that names the file and says why.
    """
    content = _content(path)
    given = content.get("qParams")
    if not isinstance(given, dict):
        raise ValueError(f"{path}: not a saved state: {_WANTED}")
    pinned = given.get("pinnedIds") or []
    if isinstance(pinned, str):  # some viewers join the ids
        pinned = pinned.split(",")
    supernodes = given.get("supernodes") or []
    if not _is_list_of_strings(pinned):
        raise ValueError(f"{path}: 'pinnedIds' is not a list of node ids")
    if not isinstance(supernodes, list) or not all(_is_list_of_strings(group) and group for group in supernodes):
        raise ValueError(f"{path}: 'supernodes' is not a list of lists, each a name and node ids")
    return {"pinnedIds": pinned, "supernodes": supernodes}


def _content(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a saved state' if file.is_dir() else 'no such file'}")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: not a JSON file ({' '.join(str(problem).split())})") from None
    return _mapping(content)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
