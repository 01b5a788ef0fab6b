"""The page's content from a graph in JSON: crosstrace's own, circuit-tracer's, Neuronpedia's, Anthropic-style ones.

Such files hold a pruned graph, so the page can only prune it further. Where nodes carry `influence` (the cumulative
share at which each enters), it is taken from the file; otherwise the page computes it from the links.

Letters: n nodes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from crosstrace.graphs.page.data import (
    FORMAT,
    MOST_EDGES,
    MOST_NODES,
    VERSION,
    base64_of,
    edges_as_json,
    slug_of,
)

LARGEST_FILE = 100_000_000
_KINDS = {"embedding": "t", "logit": "l", "mlp reconstruction error": "e"}
_OUTPUT = re.compile(r'^Output "(.*)" \(p=([0-9.eE+-]+)\)', re.DOTALL)
_EMBEDDING = re.compile(r'^Emb: "(.*)"$', re.DOTALL)


def read_json_page(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The page's content from a `.json` graph.

    Raises:
        OSError: There is no such file.
        ValueError: It is too large, not JSON, or not an attribution graph; one line that names the file and says which.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a graph file' if file.is_dir() else 'no such graph file'}")
    size = file.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(
            f"{path}: {size / 1e6:,.0f} MB is too much for a page (at most {LARGEST_FILE / 1e6:,.0f} MB): prune the graph "
            "first, for example crosstrace prune RAW --node-threshold 0.6 -o page.html"
        )
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: not a JSON file ({' '.join(str(problem).split())})") from None
    try:
        return page_data_from_json(content)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def page_data_from_json(content: Any) -> dict[str, Any]:
    """As `page_data`, from the value in a graph's JSON file.

    Raises:
        ValueError: It is not an attribution graph, or too large; the message says what is wrong.
    """
    _check_shape(content)
    metadata = _object(content.get("metadata"))
    given_tokens = metadata.get("prompt_tokens") or []
    if not isinstance(given_tokens, list):
        raise ValueError("not an attribution graph: 'prompt_tokens' in 'metadata' is not a list")
    tokens = [str(token) for token in given_tokens]
    nodes = [_node(i, node, tokens) for i, node in enumerate(content["nodes"])]
    tokens += [""] * (max((node["position"] for node in nodes), default=-1) + 1 - len(tokens))
    n_layers = 1 + max((node["layer"] for node in nodes if node["kind"] in "fe"), default=-1)
    for node in nodes:
        if node["kind"] == "l":
            node["layer"] = n_layers
    # Features by layer, then errors, tokens and targets: every source comes before its targets, as in `NodeLayout`.
    nodes.sort(key=lambda node: ("fetl".index(node["kind"]), node["layer"], node["position"]))
    edges, notes = _edges(nodes, content["links"])
    influence = _influence(nodes)
    # With a threshold of 1 the page shows all that the file holds.
    start = {"node": 1.0, "edge": 1.0, "nodeLimit": 1.0}
    info = _object(metadata.get("info"))
    prompt = str(metadata.get("prompt") or "".join(tokens))
    return {
        "format": FORMAT,
        "version": VERSION,
        "slug": slug_of(str(metadata.get("slug") or prompt)),
        "prompt": prompt,
        "model": str(info.get("model") or metadata.get("scan") or ""),
        "transcoders": str(info.get("transcoders") or ""),
        "tokens": tokens,
        "layers": n_layers,
        "nodes": {
            "id": [node["id"] for node in nodes],
            "kind": "".join(node["kind"] for node in nodes),
            **{
                key: [node[key] for node in nodes]
                for key in ("layer", "position", "feature", "label", "activation", "probability")
            },
        },
        "edges": edges_as_json(edges),
        "omitted": base64_of(np.zeros(len(nodes)), "<f4"),
        "influence": None if influence is None else base64_of(influence, "<f8"),
        "influenceTotal": 1.0 if influence is None else max(1.0, float(influence.sum())),
        "whole": {"nodes": len(nodes), "edges": int(edges.nnz)},
        "scores": None,
        "start": start,
        "notTokens": [
            i for i, node in enumerate(nodes) if node["kind"] == "l" and re.fullmatch(r"\d+_-\d+_\d+", node["id"])
        ],
        "notes": [*notes, "Made from a JSON file: what its pruning dropped is not here."],
        "fires": _fires(nodes),
        "cards": {},
        "suggested": [],
        "qParams": _q_params(content.get("qParams")),
    }


def _check_shape(content: Any) -> None:
    wanted = "expected 'metadata', 'nodes' and 'links', as crosstrace, circuit-tracer and Neuronpedia write them"
    if not isinstance(content, dict):
        raise ValueError(f"not an attribution graph: a JSON {type(content).__name__}; {wanted}")
    if "qParams" in content and "nodes" not in content:
        raise ValueError("a page's saved state, not a graph: open the page and load it there")
    for key in ("nodes", "links"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"not an attribution graph: no list {key!r}; {wanted}")
    if not content["nodes"]:
        raise ValueError("an attribution graph without nodes: there is nothing to show")
    if len(content["nodes"]) > MOST_NODES or len(content["links"]) > MOST_EDGES:
        raise ValueError(
            f"{len(content['nodes']):,} nodes and {len(content['links']):,} links are too many for a page (at most "
            f"{MOST_NODES:,} and {MOST_EDGES:,}): prune the graph further first"
        )


def _node(i: int, node: Any, tokens: list[str]) -> dict[str, Any]:
    if not isinstance(node, dict) or not isinstance(node.get("node_id"), str):
        raise ValueError(f"not an attribution graph: node {i} has no 'node_id'")
    kind = _KINDS.get(str(node.get("feature_type")), "f")
    position = _whole_number(node.get("ctx_idx"), 0)
    if not 0 <= position < max(len(tokens), MOST_NODES):
        raise ValueError(f"node {node['node_id']!r} is at position {position}, outside the prompt")
    layer = -1 if kind == "t" else _whole_number(node.get("layer"), 0)
    label = str(node.get("clerp") or node.get("ppClerp") or node.get("label") or "")
    values = {
        "id": node["node_id"],
        "kind": kind,
        "layer": layer,
        "position": position,
        "feature": -1,
        "label": label,
        "activation": _number(node.get("activation")),
        "probability": 0.0,
        "share": _number(node.get("influence")),
    }
    if kind == "f":
        # The id, not `feature`: some writers put a pairing of layer and feature there, others the feature itself.
        parts = re.fullmatch(r"\d+_(\d+)_\d+", node["node_id"])
        values["feature"] = int(parts[1]) if parts else _whole_number(node.get("feature"), -1)
    elif kind == "e":
        values["label"] = ""
    elif kind == "t":
        found = _EMBEDDING.match(label)
        values["label"] = tokens[position] if position < len(tokens) else found[1] if found else label
    else:
        probability = _number(node.get("token_prob"))
        if found := _OUTPUT.match(label):
            values["label"] = found[1]
            probability = probability if probability is not None else _number(found[2])
        values["probability"] = max(probability or 0.0, 0.0)
    return values


def _edges(nodes: list[dict[str, Any]], links: list[Any]) -> tuple[scipy.sparse.csr_array, list[str]]:
    """(n, n) rows of the links, and notes about those that had to be left out."""
    # The first node with an id wins: older writers give errors of layer l the id of a feature of layer 0.
    number: dict[str, int] = {}
    for i, node in enumerate(nodes):
        number.setdefault(node["id"], i)
    notes = []
    if (double := len(nodes) - len(number)) > 0:
        notes.append(f"{double:,} nodes share their id with another node; links of that id count for the first.")
        _rename_doubles(nodes)
    sources, targets, weights = [], [], []
    dangling = backwards = 0
    for link in links:
        if not isinstance(link, dict):
            raise ValueError("not an attribution graph: a link is not an object with 'source', 'target' and 'weight'")
        source, target = number.get(str(link.get("source"))), number.get(str(link.get("target")))
        weight = _number(link.get("weight"))
        if source is None or target is None or weight is None:
            dangling += 1
        elif nodes[target]["kind"] in "et" or (nodes[source]["kind"] in "fl" and source >= target):
            backwards += 1
        else:
            sources.append(source)
            targets.append(target)
            weights.append(weight)
    if dangling:
        notes.append(f"{dangling:,} links were left out: they have no weight or name a node that is not in the file.")
    if backwards:
        notes.append(f"{backwards:,} links were left out: they do not go from a lower layer to a higher one.")
    edges = scipy.sparse.coo_array((np.array(weights, dtype=np.float32), (targets, sources)), shape=(len(nodes),) * 2)
    rows = edges.tocsr()
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows, notes


def _rename_doubles(nodes: list[dict[str, Any]]) -> None:
    seen: dict[str, int] = defaultdict(int)
    for node in nodes:
        seen[node["id"]] += 1
        if seen[node["id"]] > 1:
            node["id"] = f"{node['id']}#{seen[node['id']]}"


def _influence(nodes: list[dict[str, Any]]) -> np.ndarray | None:
    """(n,) share of each node, from the cumulative shares; None where the file lacks some."""
    shares = np.array([node["share"] if node["share"] is not None else np.nan for node in nodes])
    needed = np.array([node["kind"] in "fe" for node in nodes], dtype=np.bool_)
    if not needed.any() or not np.isfinite(shares[needed]).all() or ((shares < 0) | (shares > 1 + 1e-6)).any():
        return None
    own = np.zeros(len(nodes))
    known = np.flatnonzero(np.isfinite(shares))
    reached = 0.0
    for share in np.unique(shares[known]):
        together = known[shares[known] == share]
        own[together] = (share - reached) / len(together)
        reached = float(share)
    return own


def _fires(nodes: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    fires: dict[str, list[list[float]]] = defaultdict(list)
    for node in nodes:
        if node["kind"] == "f" and node["activation"] is not None:
            fires[f"{node['layer']}/{node['feature']}"].append([node["position"], node["activation"]])
    return dict(fires)


def _q_params(given: Any) -> dict[str, Any]:
    """The saved state, if it has the usual shape; anything else is left out."""
    if not isinstance(given, dict):
        return {}
    kept: dict[str, Any] = {}
    pinned = given.get("pinnedIds")
    if isinstance(pinned, str):  # some viewers join the ids
        pinned = pinned.split(",")
    if isinstance(pinned, list):
        kept["pinnedIds"] = [str(node) for node in pinned]
    if isinstance(positions := given.get("positions"), dict):
        kept["positions"] = positions
    if isinstance(groups := given.get("supernodes"), list):
        kept["supernodes"] = [[str(part) for part in group] for group in groups if isinstance(group, list) and group]
    if isinstance(clicked := given.get("clickedId"), str):
        kept["clickedId"] = clicked
    return kept


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole_number(value: Any, otherwise: int) -> int:
    number = _number(value)
    return otherwise if number is None else int(number)
