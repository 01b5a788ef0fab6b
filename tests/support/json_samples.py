"""Graph JSON as other tools write it, and the same with junk in it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

JUNK = [None, 5, -1, 1e400, "x", "", [], {}, [1], {"a": 1}, True, "NaN", float("nan"), 10**400, "\ud800", -(10**12)]


def foreign() -> dict[str, Any]:
    """What circuit-tracer writes: errors of layer l have the id of feature l in layer 0."""
    node = {"run_idx": 0, "reverse_ctx_idx": 0, "token_prob": 0.0, "is_target_logit": False}
    return {
        "metadata": {"slug": "x", "scan": "gemma", "prompt_tokens": ["a", " b"], "prompt": "a b"},
        "qParams": {"pinnedIds": ["1_7_1"], "supernodes": [["name", "1_7_1"], 3], "clickedId": 5},
        "nodes": [
            {**node, "node_id": "1_7_1", "layer": "1", "ctx_idx": 1, "feature": 43, "feature_type": "cross layer transcoder",
             "clerp": "Texas", "activation": 2.5, "influence": 0.5},
            {**node, "node_id": "0_1_1", "layer": "0", "ctx_idx": 1, "feature": 2, "feature_type": "cross layer transcoder",
             "clerp": "", "activation": 1.5, "influence": 0.5},
            {**node, "node_id": "0_1_1", "layer": "1", "ctx_idx": 1, "feature": -1, "influence": 0.7,
             "feature_type": "mlp reconstruction error", "clerp": 'Err: mlp " b"'},
            {**node, "node_id": "E_5_0", "layer": "E", "ctx_idx": 0, "feature": 0, "feature_type": "embedding",
             "clerp": 'Emb: "a"', "influence": None},
            {**node, "node_id": "3_9_1", "layer": "3", "ctx_idx": 1, "feature": 9, "feature_type": "logit",
             "clerp": 'Output " c" (p=0.625)', "token_prob": 0.625, "is_target_logit": True},
        ],
        "links": [
            {"source": "E_5_0", "target": "0_1_1", "weight": 2.0},
            {"source": "0_1_1", "target": "1_7_1", "weight": -0.5},
            {"source": "1_7_1", "target": "3_9_1", "weight": 1.0},
            {"source": "3_9_1", "target": "1_7_1", "weight": 1.0},
            {"source": "gone", "target": "1_7_1", "weight": 1.0},
        ],
    }  # fmt: skip


def neuronpedia() -> dict[str, Any]:
    """What Neuronpedia hands out: scores of its own, no errors' influence, groups by name."""
    content = foreign()
    content["metadata"] |= {
        "info": {"generator": {"name": "circuit-tracer by Hanna & Piotrowski"}, "create_time_ms": 1.0},
        "generation_settings": {"max_n_logits": 10, "desired_logit_prob": 0.95, "max_feature_nodes": 7500},
        "pruning_settings": {"node_threshold": 0.8, "edge_threshold": 0.85},
    }
    content["nodes"][2] |= {"node_id": "1_error_1", "jsNodeId": "1_error-1"}
    content["links"] = [{"source": "1_error_1", "target": "3_9_1", "weight": 0.25}, *content["links"][:3]]
    content["qParams"]["pinnedIds"] = ["1_error_1", "1_7_1"]
    return content


def junk_in(content: dict[str, Any], seed: int, pairs: int = 100) -> Iterator[dict[str, Any]]:
    """Copies of a value: with one kind of junk at every place, and `pairs` more, some with two at once."""
    draw = random.Random(seed)
    places = [place for place in _places_in(content) if place]
    for place in places + draw.choices(places, k=pairs):
        changed = copy.deepcopy(content)
        for path in (place, draw.choice(places)) if draw.random() < 0.3 else (place,):
            holder: Any = changed
            try:
                for key in path[:-1]:
                    holder = holder[key]
                holder[path[-1]] = draw.choice(JUNK)
            except (KeyError, IndexError, TypeError):
                continue  # the other one is gone
        yield changed


def _places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places_in(value[key], (*path, key))
