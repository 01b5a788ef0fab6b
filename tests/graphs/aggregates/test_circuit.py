"""Statistics over prompts, against plain arithmetic and against what is known to be there."""

from __future__ import annotations

import numpy as np
import pytest

from crosstrace.graphs.aggregates.collector import Collector
from crosstrace.graphs.aggregates.groups import compare_groups
from crosstrace.graphs.aggregates.observed import NodeKey, NodeSeen, Observation

TARGET = NodeKey("target", "{answer}", "")
TOKEN = NodeKey("token", "", "x")


def feature(i):
    return NodeKey("feature", "", "x", i % 4, i)


def observation(number, influences, metadata=None, edges=None):
    """A prompt in which some features have an influence."""
    nodes = {TARGET: NodeSeen(influence=1.0), TOKEN: NodeSeen(influence=0.5)}
    nodes |= {
        feature(i): NodeSeen([(i % 4, i)], value, 2 * value, {"A": value})
        for i, value in influences.items()
        if value > 0
    }
    edges = (
        {(feature(i), TARGET): (value, value) for i, value in influences.items() if value > 0}
        if edges is None
        else edges
    )
    return Observation(f"{number:06d}", "x", ["x"], [("A", 1.0)], ["x"], metadata or {}, 4, nodes, edges, {})


def collected(rows, metadata=None, **settings):
    collector = Collector("model", "transcoders")
    for number, row in enumerate(rows):
        collector.add(observation(number, row, None if metadata is None else metadata[number]))
    return collector.result(**{"resamples": 200, "splits": 10, **settings})


def node_of(found, key):
    return next(node for node in found.nodes if node.key == key)


def test_means_are_over_all_prompts():
    found = collected([{1: 0.4, 2: 0.1}, {1: 0.2}, {1: 0.0, 2: 0.1}, {2: 0.1}])
    one = node_of(found, feature(1))
    assert (one.share, one.influence) == (0.5, pytest.approx(0.15))
    assert one.spread == pytest.approx(np.std([0.4, 0.2, 0, 0]))
    assert one.activation == pytest.approx(0.6)
    assert one.targets == {"A": pytest.approx(0.15)}
    assert one.prompts == [(0, 0.4), (1, 0.2)]
    (edge,) = [edge for edge in found.edges if found.nodes[edge.source].key == feature(1)]
    assert (edge.share, edge.weight, edge.influence) == (0.5, pytest.approx(0.15), pytest.approx(0.15))


def test_what_only_one_prompt_has_is_left_out():
    found = collected([{1: 0.4}, {2: 0.4}, {2: 0.1}])
    assert feature(1) not in [node.key for node in found.nodes]


def test_order_of_prompts_changes_no_mean():
    rows = [{1: 0.1 * i, 2: 0.3} for i in range(8)]
    one, other = collected(rows), collected(rows[::-1])
    for a, b in zip(one.nodes, other.nodes, strict=True):
        assert (a.key, a.share) == (b.key, b.share)
        assert a.influence == pytest.approx(b.influence)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(40):
        values = random.uniform(0.1, 0.3, 60)
        low, high = node_of(collected([{1: value} for value in values]), feature(1)).influence_interval
        inside += low <= 0.2 <= high
    assert 34 <= inside <= 40


def test_a_circuit_is_what_leads_to_a_target():
    between = {(feature(1), feature(2)): (0.3, 0.3), (feature(2), TARGET): (0.3, 0.3), (TOKEN, feature(3)): (1.0, 0.2)}
    collector = Collector()
    for number in range(4):
        influences = {1: 0.3, 2: 0.3, 3: 0.3}
        collector.add(observation(number, influences, edges=between))
    found = collector.result(resamples=20, splits=4)
    nodes, edges = found.circuit()
    assert {found.nodes[i].key for i in nodes} == {feature(1), feature(2), TARGET}
    assert len(edges) == 2


def test_halves_agree_where_prompts_do_and_not_where_they_are_noise():
    same = collected([{i: 0.05 * i for i in range(1, 8)}] * 20)
    assert same.stability.nodes == pytest.approx(1.0)
    assert same.stability.overlap == 1.0
    random = np.random.default_rng(1)
    noise = collected([{int(i): 0.3 for i in random.choice(200, 4)} for _ in range(60)], min_share=0.02)
    assert noise.stability.nodes < 0.9
    assert noise.stability.overlap < 0.6


def test_groups_differ_where_they_do():
    random = np.random.default_rng(0)
    rows, metadata = [], []
    for number in range(40):
        kind = "ab"[number % 2]
        noise = {i: float(random.uniform(0, 0.2)) for i in range(2, 30)}
        rows.append({1: (0.3 if kind == "a" else 0.1) + random.uniform(0, 0.1), **noise})
        metadata.append({"kind": kind})
    found = collected(rows, metadata)
    compared = compare_groups(found, "kind")
    assert compared.groups == ["a", "b"]
    assert compared.sizes == [20, 20]
    best = compared.nodes[0]
    assert best.q < 0.05
    assert best.difference == pytest.approx(best.means[0] - best.means[1])
    assert found.nodes[best.node].key == feature(1)
    assert best.means[0] == pytest.approx(
        np.mean([row[1] for row, one in zip(rows, metadata, strict=True) if one["kind"] == "a"])
    )


def test_where_nothing_differs_few_are_called_different():
    """Of 20 comparisons without any difference, at most a few may name a node at a rate of 5 %."""
    random = np.random.default_rng(3)
    named = 0
    for _ in range(20):
        rows = [{i: float(random.uniform(0, 0.2)) for i in range(1, 12)} for _ in range(24)]
        kinds = random.permutation([{"kind": "abc"[i % 3]} for i in range(24)]).tolist()
        named += bool(compare_groups(collected(rows, kinds, resamples=2, splits=1), "kind", permutations=199).nodes)
    assert named <= 4


def test_groups_that_cannot_be_compared():
    found = collected([{1: 0.2}] * 4, [{"kind": "a"}] * 4)
    with pytest.raises(ValueError, match=r"no prompt has the key 'family' in its metadata \(keys: kind\)"):
        compare_groups(found, "family")
    with pytest.raises(ValueError, match="'kind' makes 1 groups of two prompts or more"):
        compare_groups(found, "kind")


def test_no_prompts_and_other_models_are_named():
    with pytest.raises(ValueError, match="there are no graphs"):
        Collector().result()
    collector = Collector()
    collector.leave_out("000001")
    with pytest.raises(ValueError, match="no graph is of the pattern"):
        collector.result()
