"""What a graph's JSON file holds: crosstrace's own, circuit-tracer's, Neuronpedia's, Anthropic-style ones.

Nodes and links are read as they are, whatever made them; `json_graph.py` makes a graph of them where they are of
transcoders, `page/from_json.py` a page of any.

Letters: m nodes of the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

MOST_POSITIONS = 200_000
"""A position beyond this, and beyond the prompt's tokens, is a mistake."""
_KINDS = {"embedding": "t", "logit": "l", "mlp reconstruction error": "e", "cross layer transcoder": "f"}
_LARGEST = float(np.finfo(np.float32).max)
_OUTPUT = re.compile(r'^Output "(.*)" \(p=([0-9.eE+-]+)\)', re.DOTALL)
_EMBEDDING = re.compile(r'^Emb: "(.*)"$', re.DOTALL)


@dataclass
class JsonNode:
    """A node of the file.

    Attributes:
        id: Its id; where several nodes have the same, all but the first have `#2`, `#3`, … behind it.
        kind: `f`, `e`, `t` or `l`; what is of another type counts as an error where its type says so, else as a feature.
        layer: -1 for tokens.
        position: Where it is.
        given: The node as it stands in the file.
        feature: Its number; -1 where there is none.
        label: Of tokens and targets, their text.
        activation: None where the file has none.
        probability: Of a target; 0 where the file has none.
        weight: Of a target in influence.
        share: The cumulative share of influence at which it enters; None where the file has none.
        other_type: Its type, if it is none of those that crosstrace writes.
    """

    id: str
    kind: str
    layer: int
    position: int
    given: Mapping[str, Any]
    feature: int = -1
    label: str = ""
    activation: float | None = None
    probability: float = 0.0
    weight: float = 0.0
    share: float | None = None
    other_type: str = ""


@dataclass(frozen=True)
class JsonContent:
    """What a file holds.

    Attributes:
        metadata: Of the file; empty where it has none.
        tokens: The prompt's tokens, "" where the file does not name one.
        nodes: m of them. Features by layer, then errors, tokens and targets: every source stands before its targets, as
            in `NodeLayout`. Targets keep the file's order.
        edges: (m, m) float32, [target, source].
        entries: (m,) float64, the cumulative share of influence at which each node enters, NaN where the file has none;
            None where it lacks that of a feature or an error.
        notes: Sentences on what could not be read.
        q_params: What is pinned and grouped, so far as it has the usual shape.
        has_attention: Whether the file says something about attention, which is not read.
    """

    metadata: Mapping[str, Any]
    tokens: list[str]
    nodes: list[JsonNode]
    edges: scipy.sparse.csr_array
    entries: np.ndarray | None
    notes: list[str]
    q_params: dict[str, Any]
    has_attention: bool = False

    @property
    def model(self) -> str:
        """The model's name; "" if unknown."""
        return str(self.info.get("model") or self.metadata.get("scan") or "")

    @property
    def transcoders(self) -> str:
        """The transcoders' name; "" if unknown."""
        return str(self.info.get("transcoders") or "")

    @property
    def prompt(self) -> str:
        """The prompt as text."""
        return str(self.metadata.get("prompt") or "".join(self.tokens))

    @property
    def info(self) -> dict[str, Any]:
        """What the file says of where it comes from."""
        return mapping(self.metadata.get("info"))

    @property
    def settings(self) -> dict[str, Any]:
        """How the graph was made, as the file says."""
        return mapping(self.metadata.get("generation_settings"))

    @property
    def n_layers(self) -> int:
        """As many layers as its features and errors are in."""
        return 1 + max((node.layer for node in self.nodes if node.kind in "fe"), default=-1)


def load_json(path: str | os.PathLike[str]) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: There is no such file.
        ValueError: It is not JSON; one line that names it.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a graph file' if file.is_dir() else 'no such graph file'}")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: not a JSON file ({' '.join(str(problem).split())})") from None


def json_content(content: Any) -> JsonContent:
    """Read the value in a graph's JSON file.

    Raises:
        ValueError: It is not an attribution graph; the message says what is wrong.
    """
    check_shape(content)
    metadata = mapping(content.get("metadata"))
    given_tokens = metadata.get("prompt_tokens") or []
    if not isinstance(given_tokens, list):
        raise ValueError("not an attribution graph: 'prompt_tokens' in 'metadata' is not a list")
    tokens = [str(token) for token in given_tokens]
    nodes = [_node(i, node, tokens) for i, node in enumerate(content["nodes"])]
    # Targets that were named by hand weigh the same, whatever their probability.
    weights = mapping(metadata.get("target_weights"))
    for node in nodes:
        if node.kind == "l" and (weight := number(weights.get(node.id))) is not None:
            node.weight = max(weight, 0.0)
    tokens += [""] * (max((node.position for node in nodes), default=-1) + 1 - len(tokens))
    # Within a layer biases come first, then what other tools have for attention, then the MLP.
    nodes.sort(key=_order)
    edges, notes = _edges(nodes, content["links"])
    notes += _type_notes(nodes)
    q_params = _q_params(content.get("qParams"))
    return JsonContent(metadata, tokens, nodes, edges, _entries(nodes), notes, q_params, "attention" in content)


