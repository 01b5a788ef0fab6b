"""Cost of head loadings beside tracing the same targets, and of a head's scores by node; checked first, then timed.

    python benchmarks/make_model.py DIR --shape 270m --features 2048 --active 35
    python benchmarks/attention.py DIR --tokens 64 --edges 1000 --nodes 2000

Loadings are of three choices of edges: drawn at random; what pruning keeps when the node threshold is set so that about as many
are left; and the edges with the most influence in the whole graph. The last two have several times as many sources as targets,
and a source costs a sweep as a target does. They have to add up to the graph's edges in every
layer, to 1e-5; they are timed in turn with the rows of the targets that these edges lead to (``--repeats``), and of each the
fastest counts. Scores are of one query with all of its keys: first what all nodes add to the query and to every key, which a
head's other questions share, then the terms themselves: marginals on both sides and the strongest pairs of every key. Their
marginals have to add up to the scores. With one thread, seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, machine, random_prompt, write_csv

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.graphs.sparse_rows import values_at
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import HeadScores, TracedPrompt, trace
from crosstrace.tracer.attention.loadings import loadings_of
from crosstrace.tracer.attention.ranking import edge_influence
from crosstrace.tracer.attribution.batches import Batcher, automatic_batch_size, position_groups

EXACT = 1e-5


def clock() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def fastest(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Each way's fastest run; they take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            begin = clock()
            way()
            best[name] = min(best[name], clock() - begin)
    return best


def strongest_edges(graph: AttributionGraph, count: int) -> np.ndarray:
    """(E, 2) the edges with the most influence on the targets, (target, source)."""
    edges = graph.edges.tocoo()
    pairs = np.stack([edges.row, edges.col], axis=1).astype(np.int64)
    strength = np.abs(edge_influence(graph, pairs) * edges.data)
    return pairs[np.sort(np.argsort(-strength, kind="stable")[:count])]


def kept_edges(graph: AttributionGraph, count: int) -> np.ndarray:
    """(E, 2) the edges that pruning keeps, with the highest node threshold that leaves about that many."""
    best, low, high = None, 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        edges = prune(graph, node_threshold=middle).kept_edges().tocoo()
        if edges.nnz > count:
            high = middle
        else:
            low, best = middle, edges
    assert best is not None, f"no threshold leaves {count} edges or fewer; ask for more"
    return np.stack([best.row, best.col], axis=1).astype(np.int64)


def drawn_edges(graph: AttributionGraph, count: int) -> np.ndarray:
    """(E, 2) edges drawn at random."""
    edges = graph.edges.tocoo()
    chosen = np.sort(np.random.default_rng(0).permutation(edges.nnz)[:count])
    return np.stack([edges.row, edges.col], axis=1).astype(np.int64)[chosen]


def trace_rows(prompt: TracedPrompt, nodes: np.ndarray) -> None:
    """The rows of some targets, in the batches that a trace computes."""
    batcher = Batcher(prompt.local, automatic_batch_size(prompt.local))
    features = nodes[nodes < prompt.graph.layout.features.stop]
    groups = position_groups(prompt.entries[features], prompt.local.activations.positions.numpy(), batcher.batch_size)
    batches = [prompt.targets([int(node) for node in nodes[len(features) :]])] if len(features) < len(nodes) else []
    for group in groups:
        batches += [
            prompt.local.feature_targets(torch.from_numpy(part))
            for part in np.split(group, range(batcher.batch_size, len(group), batcher.batch_size))
        ]
    for batch in batches:
        batcher.rows(batch)


def loadings_row(prompt: TracedPrompt, name: str, pairs: np.ndarray, repeats: int) -> dict[str, object]:
    found = loadings_of(prompt, pairs)
    weights = torch.from_numpy(values_at(prompt.graph.edges, pairs[:, 0], pairs[:, 1])).double()
    whole = found.heads.double().sum(-1) + found.bypass.double()
    worst = float(((whole - weights[:, None]).norm(dim=0) / weights.norm()).max())
    assert worst < EXACT, f"heads and bypass are off by {worst:.1e} of the edges"
    targets = np.unique(pairs[:, 0])
    seconds = fastest(
        {"rows": lambda: trace_rows(prompt, targets), "loadings": lambda: loadings_of(prompt, pairs)}, repeats
    )
    return {
        "what": f"loadings, {name}",
        "edges": len(pairs),
        "targets": len(targets),
        "sources": len(np.unique(pairs[:, 1])),
        "error": f"{worst:.1e}",
        "rows_s": round(seconds["rows"], 3),
        "loadings_s": round(seconds["loadings"], 3),
        "ratio": round(seconds["loadings"] / seconds["rows"], 2),
    }


def scores_row(prompt: TracedPrompt, layer: int, head: int, query: int, repeats: int) -> dict[str, object]:
    begin = clock()
    scores = HeadScores(prompt, layer, head, query)
    scores.project_all()
    scores.terms(query)
    projecting = clock() - begin
    for key, score in zip(scores.keys, scores.scores.tolist(), strict=True):
        found = scores.terms(key)
        for side in (found.query_marginals, found.key_marginals):
            assert abs(float(side.sum()) - score) < EXACT * max(1.0, float(side.abs().sum())), (layer, key)

    def terms() -> None:
        for key in scores.keys:
            found = scores.terms(key)
            _ = found.query_marginals, found.key_marginals, found.strongest_pairs(10)

    seconds = fastest({"terms": terms}, repeats)["terms"]
    return {
        "what": f"scores L{layer}.H{head}",
        "nodes": prompt.graph.layout.n_sources,
        "keys": len(scores.keys),
        "projections_s": round(projecting, 3),
        "terms_s": round(seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--edges", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--layers", type=int, nargs="*", help="of scores; a third, two thirds and the last")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", help="write the table to benchmarks/results")
    arguments = parser.parse_args()
    model = ReplacementModel.from_pretrained(
        arguments.folder / "model", arguments.folder / "clt" / "random", device="cpu"
    )
    size = model.description
    features = max(arguments.nodes - (size.n_layers + 1) * arguments.tokens, 64)
    prompt_ids = random_prompt(arguments.tokens, size.vocab_size)
    graph = trace(model, prompt_ids, max_feature_nodes=features, progress=False)
    prompt = TracedPrompt(model, graph)
    print(machine())
    rows = []
    choices = {"drawn": drawn_edges, "kept by pruning": kept_edges, "strongest": strongest_edges}
    for name, choose in choices.items():
        rows.append(loadings_row(prompt, name, choose(graph, arguments.edges), arguments.repeats))
        print(rows[-1])
    thirds = [size.n_layers // 3 - 1, 2 * size.n_layers // 3 - 1, size.n_layers - 1]
    for layer in thirds if arguments.layers is None else arguments.layers:
        rows.append(scores_row(prompt, layer, 0, arguments.tokens - 1, arguments.repeats))
        print(rows[-1])
    if arguments.csv:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = [{name: row.get(name, "") for name in columns} for row in rows]
        write_csv(RESULTS / arguments.csv, f"{machine()}; {arguments.tokens} tokens", table)


if __name__ == "__main__":
    main()
