"""Why a head looked where it did: its score before softmax as a sum over pairs of nodes.

Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions", section on attention scores as bilinear
functions of features. With norms frozen the query is a sum over the nodes of the graph and so is the key, and

    score = scale · Σ_{m, n} ⟨ q_m, k_n ⟩

over pairs of a query-side node m and a key-side node n. Deviations: nodes count with all that they add to the residual
stream at the query's (or key's) position, earlier attention included; what no node stands for is a node of its own, the
remainder; and the rotation is that of the layer.

Letters: n nodes that can be sources, which come first in a graph (all but its targets), W head width, C keys, t terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.local.attention_scores import ScoreSide, check_scores_known, score_side
from crosstrace.tracer.attention.places import TracedPrompt
from crosstrace.tracer.attention.projections import node_values

# Query-side nodes whose pairs are looked at together, and what rounding may add to a bound.
_ROWS, _ROUNDING = 64, 1e-5


@dataclass(frozen=True, eq=False)
class QKTerms:
    """A score before softmax, or the difference of two, as a sum over pairs of nodes.

    Node n is the remainder: biases, excluded first positions, and features without a node.

    Attributes:
        score: What the terms add up to.
        query_nw: (n + 1, W) float32, what each node adds to the query.
        key_nw: (n + 1, W) float32, what each node adds to the key (a difference of keys), times the scale of scores.
        query_response: (n + 1,) float64, to first order what the query's norms take from the score as they respond to
            each node: added to `query_marginals`, it gives the effect with norms free.
        key_response: (n + 1,) float64, the same on the key's side.
    """

    score: float
    query_nw: Tensor
    key_nw: Tensor
    query_response: Tensor
    key_response: Tensor

    @cached_property
    def terms(self) -> Tensor:
        """(n + 1, n + 1) float32 [query-side node, key-side node]; they add up to the score."""
        return self.query_nw @ self.key_nw.T

    @cached_property
    def query_marginals(self) -> Tensor:
        """(n + 1,) float64, each query-side node's terms summed over the key side."""
        return self.query_nw.double() @ self.key_nw.double().sum(0)

    @cached_property
    def key_marginals(self) -> Tensor:
        """(n + 1,) float64, each key-side node's terms summed over the query side."""
        return self.key_nw.double() @ self.query_nw.double().sum(0)

    def strongest_pairs(self, count: int) -> list[tuple[int, int, float]]:
        """Return the pairs with the largest terms, whatever their sign: (query-side node, key-side node, term).

        Args:
            count: How many.
        """
        n = len(self.key_nw)
        # No term is larger than the product of its sides' lengths: most pairs need not be looked at.
        lengths_q, queries = self.query_nw.norm(dim=1).sort(descending=True)
        lengths_k, keys = self.key_nw.norm(dim=1).sort(descending=True)
        best, where, least = torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.0
        for start in range(0, n, _ROWS):
            longest = float(lengths_q[start]) * (1 + _ROUNDING)
            seen = int((lengths_k * longest > least).sum())
            if not seen:
                break
            rows = queries[start : start + _ROWS]
            terms = (self.query_nw[rows] @ self.key_nw[keys[:seen]].T).flatten()
            top = terms.abs().topk(min(count, len(terms))).indices
            best = torch.cat([best, terms[top]])
            where = torch.cat([where, rows[top // seen] * n + keys[top % seen]])
            top = best.abs().topk(min(count, len(best))).indices
            best, where = best[top], where[top]
            least = float(best[-1].abs()) if len(best) == count else 0.0
        return [(*divmod(place, n), term) for place, term in zip(where.tolist(), best.tolist(), strict=True)]

    def grouped(self, groups: Sequence[Sequence[int]]) -> Tensor:
        """Sum the terms of supernodes.

        Args:
            groups: g groups of nodes; a node may be in one at most.

        Returns:
            (g + 1, g + 1) float64; last row and column are of all nodes in no group.

        Raises:
            ValueError: A node is in two groups, or does not exist.
        """
        n = len(self.query_nw) - 1
        group_of = torch.full((n + 1,), len(groups))
        for i, nodes in enumerate(groups):
            for node in nodes:
                if not 0 <= node < n:
                    raise ValueError(f"group {i} has node {node}; the nodes that can be sources are 0 to {n - 1}")
                if group_of[node] not in (len(groups), i):
                    raise ValueError(f"node {node} is in two groups")
                group_of[node] = i
        sides = [
            torch.zeros(len(groups) + 1, side.shape[1], dtype=torch.float64).index_add_(0, group_of, side.double())
            for side in (self.query_nw, self.key_nw)
        ]
        return sides[0] @ sides[1].T


@dataclass(frozen=True, eq=False)
class LogAttentionTerms:
    """What nodes do to the log of an attention probability, to first order and with all competing keys in it.

    d log A_k = ds_k − Σ_j A_j ds_j. Node n is the remainder.

    Attributes:
        log_probability: log A_k.
        query_side: (n + 1,) float64, per unit of relative growth of each node on the query's side.
        key_side: (n + 1,) float64, the same on the side of the keys, all of them.
    """

    log_probability: float
    query_side: Tensor
    key_side: Tensor

    @property
    def both(self) -> Tensor:
        """(n + 1,) float64, what each node does on both sides."""
        return self.query_side + self.key_side


class HeadScores:
    """The scores of one head for one query, and where they come from.

    Attributes:
        traced: The prompt of the graph.
        layer: The layer.
        head: The head.
        query: The query's position.
        keys: The positions that it sees.
    """

    def __init__(self, traced: TracedPrompt, layer: int, head: int, query: int) -> None:
        """Choose a head and a query.

        Raises:
            ValueError: There is no such layer, head or position, or the model's description does not say how scores are
                made.
        """
        size, n_positions = traced.local.description, traced.local.n_positions
        check_scores_known(traced.local)
        _check("layer", layer, size.n_layers, "the model has layers")
        _check("head", head, size.n_heads, f"layer {layer} has heads")
        _check("query position", query, n_positions, "the prompt has positions")
        window = size.window(layer)
        self.traced, self.layer, self.head, self.query = traced, layer, head, query
        self.keys = range(0 if window is None else max(0, query + 1 - window), query + 1)
        assert size.score_scale is not None
        self.scale = size.score_scale
        self._sides: dict[int, ScoreSide] = {}
        self._key_nodes: dict[int, Tensor] = {}

    def check_key(self, key: int) -> int:
        """Return a key's position.

        Raises:
            ValueError: The prompt has no such position, or the query does not see it.
        """
        n_positions = self.traced.local.n_positions
        _check("key position", key, n_positions, "the prompt has positions")
        if key > self.query:
            raise ValueError(f"key {key} comes after query {self.query}, which sees positions up to its own")
        if key not in self.keys:
            window = self.traced.local.description.window(self.layer)
            raise ValueError(
                f"key {key} is outside the window of layer {self.layer}: query {self.query} sees the last {window} positions, "
                f"{self.keys.start} to {self.query}"
            )
        return key

    @cached_property
    def probabilities(self) -> Tensor:
        """(C,) float32, the attention probabilities of the keys, from the forward pass."""
        row = self.traced.local.layers[self.layer].attention_hqk[self.head, self.query]
        return row[self.keys.start : self.keys.stop].cpu()

    @cached_property
    def scores(self) -> Tensor:
        """(C,) float64, the scores of the keys before softmax."""
        query_w = self.query_side.vector_w.double()
        return torch.stack([self.side(key).vector_w.double() @ query_w for key in self.keys]).cpu() * self.scale

    def terms(self, key: int, rather_than: int | None = None) -> QKTerms:
        """Return the terms of one key's score.

        Args:
            key: The key's position.
            rather_than: Another key, whose terms are subtracted.

        Raises:
            ValueError: The query does not see a key, or the two keys are one.
        """
        wanted = [self.check_key(key)]
        if rather_than is not None:
            wanted.append(self.check_key(rather_than))
            if key == rather_than:
                raise ValueError(f"key {key} is compared with itself; name two keys")
        self._project(wanted)
        score, key_nw, response = self._of_key(key)
        if rather_than is not None:
            of_other = self._of_key(rather_than)
            score, key_nw, response = score - of_other[0], key_nw - of_other[1], response - of_other[2]
        queries_nw = self._query_nodes
        return QKTerms(
            score=score,
            query_nw=queries_nw[:, :-1],
            key_nw=key_nw * self.scale,
            query_response=queries_nw[:, -1].double() * score,
            key_response=response,
        )

    def _of_key(self, key: int) -> tuple[float, Tensor, Tensor]:
        """A key's score, what each node adds to the key (n + 1, W), and its norms' response (n + 1,)."""
        score = float(self._score(self.side(key)))
        return score, self._key_nodes[key][:, :-1], self._key_nodes[key][:, -1].double() * score

    def log_attention(self, key: int) -> LogAttentionTerms:
        """Return what nodes do to the log of a key's attention probability.

        Args:
            key: The key's position.

        Raises:
            ValueError: The query does not see the key.
        """
        place = self.check_key(key) - self.keys.start
        share_c = -self.probabilities.to(self.query_side.vector_w)
        share_c[place] += 1
        keys_cw = torch.stack([self.side(at).vector_w for at in self.keys])
        on_query_d = (share_c @ keys_cw) @ self.query_side.matrix_wd * self.scale
        query_side = node_values(self.traced, self.layer, [self.query], [on_query_d[None]])[0, :, 0]
        functionals = [
            (weight * self.scale * self.query_side.vector_w @ self.side(at).matrix_wd)[None]
            for weight, at in zip(share_c, self.keys, strict=True)
        ]
        key_side = node_values(self.traced, self.layer, list(self.keys), functionals)[..., 0].double().sum(0)
        probability = self.probabilities[place].double().clamp_min(1e-45)
        return LogAttentionTerms(float(probability.log()), query_side.double(), key_side)

    def project_all(self) -> None:
        """Project the nodes on every key at once, which costs less than one key after the other."""
        self._project(list(self.keys))

    def _score(self, side: ScoreSide) -> Tensor:
        return (side.vector_w.double() @ self.query_side.vector_w.double()) * self.scale

    @cached_property
    def query_side(self) -> ScoreSide:
        """The query's side of its scores."""
        return score_side(self.traced.local, self.layer, self.head, self.query, "query")

    @cached_property
    def _query_nodes(self) -> Tensor:
        """(n + 1, W + 1) what each node adds to the query, and to its norms' response."""
        side = self.query_side
        return node_values(self.traced, self.layer, [self.query], [torch.cat([side.matrix_wd, side.response_d[None]])])[
            0
        ]

    def side(self, key: int) -> ScoreSide:
        """Return a key's side of its score."""
        if key not in self._sides:
            self._sides[key] = score_side(self.traced.local, self.layer, self.head, key, "key")
        return self._sides[key]

    def _project(self, keys: Sequence[int]) -> None:
        missing = [key for key in dict.fromkeys(keys) if key not in self._key_nodes]
        if not missing:
            return
        functionals = [torch.cat([self.side(key).matrix_wd, self.side(key).response_d[None]]) for key in missing]
        self._key_nodes |= zip(missing, node_values(self.traced, self.layer, missing, functionals), strict=True)


def qk_terms(
    model: ReplacementModel,
    graph: AttributionGraph,
    layer: int,
    head: int,
    query: int,
    key: int,
    rather_than: int | None = None,
) -> QKTerms:
    """Return a head's attention score before softmax as a sum over pairs of a graph's nodes.

    For several keys of one query, `HeadScores` keeps what they share.

    Args:
        model: The model and transcoders of the graph.
        graph: Raw or pruned; every node counts, whatever pruning kept.
        layer: The layer, from 0.
        head: The head, from 0.
        query: The query's position.
        key: The key's position, not after the query.
        rather_than: Another key: the terms are then those of the difference of the two scores.

    Returns:
        The terms, exact with the norms' denominators frozen.

    Raises:
        ValueError: The graph is of other weights, there is no such layer, head or position, or the query does not see the
            key; one line says so.

    Example:
        >>> terms = qk_terms(model, graph, layer=4, head=2, query=9, key=8)
        >>> abs(float(terms.terms.sum()) - terms.score) < 1e-3
        True
    """
    return HeadScores(TracedPrompt(model, graph), layer, head, query).terms(key, rather_than)


def _check(what: str, value: int, count: int, of_what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise ValueError(f"{what} {value} does not exist: {of_what} 0 to {count - 1}")
