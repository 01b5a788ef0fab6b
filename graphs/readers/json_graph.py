"""An `AttributionGraph` from the JSON of crosstrace, circuit-tracer or Neuronpedia.

The file holds what pruning kept, and so do the graph's masks: error and token nodes that the file lacks are masked out.
Of crosstrace's own JSON everything comes back as it was written, edges to the bit. What the file cannot know (`omitted`,
`unattributed`, `target_values`) is zero, and `graph.json_origin` says so to whatever would use it.

Letters: m nodes of the file, n nodes of the graph, K features, L layers, P positions.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse
import torch

from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.analysis.pruning import entry_shares
from crosstrace.graphs.cards.labels import is_guess
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.layout import NodeLayout
from crosstrace.graphs.origins.json_origin import KEY, JsonOrigin
from crosstrace.graphs.readers.json_content import JsonContent, JsonNode, json_content, load_json, mapping, number
from crosstrace.graphs.saved_state import origin_of
from crosstrace.graphs.viewer_ids import feature_name, node_ids

MOST_LAYERS = 10_000
MOST_NODES = 5_000_000
"""Of the layout, most of which are error nodes that the file does not hold."""
_LARGEST = float(np.finfo(np.float32).max)
_COUNTS = ("n_active_features", "n_selected_features")
# What `write_json` leaves out of a graph's settings, or what is told from the rest of the file.
_NOT_SETTINGS = ("pruning", "guesses", "latents", "fingerprints", KEY, *_COUNTS)


class InexpressibleError(ValueError):
    """A JSON graph holds what a graph of transcoders cannot; its page can be made all the same."""


def read_json_graph(path: str | os.PathLike[str]) -> AttributionGraph:
    """Read a graph from a `.json` file.

    Raises:
        OSError: There is no such file.
        InexpressibleError: It holds what a graph of transcoders cannot express; one line that names the node.
        ValueError: It is not an attribution graph; one line that names the file and says why.

    Example:
        >>> graph = read_json_graph("dallas.json")
        >>> graph.completeness_error()    # not known
        nan
    """
    content = load_json(path)
    try:
        return graph_of_content(json_content(content))
    except InexpressibleError as problem:
        raise InexpressibleError(f"{path}: {problem}; crosstrace view {path} opens it") from None
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def graph_from_json(content: Any) -> AttributionGraph:
    """Return the graph in the value of a JSON file; see `read_json_graph`.

    Raises:
        InexpressibleError: It holds what a graph of transcoders cannot express.
        ValueError: It is not an attribution graph.
    """
    return graph_of_content(json_content(content))


def graph_of_content(content: JsonContent) -> AttributionGraph:
    """Return the graph of what was read from a file.

    Raises:
        InexpressibleError: It holds what a graph of transcoders cannot express; the message names the node.
    """
    L, knows_layers = _n_layers(content)
    _check_nodes(content.nodes)
    features, targets = ([node for node in content.nodes if node.kind == kind] for kind in "fl")
    layout = NodeLayout(len(features), L, len(content.tokens), len(targets))
    if layout.n > MOST_NODES:
        raise InexpressibleError(f"{L:,} layers of {layout.n_positions:,} positions are more than a graph holds")
    place = _places(content.nodes, layout)
    mask = torch.zeros(layout.n, dtype=torch.bool)
    mask[torch.from_numpy(place)] = True
    links = content.edges.tocoo()
    edges = scipy.sparse.coo_array((links.data, (place[links.row], place[links.col])), shape=(layout.n,) * 2).tocsr()
    kept = edges.copy()
    kept.data = np.ones(kept.nnz, dtype=np.bool_)
    nothing = torch.zeros(layout.n)
    about = [mapping(mapping(content.metadata.get("targets")).get(node.id)) for node in targets]
    numbers = [token for node in targets if (token := _token_of(node)) is not None]  # those of all of them
    origin = _origin(content, knows_layers)
    try:
        graph = AttributionGraph(
            active_features=torch.tensor([(f.layer, f.position, f.feature) for f in features]).reshape(-1, 3),
            activations=torch.tensor([node.activation for node in features], dtype=torch.float64),
            selected_features=torch.arange(len(features)),
            tokens=torch.tensor(_token_ids(content)),
            token_strings=_token_strings(content),
            logit_tokens=torch.tensor(numbers),
            logit_strings=[str(known.get("text", node.label)) for node, known in zip(targets, about, strict=True)],
            logit_probabilities=torch.tensor([node.weight for node in targets], dtype=torch.float64),
            logit_positions=torch.tensor([node.position for node in targets]),
            logit_layers=torch.tensor([_layer_of(known, L) for known in about]),
            n_layers=L,
            edges=edges,
            unattributed=nothing,
            omitted=nothing,
            omitted_magnitude=nothing,
            target_values=nothing,
            prompt=content.prompt,
            model_name=content.model,
            transcoders_name=content.transcoders,
            settings=_settings(content, features, origin),
            feature_labels=["" if is_guess(node.label) else node.label for node in features],
            node_mask=mask,
            edge_mask_sparse=kept,
            target_probabilities=torch.tensor(
                [node.probability if token >= 0 else 0.0 for node, token in zip(targets, numbers, strict=True)],
                dtype=torch.float64,
            ),
        )
    except ValueError as problem:  # a number beyond float32, spans outside of the prompt
        raise InexpressibleError(str(problem)) from None
    return _with_names_of_nodes(replace(graph, influence=_influence(graph, content.entries, place)), content, place)


def _n_layers(content: JsonContent) -> tuple[int, bool]:
    """L, and whether the file says it: in so many words, or by its targets, which stand in layer L + 1."""
    given = content.metadata.get("n_layers")
    if isinstance(given, int) and content.n_layers <= given <= MOST_LAYERS:
        return int(given), True
    named = {number(node.given.get("layer")) for node in content.nodes if node.kind == "l"}
    said = named.pop() if len(named) == 1 else None
    if said is not None and said.is_integer() and content.n_layers < said <= MOST_LAYERS:
        return int(said) - 1, True
    return content.n_layers, False


def _check_nodes(nodes: Sequence[JsonNode]) -> None:
    seen: set[tuple[str | int, ...]] = set()
    for node in nodes:
        if problem := _problem(node):
            raise InexpressibleError(f"node {node.id!r} {problem}")
        place = (node.kind, node.layer, node.position, node.feature)
        if node.kind != "l" and place in seen:
            raise InexpressibleError(f"node {node.id!r} is at the place of another node")
        seen.add(place)


def _problem(node: JsonNode) -> str:
    """Why a graph of transcoders cannot have this node; "" if it can."""
    if node.other_type:
        known = "has no type" if node.other_type == "no type" else f"is of type {node.other_type!r}"
        return f"{known}, which a graph of transcoders does not have"
    if not _is_whole(node.given.get("ctx_idx")):
        return "has no position"
    if node.kind in "fe" and not (_is_whole(node.given.get("layer")) and 0 <= node.layer < MOST_LAYERS):
        return "has no layer"
    if node.kind == "f" and not 0 <= node.feature < 2**62:
        return "has no feature number"
    if node.kind == "f" and (node.activation is None or abs(node.activation) > _LARGEST):
        return "has no activation"
    if node.kind == "l" and _token_of(node) is None:
        return "does not say which token it is"
    return ""


def _is_whole(value: Any) -> bool:
    found = number(value)
    return found is not None and found.is_integer()


def _places(nodes: Sequence[JsonNode], layout: NodeLayout) -> np.ndarray:
    """(m,) where each node stands in the graph; features and targets are in its order."""
    feature = target = 0
    places = []
    for node in nodes:
        match node.kind:
            case "f":
                places.append(layout.feature_index(feature))
                feature += 1
            case "e":
                places.append(layout.error_index(node.layer, node.position))
            case "t":
                places.append(layout.token_index(node.position))
            case _:
                places.append(layout.logit_index(target))
                target += 1
    return np.array(places, dtype=np.int64)


def _token_of(node: JsonNode) -> int | None:
    """A target's token; -1 for one that is not a token, None where the file does not say."""
    if parts := re.fullmatch(r"[^_]+_(-?\d{1,18})_\d+(#\d+)?", node.id):
        return max(int(parts[1]), -1)
    given = number(node.given.get("feature"))
    return int(given) if given is not None and 0 <= given < 2**62 else None


