"""The graph as JSON for Neuronpedia's uploader and Anthropic-style viewers.

Letters: L layers, P positions.
The shape is that of Neuronpedia's graph schema; comments say where a public viewer reads more into a field than its
name says.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from crosstrace.graphs.analysis.pruning import cumulative_influence, unpruned
from crosstrace.graphs.analysis.scores import graph_scores, what_scores_count
from crosstrace.graphs.exporters.attention import (
    REMAINDER,
    contributor_ids,
    head_values,
    qk_tracing_results,
    results_by_target,
)
from crosstrace.graphs.files import write_atomically
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.origins.json_origin import KEY as JSON_ORIGIN
from crosstrace.graphs.saved_state import SavedState
from crosstrace.graphs.viewer_ids import cantor_pairing, node_ids, scan_name, target_numbers, viewer_name


def write_json(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    slug: str | None = None,
    scan: str | None = None,
    state: SavedState | None = None,
) -> None:
    """Write what the masks keep (all of a raw graph) as `.json`; ASCII, no NaN.

    Args:
        graph: Raw or pruned.
        path: The file.
        slug: Name of the graph in viewers; from the prompt if None.
        scan: Name of the model in viewers; from the model's name if None.
        state: What is pinned and grouped when a viewer opens the graph.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
        ValueError: `slug` or `scan` holds more than letters, digits, `_`, `.` and `-`.

    Example:
        >>> write_json(prune(graph), "dallas.json", slug="dallas")
    """
    content = graph_as_json(graph, slug, scan, state)
    write_atomically(path, json.dumps(content, ensure_ascii=True, allow_nan=False).encode("ascii"))


def graph_as_json(
    graph: AttributionGraph, slug: str | None = None, scan: str | None = None, state: SavedState | None = None
) -> dict[str, Any]:
    """Return what `write_json` writes, as plain Python values; for the arguments see there.

    Raises:
        ValueError: `slug` or `scan` holds more than letters, digits, `_`, `.` and `-`.
    """
    ids = node_ids(graph)
    edges = graph.kept_edges().tocoo()
    content = {
        "metadata": _metadata(
            graph,
            viewer_name("slug", slug, _slug(graph), "graph"),
            scan_name(graph.model_name, scan),
        ),
        "qParams": _q_params(graph, state),
        "nodes": _nodes(graph, ids),
        # A float32 is exactly a Python float, so the weight read back is the edge itself.
        "links": [
            {"source": ids[source], "target": ids[target], "weight": weight}
            for source, target, weight in zip(edges.col.tolist(), edges.row.tolist(), edges.data.tolist(), strict=True)
        ],
    }
    if graph.attention is not None:
        _add_attention(graph, content, list(zip(edges.row.tolist(), edges.col.tolist(), strict=True)))
    return content


def _slug(graph: AttributionGraph) -> str:
    known = "" if graph.json_origin is None else graph.json_origin.slug
    return known or "-".join(graph.prompt.lower().split())[:60]


def _q_params(graph: AttributionGraph, state: SavedState | None) -> dict[str, Any]:
    nothing = SavedState([], []).q_params(graph)
    if state is None and graph.json_origin is not None:
        return nothing | graph.json_origin.q_params
    return nothing if state is None else state.q_params(graph)


_OF_CONTRIBUTORS = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp", "activation")


def _add_attention(graph: AttributionGraph, content: dict[str, Any], edges: list[tuple[int, int]]) -> None:
    """Add keys that viewers ignore (`head_loadings` of links, `attention`) and those that Neuronpedia knows."""
    attention = graph.attention
    assert attention is not None
    for link, (target, source) in zip(content["links"], edges, strict=True):
        if (values := head_values(attention, target, source)) is not None:
            link["head_loadings"] = [list(value) for value in values]
    ids, places = contributor_ids(graph), attention.places
    results = [qk_tracing_results(places, place, ids) for place in range(len(places))]
    fed = node_ids(graph)
    content["attention"] = {
        "n_heads": attention.loadings.heads.shape[2],
        "heads": [
            {
                **dict(zip(("layer", "head", "query", "key"), where, strict=True)),
                "carried": float(places.carried[place]),
                "net": float(places.net[place]),
                "score": float(places.scores[place]),
                "feeds": fed[int(places.fed[place])],
                **results[place],
            }
            for place, where in enumerate(places.where.tolist())
        ],
    }
    nodes = {node["node_id"]: node for node in content["nodes"]}
    dropped: dict[str, Any] = {}
    everything = {node["node_id"]: node for node in _nodes(unpruned(graph), node_ids(graph))}
    for node, place in results_by_target(graph).items():
        if (shown := nodes.get(fed[node])) is None:
            continue
        # Contributors have to be nodes here, which the remainder is not.
        shown["qk_tracing_results"] = {
            name: [entry for entry in entries if REMAINDER not in entry] for name, entries in results[place].items()
        }
        named = (part for entries in shown["qk_tracing_results"].values() for entry in entries for part in entry[:-1])
        dropped |= {name: everything[name] for name in named if name not in nodes}
    if dropped:
        content["qk_only_nodes"] = {
            name: {key: node[key] for key in _OF_CONTRIBUTORS} for name, node in sorted(dropped.items())
        }


def _metadata(graph: AttributionGraph, slug: str, scan: str) -> dict[str, Any]:
    # Imported here because it is slow to import.
    from importlib.metadata import PackageNotFoundError, version

    try:
        generator_version = version("crosstrace")
    except PackageNotFoundError:
        generator_version = "unknown"
    left_out = ("pruning", "guesses", "latents", JSON_ORIGIN)
    settings = {name: value for name, value in graph.settings.items() if name not in left_out}
    pruning = graph.settings.get("pruning", {}) if graph.node_mask is not None else {}
    ids, origin = node_ids(graph)[graph.layout.logits.start :], graph.json_origin
    counts: dict[str, int | None] = {
        "n_active_features": len(graph.active_features),
        "n_selected_features": len(graph.selected_features),
    }
    if origin is not None:
        counts = dict(zip(counts, (origin.n_active, origin.n_traced), strict=True))
    return {
        "slug": slug,
        "scan": scan,
        "prompt_tokens": graph.token_strings,
        "prompt": graph.prompt,
        # Viewers open with only the nodes whose influence is within this share; of a raw graph, with all.
        "node_threshold": pruning.get("node_threshold", 1.0),
        "schema_version": 1,
        "info": {
            "generator": {"name": "crosstrace", "version": generator_version},
            "model": graph.model_name,
            "transcoders": graph.transcoders_name,
        },
        "n_layers": graph.n_layers,
        "generation_settings": {
            **settings,
            **{name: value for name, value in counts.items() if value is not None},
        },
        "pruning_settings": pruning,
        # Of targets named by hand: the same for all, whatever their `token_prob`.
        "target_weights": dict(zip(ids, graph.logit_probabilities.tolist(), strict=True)),
        # Nodes have the text with other quotation marks, and all targets the layer above the last.
        "targets": {
            name: {"text": text, "layer": layer}
            for name, text, layer in zip(ids, graph.logit_strings, graph.logit_layers.tolist(), strict=True)
        },
        **_scores(graph),
    }


def _scores(graph: AttributionGraph) -> dict[str, Any]:
    if graph.json_origin is not None:
        return {} if graph.json_origin.scores is None else {"scores": graph.json_origin.scores}
    scores = _scores_of(graph)
    if graph.node_mask is not None:  # pruning drops most errors
        scores["whole"] = _scores_of(unpruned(graph))
    return {"scores": scores}


def _scores_of(graph: AttributionGraph) -> dict[str, Any]:
    # JSON has no NaN: a score of nothing is null.
    scores = {name: None if math.isnan(score) else score for name, score in graph_scores(graph)._asdict().items()}
    return {**scores, "counted": what_scores_count(graph)}


def _nodes(graph: AttributionGraph, ids: list[str]) -> list[dict[str, Any]]:
    layout = graph.layout
    influence = cumulative_influence(graph).tolist()
    activations = graph.activations[graph.selected_features].tolist()
    numbers = target_numbers(graph)
    tokens, targets = graph.names(raw=True)
    nodes = []
    for node in graph.kept_nodes():
        layer, position = graph.place_of(node)
        own: dict[str, Any]
        match layout.kind(node):
            case "feature":
                feature = graph.feature_of(node)[2]
                own = {
                    "feature": cantor_pairing(layer, feature),
                    "layer": str(layer),
                    "feature_type": "cross layer transcoder",
                    "jsNodeId": f"{layer}_{feature}-{position}",
                    "clerp": graph.name_of(node),
                    "activation": activations[layout.feature_of(node)],
                }
            case "error":
                own = {
                    "feature": -1,
                    "layer": str(layer),
                    "feature_type": "mlp reconstruction error",
                    "jsNodeId": f"{layer}_-1-{position}",
                    "clerp": f'Err: mlp "{_quotable(tokens[position])}"',
                }
            case "token":
                own = {
                    # The position: viewers drop a number that most positions share, and a token may repeat.
                    "feature": position,
                    "layer": "E",
                    "feature_type": "embedding",
                    "jsNodeId": f"E_{int(graph.tokens[position])}-{position}",
                    "clerp": f'Emb: "{_quotable(tokens[position])}"',
                }
            case _:
                i = layout.logit_of(node)
                shown = graph.probability_of(i)
                # A contrast, a vector or a feature has no probability: its weight stands there.
                probability = float(graph.logit_probabilities[i]) if shown is None else shown
                own = {
                    "feature": numbers[i],
                    "layer": str(graph.n_layers + 1),
                    "feature_type": "logit",
                    "jsNodeId": f"L_{numbers[i]}-{position}",
                    "clerp": f'Output "{_quotable(targets[i])}" (p={probability:.3f})',
                    "token_prob": probability,
                    "is_target_logit": i == 0,
                }
        common = {"token_prob": 0.0, "is_target_logit": False, "activation": None, "run_idx": 0, "reverse_ctx_idx": 0}
        nodes.append({"node_id": ids[node], "ctx_idx": position, "influence": influence[node], **common, **own})
    return nodes


def _quotable(token: str) -> str:
    # Viewers take what stands between the first two double quotes for the token, and what follows the first "(p=" for
    # the probability: inside a token both are written with look-alikes. Other exports have the token as it is.
    return token.replace('"', "”").replace("(p=", "(p＝")
