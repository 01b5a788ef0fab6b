"""Graphs for the graph tests: the cases with exact answers, and random ones of any size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from places import CASES
from safetensors.torch import load_file

from crosstrace.graphs import AttributionGraph, NodeLayout

CASE_NAMES = ("clt_affine", "clt_plain_gqa", "skip_transcoder")
THRESHOLD_PAIRS = ((0.8, 0.98), (0.5, 0.9), (0.95, 0.99))

HOSTILE = [
    'say "hi"',
    "back\\slash",
    "trailing\\",
    "\\N \\G \\L \\n",
    "line\nbreak\r\n\ttab",
    "<b>bold</b>",
    "<",
    "a & b &amp; &lt;",
    "NUL\x00 bell\x07 del\x7f",
    "lone \ud83d surrogate",
    "family 👩‍👩‍👧 🇫🇷",
    "עברית mixed العربية",
    "override \u202e back",
    "中文字符",
    "  ",
    "",
    "\ufffe noncharacter",
    '(p=0.5) " quote',
    "]]> --> {x|y} %s $HOME `id`",
    "graph",
]


def case(name: str) -> tuple[AttributionGraph, dict[str, torch.Tensor]]:
    """A case's graph, built from its expected edges, and all its expected answers."""
    expected = load_file(CASES / name / "expected.safetensors")
    input_ids = json.loads((CASES / name / "case.json").read_text())["input_ids"]
    k, P = len(expected["logit_tokens"]), len(input_ids)
    L = expected["error_vectors"].shape[0]
    N, n = len(expected["active_features"]), expected["adjacency"].shape[0]
    return AttributionGraph(
        active_features=expected["active_features"],
        activations=expected["activation_values"],
        selected_features=torch.arange(N),
        tokens=torch.tensor(input_ids),
        token_strings=[f" w{i}" for i in input_ids],
        logit_tokens=expected["logit_tokens"],
        logit_strings=[f" w{i}" for i in expected["logit_tokens"].tolist()],
        logit_probabilities=expected["logit_probabilities"],
        logit_positions=torch.full((k,), P - 1),
        logit_layers=torch.full((k,), L),
        n_layers=L,
        edges=scipy.sparse.csr_array(expected["adjacency"].numpy()),
        unattributed=torch.zeros(n),
        omitted=torch.zeros(n),
        omitted_magnitude=torch.zeros(n),
        target_values=expected["adjacency"].sum(1),
        prompt=" ".join(f"w{i}" for i in input_ids),
        model_name="google/random-gemma",
        transcoders_name=name,
    ), expected


def random_graph(
    seed: int = 0, L: int = 4, P: int = 5, per_layer: int = 8, k: int = 3, density: float = 0.3, **fields: Any
) -> AttributionGraph:
    """A graph with random edges that obeys the contract: `per_layer` features a layer, completeness exact."""
    rng = np.random.default_rng(seed)
    places = {(layer, int(rng.integers(P)), int(rng.integers(500))) for layer in range(L) for _ in range(per_layer)}
    active = torch.tensor(sorted(places), dtype=torch.int64).reshape(-1, 3)
    layout = NodeLayout(len(active), L, P, k)
    dense = rng.normal(size=(layout.n, layout.n)).astype(np.float32) * (rng.random((layout.n, layout.n)) < density)
    layer_of = np.r_[active[:, 0].numpy(), np.repeat(np.arange(L), P), np.full(P, -1), np.full(k, L)]
    dense[layer_of[None, :] >= layer_of[:, None]] = 0
    dense[layout.errors] = 0
    dense[layout.tokens] = 0
    probabilities = np.sort(rng.dirichlet(np.ones(k)))[::-1] if k else np.zeros(0)
    values: dict[str, Any] = {
        "active_features": active,
        "activations": torch.from_numpy(rng.gamma(2.0, size=len(active))),
        "selected_features": torch.arange(len(active)),
        "tokens": torch.arange(P) + 10,
        "token_strings": [f" tok{p}" for p in range(P)],
        "logit_tokens": torch.arange(k) + 100,
        "logit_strings": [f" out{i}" for i in range(k)],
        "logit_probabilities": torch.from_numpy(probabilities.copy()),
        "logit_positions": torch.full((k,), P - 1),
        "logit_layers": torch.full((k,), L),
        "n_layers": L,
        "edges": scipy.sparse.csr_array(dense),
        "unattributed": torch.zeros(layout.n),
        "omitted": torch.zeros(layout.n),
        "omitted_magnitude": torch.zeros(layout.n),
        "target_values": torch.from_numpy(dense.astype(np.float64).sum(1)),
        "prompt": " ".join(f"tok{p}" for p in range(P)),
        "model_name": "org/model",
        "transcoders_name": "org/transcoders",
        "settings": {"max_logits": k},
        "feature_labels": [f"label {i}" if i % 2 else "" for i in range(len(active))],
    }
    return AttributionGraph(**{**values, **fields})


def capped(graph: AttributionGraph, dropped: Sequence[int]) -> AttributionGraph:
    """The raw graph as a trace with a cap leaves it: these features are active, but have no node."""
    kept = np.array([node for node in range(graph.n) if node not in set(dropped)])
    features = kept[kept < graph.layout.n_features]
    return dataclasses.replace(
        graph,
        selected_features=graph.selected_features[torch.from_numpy(features)],
        feature_labels=[graph.feature_labels[node] for node in features],
        edges=scipy.sparse.csr_array(graph.edges[kept][:, kept]),
        **{
            name: getattr(graph, name)[torch.from_numpy(kept)]
            for name in ("unattributed", "omitted", "omitted_magnitude", "target_values")
        },
    )
