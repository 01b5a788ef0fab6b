"""From prompts, one at a time, to the aggregate.

Letters: N prompts, M nodes, E edges, B resamples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from crosstrace.graphs.aggregates.circuit import (
    MOST_EDGES,
    MOST_NODES,
    RESAMPLES,
    SPLITS,
    Aggregate,
    AggregateEdge,
    AggregateNode,
    Interval,
)
from crosstrace.graphs.aggregates.defaults import MIN_INFLUENCE, MIN_SHARE
from crosstrace.graphs.aggregates.observed import NodeKey, Observation
from crosstrace.graphs.aggregates.stability import intervals, stability_of
from crosstrace.graphs.sparse_rows import Floats

_MOST_TARGETS, _EXAMPLES = 8, 200


class Collector:
    """Takes prompts one at a time, then says what holds across them."""

    def __init__(self, model_name: str = "", transcoders_name: str = "") -> None:
        self._names = model_name, transcoders_name
        self._prompts: list[dict[str, Any]] = []
        self._left_out: list[str] = []
        self._nodes: dict[NodeKey, int] = {}
        self._edges: dict[tuple[int, int], int] = {}
        self._node_rows: list[tuple[int, int, float, float]] = []
        self._edge_rows: list[tuple[int, int, float, float]] = []
        self._on: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._features: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
        self._labels: dict[tuple[int, int], str] = {}
        self._places: dict[str, list[float]] = defaultdict(list)
        self._tokens: dict[str, set[str]] = defaultdict(set)
        self._n_layers = 0

    def leave_out(self, name: str) -> None:
        """Take down a graph whose prompt is of no pattern."""
        self._left_out.append(name)

    def add(self, seen: Observation) -> None:
        """Take a prompt.

        Args:
            seen: The prompt.

        Raises:
            ValueError: Its graph has another number of layers than the others.
        """
        number = len(self._prompts)
        if self._prompts and seen.n_layers != self._n_layers:
            raise ValueError(f"graph {seen.name} has {seen.n_layers} layers and the others have {self._n_layers}")
        self._n_layers = seen.n_layers
        self._prompts.append(
            {
                "graph": seen.name,
                "prompt": seen.prompt,
                "tokens": seen.tokens,
                "targets": [[text, weight] for text, weight in seen.targets],
                "roles": seen.roles,
                "metadata": dict(seen.metadata),
            }
        )
        P = len(seen.roles)
        for position, role in enumerate(seen.roles):
            self._places[role].append(position - P)
            self._tokens[role].add(seen.tokens[position])
        self._labels |= seen.labels
        for key, one in seen.nodes.items():
            i = self._nodes.setdefault(key, len(self._nodes))
            self._node_rows.append((number, i, one.influence, one.activation))
            for target, part in one.on.items():
                self._on[i][target] += part
            self._features[i].update(set(one.features))
        for between, (weight, share) in seen.edges.items():
            ends = self._nodes[between[0]], self._nodes[between[1]]
            self._edge_rows.append((number, self._edges.setdefault(ends, len(self._edges)), weight, share))

    def result(
        self,
        min_share: float = MIN_SHARE,
        min_influence: float = MIN_INFLUENCE,
        resamples: int = RESAMPLES,
        splits: int = SPLITS,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> Aggregate:
        """Return what holds across the prompts.

        Args:
            min_share: Of the circuit whose stability is asked for.
            min_influence: Likewise.
            resamples: B.
            splits: How many random halves.
            seed: Of both.
            about: What else the aggregate's settings say, such as its patterns.

        Raises:
            ValueError: There are no prompts.
        """
        N = len(self._prompts)
        if not N:
            raise ValueError(
                f"no graph is of the pattern: {len(self._left_out):,} are of none"
                if self._left_out
                else "there are no graphs"
            )
        keys = list(self._nodes)
        influence, activation, there = self._matrices(self._node_rows, len(keys))
        weight, flow, edge_there = self._matrices(self._edge_rows, len(self._edges))
        order = self._chosen(keys, influence, there)
        number = {old: new for new, old in enumerate(order)}
        influence, activation, there = influence[:, order], activation[:, order], there[:, order]
        ends = list(self._edges)
        inner = [i for i, (source, target) in enumerate(ends) if source in number and target in number]
        mean_flow = np.asarray(flow.sum(axis=0)).ravel() / N
        inner = sorted(sorted(inner, key=lambda i: -mean_flow[i])[:MOST_EDGES], key=lambda i: (mean_flow[i], i))
        weight, flow, edge_there = weight[:, inner], flow[:, inner], edge_there[:, inner]
        random = np.random.default_rng(seed)
        counts_bn = random.multinomial(N, np.full(N, 1 / N), size=resamples).astype(np.float64)
        share_intervals, share_bm = intervals(there, counts_bn)
        influence_intervals, influence_bm = intervals(influence, counts_bn)
        selected = ((share_bm >= min_share) & (influence_bm >= min_influence)).mean(axis=0)
        weight_intervals, _ = intervals(weight, counts_bn, keep=False)
        roles = sorted(self._places, key=lambda role: (float(np.mean(self._places[role])), role))
        nodes = [
            self._node(
                keys[old],
                old,
                roles,
                _column(influence, new),
                _column(activation, new),
                float(there[:, [new]].sum()) / N,
                share_intervals[new],
                influence_intervals[new],
                float(selected[new]),
            )
            for new, old in enumerate(order)
        ]
        edges = [
            AggregateEdge(
                number[ends[old][0]],
                number[ends[old][1]],
                float(edge_there[:, [new]].sum()) / N,
                float((values := _column(weight, new)).mean()),
                weight_intervals[new],
                float(values.std()),
                float(_column(flow, new).mean()),
            )
            for new, old in enumerate(inner)
        ]
        own = [i for i, node in enumerate(nodes) if node.key.kind in ("feature", "named")]
        stability = None
        if N >= 4:
            matrices = influence[:, own], there[:, own], weight
            stability = stability_of(*matrices, min_share, min_influence, splits, random)
        settings = {
            "min_share": min_share,
            "min_influence": min_influence,
            "resamples": resamples,
            "splits": splits,
            "seed": seed,
            **(about or {}),
        }
        return Aggregate(
            self._prompts,
            self._left_out,
            self._n_layers,
            roles,
            nodes,
            edges,
            stability,
            *self._names,
            settings,
            influence.tocsc(),
        )

    def _matrices(self, rows: Sequence[tuple[int, int, float, float]], width: int) -> list[scipy.sparse.csc_array]:
        """Two (N, width) matrices of the values, and one that is 1 wherever there is a row."""
        shape = (len(self._prompts), width)
        at, where, first, second = (
            (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 4
        )
        places = at.astype(np.int64), where.astype(np.int64)
        return [
            scipy.sparse.csc_array((values.astype(np.float64), places), shape=shape)
            for values in (first, second, np.ones(len(first)))
        ]

    def _chosen(self, keys: Sequence[NodeKey], influence: Any, there: Any) -> list[int]:
        """The nodes to keep: in two prompts at least, the most influential; by position, then layer."""
        N = len(self._prompts)
        times = np.asarray(there.sum(axis=0)).ravel()
        mean = np.asarray(influence.sum(axis=0)).ravel() / N
        often = [i for i in range(len(keys)) if times[i] >= min(2, N)]
        targets = [i for i in often if keys[i].kind == "target"]
        others = sorted((i for i in often if keys[i].kind != "target"), key=lambda i: (-mean[i], keys[i]))
        kept = targets + others[:MOST_NODES]
        place = {role: float(np.mean(found)) for role, found in self._places.items()}
        return sorted(kept, key=lambda i: (place.get(keys[i].role, 0.0), self._layers(i, keys[i]), keys[i]))

    def _layers(self, number: int, key: NodeKey) -> tuple[int, int]:
        if key.kind == "target":
            return self._n_layers, self._n_layers
        layers = [layer for layer, _ in self._features.get(number, ())]
        return (min(layers), max(layers)) if layers else (-1, -1)

    def _node(
        self,
        key: NodeKey,
        old: int,
        roles: Sequence[str],
        influence: Floats,
        activation: Floats,
        share: float,
        share_interval: Interval,
        influence_interval: Interval,
        selected: float,
    ) -> AggregateNode:
        N = len(influence)
        features = self._features.get(old, Counter())
        layers = self._layers(old, key)
        total = sum(features.values())
        layer = sum(times * layer for (layer, _), times in features.items()) / total if total else float(layers[0])
        strongest = np.argsort(-influence, kind="stable")[:_EXAMPLES].tolist()
        active = activation[activation > 0]
        on = sorted(self._on.get(old, {}).items(), key=lambda item: (-item[1], item[0]))[:_MOST_TARGETS]
        return AggregateNode(
            key,
            self._label(key),
            layers,
            layer,
            len(roles) - 1 if key.kind == "target" else roles.index(key.role),
            share,
            share_interval,
            float(influence.mean()),
            influence_interval,
            float(influence.std()),
            float(active.mean()) if len(active) else 0.0,
            [(*feature, times) for feature, times in features.most_common(8)],
            {target: part / N for target, part in on},
            selected,
            [(i, float(influence[i])) for i in strongest if influence[i] > 0],
        )

    def _label(self, key: NodeKey) -> str:
        match key.kind:
            case "feature":
                return self._labels.get((key.layer, key.feature), "")
            case "token":
                # A place that is counted says little; where the same stands there in all prompts, that is said too.
                tokens = self._tokens[key.role]
                counted = "−" in key.role and len(tokens) == 1
                return f"{key.role}: {next(iter(tokens))}" if counted else key.role
            case "error":
                return "unexplained"
            case _:
                return key.name


def _column(matrix: scipy.sparse.csc_array, i: int) -> Floats:
    return np.asarray(matrix[:, [i]].toarray()).ravel()
