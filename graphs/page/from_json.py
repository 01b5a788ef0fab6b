"""The content of the page of a graph in JSON: crosstrace's own, circuit-tracer's, Neuronpedia's, Anthropic-style ones.

Such a file holds a pruned graph, so the page can only prune it further. Where nodes carry `influence` (the cumulative
share at which each enters), it is taken from the file; otherwise the page computes it from the links.

Letters: n nodes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from crosstrace.graphs.conversations.spans import spans_of
from crosstrace.graphs.page.contents import PageData, PageNode, PageSource, firing_places, page_contents, page_label
from crosstrace.graphs.page.limits import LIMITS, PageLimits
from crosstrace.graphs.saved_state import origin_of
from crosstrace.graphs.text import distinct, marked

_KINDS = {"embedding": "t", "logit": "l", "mlp reconstruction error": "e", "cross layer transcoder": "f"}
_LARGEST = float(np.finfo(np.float32).max)
_OUTPUT = re.compile(r'^Output "(.*)" \(p=([0-9.eE+-]+)\)', re.DOTALL)
_EMBEDDING = re.compile(r'^Emb: "(.*)"$', re.DOTALL)


@dataclass
class _JsonNode(PageNode):
    share: float | None = None
    """Its cumulative influence, where the file has it."""
    other_type: str = ""
    """The node's type in the file, if it is none of those that this page has a name for."""


