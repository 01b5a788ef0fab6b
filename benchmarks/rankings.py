"""How often the most influential features have to be ranked anew under a cap.

    python benchmarks/rankings.py DIR --nodes 512      # what make_model.py wrote

Traces the same prompt with schedules from one ranking to one for every eighth node, and prints for each the share of features
that the most frequent schedule chose too, and the scores of the graph. What a cap leaves out counts as error, so the better the
choice the higher the scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from common import RESULTS, machine, random_prompt, write_csv

from crosstrace.graphs import graph_scores
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace
from crosstrace.tracer.attribution import tracing

Schedule = Callable[[int], list[int]]


def equal(rankings: int) -> Schedule:
    """So many rankings, each choosing equally many features."""

    def counts(cap: int) -> list[int]:
        step = max(1, -(-cap // rankings))
        return [min(step, cap - done) for done in range(0, cap, step)]

    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what make_model.py wrote")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=512)
    parser.add_argument("--csv", help="name under benchmarks/results")
    arguments = parser.parse_args()
    model = ReplacementModel.from_pretrained(
        arguments.folder / "model", next((arguments.folder / "clt").iterdir()), device="cpu"
    )
    prompt = random_prompt(arguments.tokens, model.description.vocab_size)
    schedules: dict[str, Schedule] = {f"{count} equal": equal(count) for count in (arguments.nodes // 8, 16, 4, 2, 1)}
    schedules["as shipped"] = shipped = tracing.ranked_counts
    best: set[int] = set()
    rows: list[dict[str, object]] = []
    try:
        for name, schedule in schedules.items():
            tracing.ranked_counts = schedule
            graph = trace(model, prompt, max_feature_nodes=arguments.nodes, progress=False)
            chosen = set(graph.selected_features.tolist())
            best = best or chosen
            replacement, completeness = graph_scores(graph)
            rows.append(
                {
                    "schedule": name,
                    "rankings": len(schedule(arguments.nodes)),
                    "same_features": round(len(chosen & best) / len(best), 4),
                    "replacement": round(replacement, 5),
                    "completeness": round(completeness, 5),
                }
            )
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    finally:
        tracing.ranked_counts = shipped
    if arguments.csv:
        write_csv(RESULTS / arguments.csv, f"benchmarks/rankings.py on {machine()}", rows)


if __name__ == "__main__":
    main()
