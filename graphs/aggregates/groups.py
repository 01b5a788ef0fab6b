"""Which nodes matter more in one group of prompts than in another: a permutation test, with the false discovery rate held.

The statistic is the difference of the groups' mean influences; of more than two groups, the variance of their means. Its
distribution where groups do not matter is that over prompts dealt out to the groups anew (`scipy.stats.permutation_test`).
Of all nodes tested, those are called different whose p-values Benjamini & Hochberg 1995 let pass: among them the expected
share of mistakes is at most the rate.

Letters: N prompts, M nodes, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosstrace.graphs.aggregates.circuit import Aggregate
from crosstrace.graphs.aggregates.defaults import FALSE_DISCOVERY_RATE

PERMUTATIONS = 9999
MOST_TESTED = 200
"""How many nodes are tested, the most influential over all groups: where a single one of them differs, the smallest p-value
that the permutations allow is still enough."""
_LEAST = 2  # prompts of a group
_BLOCK = 64  # nodes tested at a time, which bounds the memory of the permutations


@dataclass(frozen=True)
class NodeDifference:
    """A node in several groups of prompts.

    Attributes:
        node: Its number.
        means: Its mean influence in each group.
        shares: The share of each group's prompts that it is kept in.
        p: Of the permutation test.
        q: The smallest false discovery rate at which it is called different.
    """

    node: int
    means: list[float]
    shares: list[float]
    p: float
    q: float

    @property
    def difference(self) -> float:
        """The largest of the means less the smallest."""
        return max(self.means) - min(self.means)


@dataclass(frozen=True)
class Comparison:
    """Groups of prompts.

    Attributes:
        key: Of the metadata.
        groups: The values, most prompts first.
        sizes: How many prompts each has.
        left_out: Prompts that have no value, or one that fewer than two prompts have.
        tested: How many nodes were tested, of those whose influence varies the most influential.
        rate: The false discovery rate.
        permutations: How many random ones at most; of few prompts, all there are.
        nodes: Those that are different, smallest q first, then the largest difference.
    """

    key: str
    groups: list[str]
    sizes: list[int]
    left_out: int
    tested: int
    rate: float
    permutations: int
    nodes: list[NodeDifference]


def compare_groups(
    aggregate: Aggregate,
    key: str,
    rate: float = FALSE_DISCOVERY_RATE,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Compare groups of prompts, by the value of a key of their metadata.

    Args:
        aggregate: What holds across all of them.
        key: The key.
        rate: The false discovery rate.
        permutations: How many random ones.
        seed: Of these.

    Raises:
        ValueError: No prompt has the key, or there are not two groups of two prompts or more.

    Example:
        >>> compare_groups(found, "family").nodes[0].q < 0.05
        True
    """
    from scipy.stats import false_discovery_control

    values = [prompt["metadata"].get(key) for prompt in aggregate.prompts]
    if all(value is None for value in values):
        keys = ", ".join(sorted({key for prompt in aggregate.prompts for key in prompt["metadata"]})) or "none"
        raise ValueError(f"no prompt has the key {key!r} in its metadata (keys: {keys})")
    texts = [None if value is None else str(value) for value in values]
    counts = {text: texts.count(text) for text in dict.fromkeys(texts) if text is not None}
    groups = sorted((text for text in counts if counts[text] >= _LEAST), key=lambda text: (-counts[text], text))
    if len(groups) < 2:
        raise ValueError(f"{key!r} makes {len(groups)} groups of two prompts or more; a comparison needs two")
    members = [np.array([i for i, text in enumerate(texts) if text == group]) for group in groups]
    inside = np.concatenate(members)
    varying = [
        i
        for i, node in enumerate(aggregate.nodes)
        if node.key.kind != "target" and len(np.unique(_influence(aggregate, [i])[inside])) > 1
    ]
    tested = sorted(sorted(varying, key=lambda i: (-aggregate.nodes[i].influence, i))[:MOST_TESTED])
    p_values = np.ones(len(tested))
    for start in range(0, len(tested), _BLOCK):
        block = _influence(aggregate, tested[start : start + _BLOCK])
        p_values[start : start + _BLOCK] = _p_values([block[own].T for own in members], permutations, seed)
    q_values = false_discovery_control(p_values) if len(tested) else p_values
    found = []
    for i, p, q in zip(tested, p_values.tolist(), q_values.tolist(), strict=True):
        if q <= rate:
            of_node = _influence(aggregate, [i])[:, 0]
            means = [float(of_node[own].mean()) for own in members]
            shares = [float((of_node[own] > 0).mean()) for own in members]
            found.append(NodeDifference(i, means, shares, p, q))
    found.sort(key=lambda node: (node.q, -node.difference, node.node))
    sizes = [len(own) for own in members]
    return Comparison(key, groups, sizes, len(texts) - sum(sizes), len(tested), rate, permutations, found)


def _influence(aggregate: Aggregate, nodes: Sequence[int]) -> NDArray[np.float64]:
    return np.asarray(aggregate.influence_nm[:, list(nodes)].toarray())


def _p_values(samples: Sequence[NDArray[np.float64]], permutations: int, seed: int) -> NDArray[np.float64]:
    """P-values of M nodes from G samples (M, prompts of the group)."""
    from scipy.stats import permutation_test

    def difference(one: Any, other: Any, axis: int = -1) -> Any:
        return one.mean(axis=axis) - other.mean(axis=axis)

    def variance(*groups: Any, axis: int = -1) -> Any:
        return np.var([group.mean(axis=axis) for group in groups], axis=0)

    two = len(samples) == 2
    found = permutation_test(
        samples,
        difference if two else variance,
        permutation_type="independent",
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, (1 << 24) // sum(sample.size for sample in samples)),
        alternative="two-sided" if two else "greater",
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return np.asarray(found.pvalue, dtype=np.float64)