def read_json_page(path: str | os.PathLike[str], limits: PageLimits = LIMITS) -> PageData:
    """Return the content of the page of a `.json` graph.

    Raises:
        OSError: There is no such file.
        ValueError: It is too large, not JSON, or not an attribution graph; one line that names the file and says which.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a graph file' if file.is_dir() else 'no such graph file'}")
    size = file.stat().st_size
    if size > limits.json_bytes:
        raise ValueError(
            f"{path}: {size / 1e6:,.0f} MB is too much for a page (at most {limits.json_bytes / 1e6:,.0f} MB): prune the "
            "graph first, for example crosstrace prune RAW --node-threshold 0.6 -o page.html"
        )
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: not a JSON file ({' '.join(str(problem).split())})") from None
    try:
        return page_data_from_json(content, limits)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def page_data_from_json(content: Any, limits: PageLimits = LIMITS) -> PageData:
    """Return the same as `page_data`, from the value in a graph's JSON file.

    Raises:
        ValueError: It is not an attribution graph, or too large; the message says what is wrong.
    """
    _check_shape(content, limits)
    metadata = _object(content.get("metadata"))
    given_tokens = metadata.get("prompt_tokens") or []
    if not isinstance(given_tokens, list):
        raise ValueError("not an attribution graph: 'prompt_tokens' in 'metadata' is not a list")
    tokens = [str(token) for token in given_tokens]
    nodes = [_node(i, node, tokens, limits) for i, node in enumerate(content["nodes"])]
    # Targets that were named by hand weigh the same, whatever their probability.
    weights = _object(metadata.get("target_weights"))
    for node in nodes:
        if node.kind == "l" and (weight := _number(weights.get(node.id))) is not None:
            node.probability = max(weight, 0.0)
    tokens += [""] * (max((node.position for node in nodes), default=-1) + 1 - len(tokens))
    n_layers = 1 + max((node.layer for node in nodes if node.kind in "fe"), default=-1)
    spans = spans_of(_object(metadata.get("generation_settings")), len(tokens))
    template = frozenset[int]() if spans is None else spans.template
    names = [marked(name) if place in template else name for place, name in enumerate(distinct(tokens))]
    for node in nodes:
        if node.kind == "l":
            node.layer = n_layers
        elif node.kind == "t":
            node.label = page_label(node.label, names[node.position])
    # Features by layer, then errors, tokens and targets: every source comes before its targets, as in `NodeLayout`.
    # Within a layer biases come first, then what other tools have for attention, then the MLP.
    nodes.sort(key=lambda node: ("fetl".index(node.kind), node.layer, _place_in_layer(node), node.position))
    edges, notes = _edges(nodes, content["links"])
    notes += _type_notes(nodes)
    influence = _influence(nodes)
    for node in nodes:
        node.is_token = node.kind != "l" or re.fullmatch(r"\d+_-\d+_\d+", node.id) is None
    fires = [(node, node.activation) for node in nodes if node.kind == "f" and node.activation is not None]
    info = _object(metadata.get("info"))
    prompt = str(metadata.get("prompt") or "".join(tokens))
    return page_contents(
        PageSource(
            prompt=prompt,
            model=str(info.get("model") or metadata.get("scan") or ""),
            transcoders=str(info.get("transcoders") or ""),
            fingerprints=origin_of(content).fingerprints,
            tokens=tokens,
            names=names,
            n_layers=n_layers,
            nodes=nodes,
            edges=edges,
            influence=influence,
            influence_total=1.0 if influence is None else max(1.0, float(influence.sum())),
            whole={"nodes": len(nodes), "edges": int(edges.nnz), "untraced": 0},
            # With a threshold of 1 the page shows all that the file holds.
            start={"node": 1.0, "edge": 1.0, "nodeLimit": 1.0},
            fires=firing_places(
                ((node.layer, node.position, node.feature) for node, _ in fires), (value for _, value in fires)
            ),
            slug=str(metadata.get("slug") or ""),
            template=None if spans is None else sorted(template),
            notes=[*notes, "Made from a JSON file: what its pruning dropped is not here."],
            q_params=_q_params(content.get("qParams")),
        )
    )


def _check_shape(content: Any, limits: PageLimits) -> None:
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
    if len(content["nodes"]) > limits.most_nodes or len(content["links"]) > limits.most_edges:
        raise ValueError(
            f"{len(content['nodes']):,} nodes and {len(content['links']):,} links are too many for a page (at most "
            f"{limits.most_nodes:,} and {limits.most_edges:,}): prune the graph further first"
        )


def _node(i: int, node: Any, tokens: list[str], limits: PageLimits) -> _JsonNode:
    if not isinstance(node, dict) or not isinstance(node.get("node_id"), str):
        raise ValueError(f"not an attribution graph: node {i} has no 'node_id'")
    kind, other_type = _kind(node.get("feature_type"))
    position = _whole_number(node.get("ctx_idx"), 0)
    if not 0 <= position < max(len(tokens), limits.most_nodes):
        raise ValueError(f"node {node['node_id']!r} is at position {position}, outside the prompt")
    found = _JsonNode(
        node["node_id"],
        kind,
        -1 if kind == "t" else _whole_number(node.get("layer"), 0),
        position,
        label=str(node.get("clerp") or node.get("ppClerp") or node.get("label") or ""),
        activation=_number(node.get("activation")),
        share=_number(node.get("influence")),
        other_type=other_type,
    )
    if kind == "f":
        # The id, not `feature`: some writers put a pairing of layer and feature there, others the feature itself.
        parts = re.fullmatch(r"\d+_(\d+)_\d+", found.id)
        found.feature = int(parts[1]) if parts else _whole_number(node.get("feature"), -1)
        if other_type:
            name = found.label or (f"L{found.layer}/{found.feature}" if found.feature >= 0 else "")
            found.label = f"{other_type}: {name}" if name else other_type
    elif kind == "e":
        found.label = other_type
    elif kind == "t":
        words = _EMBEDDING.match(found.label)
        found.label = tokens[position] if position < len(tokens) else words[1] if words else found.label
    else:
        probability = _number(node.get("token_prob"))
        if words := _OUTPUT.match(found.label):
            found.label = words[1]
            probability = probability if probability is not None else _number(words[2])
        found.chance = found.probability = max(probability or 0.0, 0.0)
    return found


def _kind(feature_type: Any) -> tuple[str, str]:
    """The page's kind of node for a type, and the type's name if the page has none for it."""
    name = feature_type if isinstance(feature_type, str) and feature_type else "no type"
    if kind := _KINDS.get(name.lower()):
        return kind, ""
    return "e" if name.lower().endswith("error") else "f", name[:40]


def _place_in_layer(node: _JsonNode) -> int:
    if not node.other_type:
        return 2
    return 0 if "bias" in node.other_type.lower() else 1


def _type_notes(nodes: list[_JsonNode]) -> list[str]:
    """Notes that name the types of nodes that this page does not know."""
    counts = Counter((node.other_type, node.kind) for node in nodes if node.other_type)
    return [
        f"Nodes of another type: {count:,} of type “{name}”, drawn as {'errors' if kind == 'e' else 'features'}."
        if name != "no type"
        else f"{count:,} nodes without a type are drawn as features."
        for (name, kind), count in sorted(counts.items())
    ]


def _edges(nodes: list[_JsonNode], links: list[Any]) -> tuple[scipy.sparse.csr_array, list[str]]:
    """(n, n) rows of the links, and notes about those that had to be left out."""
    # The first node with an id wins: older writers give errors of layer l the id of a feature of layer 0.
    number: dict[str, int] = {}
    for i, node in enumerate(nodes):
        number.setdefault(node.id, i)
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
        elif nodes[target].kind in "et" or (nodes[source].kind in "fl" and source >= target):
            backwards += 1
        else:
            sources.append(source)
            targets.append(target)
            weights.append(weight)
    if dangling:
        notes.append(f"{dangling:,} links were left out: they have no weight or name a node that is not in the file.")
    if backwards:
        notes.append(f"{backwards:,} links were left out: they do not go from a lower layer to a higher one.")
    edges = scipy.sparse.coo_array((np.array(weights, dtype=np.float64), (targets, sources)), shape=(len(nodes),) * 2)
    rows = edges.tocsr()
    rows.sum_duplicates()  # in float64: two weights of one edge may add up to more than float32 holds
    too_large = np.abs(rows.data) > _LARGEST
    if too_large.any():
        count = f"{int(too_large.sum()):,} links were"
        notes.append(f"{count} left out: their weights are beyond {_LARGEST:.1e}, the largest that float32 holds.")
        rows.data[too_large] = 0.0
    rows = rows.astype(np.float32)
    rows.eliminate_zeros()
    return rows, notes


def _rename_doubles(nodes: list[_JsonNode]) -> None:
    seen: dict[str, int] = defaultdict(int)
    for node in nodes:
        seen[node.id] += 1
        if seen[node.id] > 1:
            node.id = f"{node.id}#{seen[node.id]}"


def _influence(nodes: list[_JsonNode]) -> np.ndarray | None:
    """(n,) share of each node, from the cumulative shares; None where the file lacks some."""
    shares = np.array([node.share if node.share is not None else np.nan for node in nodes])
    needed = np.array([node.kind in "fe" for node in nodes], dtype=np.bool_)
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


def _q_params(given: Any) -> dict[str, Any]:
    """The saved state, if it has the usual shape; what has another is left out."""
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
