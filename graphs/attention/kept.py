"""What a graph may keep about attention: which head carried each edge, and why heads looked where they did.

Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions", sections on head loadings and on
attention scores as sums over pairs of features.

Letters: E edges, L layers, H heads, P positions, n nodes, c places, t terms of a place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class HeadLoadings:
    """How much of each edge passes through each attention head, and how much bypasses each layer's attention.

    For every layer l, `heads[e, l].sum() + bypass[e, l]` is the edge.

    Attributes:
        edges: (E, 2) int64 rows (target node, source node).
        heads: (E, L, H) float32, in the units of the edges.
        bypass: (E, L) float32: what passes the layer in the residual stream, by skip connections, or is written later.
    """

    edges: Tensor
    heads: Tensor
    bypass: Tensor

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def weights(self) -> Tensor:
        """(E,) float32: the edges, as the sum of what passes the first layer."""
        return self.heads[:, 0].sum(-1) + self.bypass[:, 0]

    def strongest(self, edge: int) -> tuple[int, int]:
        """Return (layer, head) of the head that carries most of an edge, whatever its sign.

        Args:
            edge: Its place among the edges.
        """
        n_heads = self.heads.shape[2]
        return divmod(int(self.heads[edge].abs().argmax()), n_heads)

    def of(self, target: int, source: int) -> int | None:
        """Return the place of an edge among the edges; None where it has no loadings."""
        return self._places.get((target, source))

    @property
    def _places(self) -> Mapping[tuple[int, int], int]:
        known: dict[tuple[int, int], int] | None = self.__dict__.get("_known")
        if known is None:
            known = {(target, source): i for i, (target, source) in enumerate(self.edges.tolist())}
            object.__setattr__(self, "_known", known)  # the dataclass is frozen
        return known


@dataclass(frozen=True, eq=False)
class AttentionPlaces:
    """Heads worth asking about, each with the query and the key between which most of what it carries moves.

    The node after the last one that can be a source stands for the remainder: biases and what no node stands for.

    Attributes:
        where: (c, 4) int64 rows (layer, head, query, key), the one that carries most first.
        carried: (c,) float64, the share of the pruned graph's influence that passes through the head, signs left out.
        net: (c,) float64, the same with signs: what supports the edges less what works against them.
        scores: (c,) float64, the attention score of the place before softmax.
        patterns: (c, P, P) float32 attention probabilities of the head, [query, key].
        pairs: (c, t, 2) int64 the strongest pairs (query-side node, key-side node) of the place.
        pair_terms: (c, t) float32 their terms of the score.
        query_nodes: (c, t) int64 the query-side nodes with the largest sums over the key side.
        query_terms: (c, t) float32 these sums.
        key_nodes: (c, t) int64 the key-side nodes with the largest sums over the query side.
        key_terms: (c, t) float32 these sums.
        fed: (c,) int64 the target that gets most through the head.
    """

    where: Tensor
    carried: Tensor
    net: Tensor
    scores: Tensor
    patterns: Tensor
    pairs: Tensor
    pair_terms: Tensor
    query_nodes: Tensor
    query_terms: Tensor
    key_nodes: Tensor
    key_terms: Tensor
    fed: Tensor

    def __len__(self) -> int:
        return len(self.where)


@dataclass(frozen=True, eq=False)
class GraphAttention:
    """Attention as a graph keeps it.

    Attributes:
        loadings: Of the edges that pruning kept when they were computed.
        places: Heads worth asking about.
    """

    loadings: HeadLoadings
    places: AttentionPlaces

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors by name, as a file holds them."""
        for part in (self.loadings, self.places):
            for field in dataclasses.fields(part):
                yield field.name, getattr(part, field.name)

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor], n_nodes: int, n_layers: int, n_positions: int) -> GraphAttention:
        """Make it of the tensors of a file.

        Args:
            tensors: By name.
            n_nodes: n.
            n_layers: L.
            n_positions: P.

        Raises:
            ValueError: A tensor is missing, does not fit the others, or names a node, layer, head or position that does
                not exist; the message names it.
        """

        def taken(kind: type) -> dict[str, Tensor]:
            names = [field.name for field in dataclasses.fields(kind)]
            if missing := [name for name in names if name not in tensors]:
                raise ValueError(f"attention lacks {', '.join(missing)}")
            return {name: tensors[name] for name in names}

        loadings, places = HeadLoadings(**taken(HeadLoadings)), AttentionPlaces(**taken(AttentionPlaces))
        n_edges, n_heads = len(loadings.edges), loadings.heads.shape[-1]
        n_places, n_terms = places.pair_terms.shape if places.pair_terms.ndim == 2 else (-1, -1)
        shapes = {
            "edges": (n_edges, 2),
            "heads": (n_edges, n_layers, n_heads),
            "bypass": (n_edges, n_layers),
            "where": (n_places, 4),
            "patterns": (n_places, n_positions, n_positions),
            "pairs": (n_places, n_terms, 2),
            **dict.fromkeys(("carried", "net", "scores", "fed"), (n_places,)),
            **dict.fromkeys(
                ("pair_terms", "query_nodes", "query_terms", "key_nodes", "key_terms"), (n_places, n_terms)
            ),
        }
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"attention.{name} has shape {tuple(tensors[name].shape)}, expected {shape}")
            if tensors[name].is_floating_point() and not bool(tensors[name].isfinite().all()):
                raise ValueError(f"attention.{name} holds NaN or infinity")
        limits = [("edges", loadings.edges, n_nodes), ("fed", places.fed, n_nodes)]
        limits += [(name, tensors[name], n_nodes + 1) for name in ("pairs", "query_nodes", "key_nodes")]
        bounds = (n_layers, n_heads, n_positions, n_positions)
        limits += [("where", places.where[:, i], bound) for i, bound in enumerate(bounds)]
        for name, values, stop in limits:
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < stop:
                raise ValueError(f"attention.{name} holds an index outside 0..{stop - 1}")
        return GraphAttention(loadings, places)
