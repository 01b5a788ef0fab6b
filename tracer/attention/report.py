"""What the verb `attention` finds: heads worth asking about, edges by head, scores by node; and its JSON.

Letters: n nodes that can be sources, C keys.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from crosstrace.graphs import AttributionGraph, node_ids, write_atomically
from crosstrace.graphs.attention.kept import HeadLoadings
from crosstrace.tracer.attention.ablation import AblationCheck, Change, ablation_check
from crosstrace.tracer.attention.ranking import RankedHead
from crosstrace.tracer.attention.scores import HeadScores, LogAttentionTerms, QKTerms

REMAINDER = "remainder"
"""What stands for the remainder where nodes are named by id."""


@dataclass(frozen=True, eq=False)
class ScoreReport:
    """Why a head looked from a query at a key.

    Attributes:
        scores: The head and the query.
        key: The key's position.
        rather_than: The key that it is compared with, or None.
        terms: Of the score, or of the difference.
        log_attention: What nodes do to the log of the attention probability.
        nodes: The nodes with the largest effect on the score, both sides together; n for the remainder.
        ablations: What ablating each of these nodes does, predicted and measured; the remainder cannot be ablated.
        groups: Names of supernodes and their terms, with all other nodes last; None without any.
    """

    scores: HeadScores
    key: int
    rather_than: int | None
    terms: QKTerms
    log_attention: LogAttentionTerms
    nodes: list[int]
    ablations: dict[int, AblationCheck]
    groups: tuple[list[str], torch.Tensor] | None = None


def score_report(
    scores: HeadScores,
    key: int,
    rather_than: int | None = None,
    top: int = 10,
    ablated: int = 3,
    groups: Sequence[tuple[str, Sequence[int]]] = (),
) -> ScoreReport:
    """Take a score apart, and check what it says about the nodes that matter most.

    Args:
        scores: The head and the query.
        key: The key's position.
        rather_than: Another key, whose terms are subtracted.
        top: How many nodes to name.
        ablated: How many of them to ablate.
        groups: (name, nodes) supernodes to sum.

    Raises:
        ValueError: The query does not see a key, or a node is in two groups.
    """
    terms = scores.terms(key, rather_than)
    # A pair of a node with itself is in both sums; ablating the node takes it once.
    both = terms.query_marginals + terms.key_marginals
    nodes = [node for node in both.abs().argsort(descending=True)[:top].tolist() if float(both[node]) != 0]
    real = [node for node in nodes if node < len(both) - 1][:ablated]
    summed = None
    if groups:
        n = len(both) - 1
        members = [[node for node in members if node < n] for _, members in groups]
        summed = ([name for name, _ in groups], terms.grouped(members))
    return ScoreReport(
        scores,
        key,
        rather_than,
        terms,
        scores.log_attention(key),
        nodes,
        {node: ablation_check(scores, key, [node]) for node in real},
        summed,
    )


@dataclass(eq=False)
class AttentionReport:
    """All that was asked for.

    Attributes:
        graph: The graph, with labels.
        heads: Heads worth asking about.
        loadings: Of the edges that were asked for.
        score: Why a head looked where it did.
        top: How many pairs and marginals are written.
    """

    graph: AttributionGraph
    heads: list[RankedHead] = field(default_factory=list)
    loadings: HeadLoadings | None = None
    score: ScoreReport | None = None
    top: int = 10

    def as_json(self) -> dict[str, Any]:
        """Return plain Python values; nodes by their ids in the JSON export, contributors as Neuronpedia names them."""
        ids = node_ids(self.graph)
        content: dict[str, Any] = {"prompt": self.graph.prompt, "prompt_tokens": self.graph.token_strings}
        if self.heads:
            content["heads"] = [
                {
                    "layer": one.layer,
                    "head": one.head,
                    "carried": one.carried,
                    "net": one.net,
                    "query": one.query,
                    "key": one.key,
                    "feeds": ids[one.fed],
                }
                for one in self.heads
            ]
        if self.loadings is not None:
            weights = self.loadings.weights.tolist()
            content["edges"] = [
                {
                    "source": ids[source],
                    "target": ids[target],
                    "weight": weights[i],
                    "heads": self.loadings.heads[i].tolist(),
                    "bypass": self.loadings.bypass[i].tolist(),
                }
                for i, (target, source) in enumerate(self.loadings.edges.tolist())
            ]
        if self.score is not None:
            content["score"] = _score(self.score, [*ids[: self.graph.layout.n_sources], REMAINDER], self.top)
        return content

    def write(self, path: Path) -> None:
        """Write the report as `.json`.

        Raises:
            OSError: The file cannot be written; nothing is left behind.
        """
        write_atomically(path, json.dumps(self.as_json(), ensure_ascii=True, allow_nan=False).encode("ascii"))


def _score(report: ScoreReport, ids: list[str], top: int) -> dict[str, Any]:
    scores, terms = report.scores, report.terms

    def marginals(values: torch.Tensor) -> list[list[Any]]:
        order = values.abs().argsort(descending=True)[:top].tolist()
        return [[ids[node], float(values[node])] for node in order if float(values[node]) != 0]

    def change(one: Change) -> dict[str, float]:
        return {"score": one.score, "log_probability": one.log_probability}

    content: dict[str, Any] = {
        "layer": scores.layer,
        "head": scores.head,
        "query": scores.query,
        "key": report.key,
        "rather_than": report.rather_than,
        "score": terms.score,
        "keys": [
            {"position": key, "score": score, "probability": probability}
            for key, score, probability in zip(
                scores.keys, scores.scores.tolist(), scores.probabilities.tolist(), strict=True
            )
        ],
        "pair_wise_contributors": [[ids[q], ids[k], term] for q, k, term in terms.strongest_pairs(top)],
        "top_q_marginal_contributors": marginals(terms.query_marginals),
        "top_k_marginal_contributors": marginals(terms.key_marginals),
        "norm_response": {"query": marginals(terms.query_response), "key": marginals(terms.key_response)},
        "log_probability": report.log_attention.log_probability,
        "log_attention_contributors": marginals(report.log_attention.both),
        "ablations": [
            {
                "node": ids[node],
                "predicted": change(check.predicted),
                "measured": change(check.measured),
                "predicted_response": change(check.predicted_response),
                "measured_free": change(check.measured_free),
            }
            for node, check in report.ablations.items()
        ],
    }
    if report.groups is not None:
        names, summed = report.groups
        content["supernodes"] = {"names": [*names, "all others"], "terms": summed.tolist()}
    return content