def _layer_of(known: Mapping[str, Any], L: int) -> int:
    """The layer at which a target is read."""
    layer = known.get("layer")
    return layer if isinstance(layer, int) and 0 <= layer <= L else L


def _token_ids(content: JsonContent) -> list[int]:
    """P ids of the prompt's tokens, from the ids of their nodes; -1 where those do not say."""
    found = [-1] * len(content.tokens)
    for node in content.nodes:
        if node.kind == "t" and (parts := re.fullmatch(r"E_(\d{1,18})_\d+", node.id)):
            found[node.position] = int(parts[1])
    return found


def _token_strings(content: JsonContent) -> list[str]:
    """P strings; a token that the prompt's list lacks is named by its node."""
    found = list(content.tokens)
    named = len(mapping(content.metadata).get("prompt_tokens") or ())
    for node in content.nodes:
        if node.kind == "t" and node.position >= named:
            found[node.position] = node.label
    return found


def _settings(content: JsonContent, features: Sequence[JsonNode], origin: JsonOrigin) -> dict[str, Any]:
    settings = {name: _finite(value) for name, value in content.settings.items() if name not in _NOT_SETTINGS}
    if fingerprints := origin_of({"metadata": content.metadata}).fingerprints:
        settings["fingerprints"] = fingerprints
    pruning = mapping(content.metadata.get("pruning_settings"))
    thresholds = {name: number(pruning.get(name)) for name in ("node_threshold", "edge_threshold")}
    if all(value is not None and 0 <= value <= 1 for value in thresholds.values()):
        settings["pruning"] = thresholds
    if guesses := {feature_name(node.layer, node.feature): node.label for node in features if is_guess(node.label)}:
        settings["guesses"] = guesses
    return {**settings, KEY: origin.as_settings()}