def check_shape(content: Any) -> None:
    """Check that a value has a graph's nodes and links.

    Raises:
        ValueError: It has not; the message says what it is.
    """
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


def _order(node: JsonNode) -> tuple[int, ...]:
    kind = "fetl".index(node.kind)
    return (kind,) if node.kind == "l" else (kind, node.layer, _place_in_layer(node), node.position, node.feature)


def _node(i: int, node: Any, tokens: list[str]) -> JsonNode:
    if not isinstance(node, dict) or not isinstance(node.get("node_id"), str):
        raise ValueError(f"not an attribution graph: node {i} has no 'node_id'")
    kind, other_type = _kind(node.get("feature_type"))
    position = _whole_number(node.get("ctx_idx"), 0)
    if not 0 <= position < max(len(tokens), MOST_POSITIONS):
        raise ValueError(f"node {node['node_id']!r} is at position {position}, outside the prompt")
    found = JsonNode(
        node["node_id"],
        kind,
        -1 if kind == "t" else _whole_number(node.get("layer"), 0),
        position,
        node,
        label=str(node.get("clerp") or node.get("ppClerp") or node.get("label") or ""),
        activation=number(node.get("activation")),
        share=number(node.get("influence")),
        other_type=other_type,
    )
    if kind == "f":
        # The id, not `feature`: some writers put a pairing of layer and feature there, others the feature itself.
        parts = re.fullmatch(r"\d+_(\d+)_\d+", found.id)
        found.feature = int(parts[1]) if parts else _whole_number(node.get("feature"), -1)
    elif kind == "t":
        words = _EMBEDDING.match(found.label)
        found.label = tokens[position] if position < len(tokens) else words[1] if words else found.label
    elif kind == "l":
        probability = number(node.get("token_prob"))
        if words := _OUTPUT.match(found.label):
            found.label = words[1]
            probability = probability if probability is not None else number(words[2])
        found.weight = found.probability = max(probability or 0.0, 0.0)
    return found


def _kind(feature_type: Any) -> tuple[str, str]:
    """The kind of node for a type, and the type's name if crosstrace has none for it."""
    name = feature_type if isinstance(feature_type, str) and feature_type else "no type"
    if kind := _KINDS.get(name.lower()):
        return kind, ""
    return "e" if name.lower().endswith("error") else "f", name[:40]


def _place_in_layer(node: JsonNode) -> int:
    if not node.other_type:
        return 2
    return 0 if "bias" in node.other_type.lower() else 1


def _type_notes(nodes: list[JsonNode]) -> list[str]:
    """Notes that name the types of nodes that crosstrace does not know."""
    counts = Counter((node.other_type, node.kind) for node in nodes if node.other_type)
    return [
        f"Nodes of another type: {count:,} of type “{name}”, drawn as {'errors' if kind == 'e' else 'features'}."
        if name != "no type"
        else f"{count:,} nodes without a type are drawn as features."
        for (name, kind), count in sorted(counts.items())
    ]


def _edges(nodes: list[JsonNode], links: list[Any]) -> tuple[scipy.sparse.csr_array, list[str]]:
    """(m, m) rows of the links, and notes about those that had to be left out."""
    # The first node with an id wins: older writers give errors of layer l the id of a feature of layer 0.
    of_id: dict[str, int] = {}
    for i, node in enumerate(nodes):
        of_id.setdefault(node.id, i)
    notes = []
    if (double := len(nodes) - len(of_id)) > 0:
        notes.append(f"{double:,} nodes share their id with another node; links of that id count for the first.")
        _rename_doubles(nodes)
    sources, targets, weights = [], [], []
    dangling = backwards = 0
    for link in links:
        if not isinstance(link, dict):
            raise ValueError("not an attribution graph: a link is not an object with 'source', 'target' and 'weight'")
        source, target = of_id.get(str(link.get("source"))), of_id.get(str(link.get("target")))
        weight = number(link.get("weight"))
        if source is None or target is None or weight is None:
            dangling += 1
        elif (
            nodes[target].kind in "et" or nodes[source].kind == "l" or (nodes[source].kind == "f" and source >= target)
        ):
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


def _rename_doubles(nodes: list[JsonNode]) -> None:
    seen: dict[str, int] = defaultdict(int)
    for node in nodes:
        seen[node.id] += 1
        if seen[node.id] > 1:
            node.id = f"{node.id}#{seen[node.id]}"


def _entries(nodes: list[JsonNode]) -> np.ndarray | None:
    """(m,) cumulative shares of influence; None where the file lacks some that matter."""
    shares = np.array([node.share if node.share is not None else np.nan for node in nodes])
    needed = np.array([node.kind in "fe" for node in nodes], dtype=np.bool_)
    if not needed.any() or not np.isfinite(shares[needed]).all() or ((shares < 0) | (shares > 1 + 1e-6)).any():
        return None
    return shares


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


def mapping(value: Any) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _whole_number(value: Any, otherwise: int) -> int:
    found = number(value)
    return otherwise if found is None else int(found)