def _origin(content: JsonContent, knows_layers: bool) -> JsonOrigin:
    n_active, n_traced = (
        int(value) if (value := number(content.settings.get(name))) is not None else None for name in _COUNTS
    )
    attention = ["What the file holds about attention is not read; it is in the .safetensors file."]
    return JsonOrigin(
        scores=_scores(content.metadata.get("scores")),
        n_active=n_active,
        n_traced=n_traced,
        knows_layers=knows_layers,
        knows_influence=content.entries is not None,
        slug=str(content.metadata.get("slug") or ""),
        q_params=_finite(content.q_params),
        notes=(*content.notes, *(attention if content.has_attention else [])),
    )


def _scores(given: Any) -> dict[str, Any] | None:
    known = mapping(given)
    if "replacement" not in known or "completeness" not in known:
        return None
    scores: dict[str, Any] = {name: number(known[name]) for name in ("replacement", "completeness")}
    scores["counted"] = str(known.get("counted") or "")
    whole = _scores(known.get("whole")) if "whole" in known else None
    return scores if whole is None else scores | {"whole": whole}


def _influence(graph: AttributionGraph, entries: np.ndarray | None, place: np.ndarray) -> torch.Tensor:
    """(n,) the file's cumulative shares, 0 for nodes it gives none for (they always stay) and 1 for those it lacks."""
    if entries is None:
        return torch.from_numpy(entry_shares(spread(graph.edges, row_scale(graph.edges), target_weights(graph))))
    found = np.ones(graph.n)
    found[place] = np.nan_to_num(entries)
    return torch.from_numpy(found)


def _with_names_of_nodes(graph: AttributionGraph, content: JsonContent, place: np.ndarray) -> AttributionGraph:
    """The graph with what is pinned and grouped under its own ids of the nodes."""
    ids = node_ids(graph)
    own = {node.id: ids[at] for node, at in zip(content.nodes, place.tolist(), strict=True)}
    origin = graph.json_origin
    if origin is None or all(given == name for given, name in own.items()):
        return graph
    q_params = dict(origin.q_params)
    for name in ("pinnedIds", "supernodes"):
        if name in q_params:
            q_params[name] = [
                own.get(part, part) if isinstance(part, str) else [*part[:1], *(own.get(p, p) for p in part[1:])]
                for part in q_params[name]
            ]
    if "positions" in q_params:
        q_params["positions"] = {own.get(name, name): value for name, value in q_params["positions"].items()}
    if "clickedId" in q_params:
        q_params["clickedId"] = own.get(q_params["clickedId"], q_params["clickedId"])
    origin = replace(origin, q_params=q_params)
    return replace(graph, settings={**graph.settings, KEY: origin.as_settings()})


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have though Python reads them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return {name: _finite(part) for name, part in value.items()} if isinstance(value, dict) else value
