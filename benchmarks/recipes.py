"""Recipes of `crosstrace train` side by side on one model and one corpus: the same tokens, or the same minutes, for each.

    python benchmarks/recipes.py --model gemma-270m/model.gguf --corpus gemma-270m/text/*.txt --tokens 60000
    python benchmarks/recipes.py --model M --corpus TEXTS --tokens 60000 --recipes laptop --seeds 0 1
    python benchmarks/recipes.py --model M --corpus TEXTS --minutes 10 --recipes laptop --kinds clt transcoders
    python benchmarks/recipes.py --model M --corpus TEXTS --minutes 30 --recipes laptop --buffer-passes 1 2
    python benchmarks/recipes.py … --work runs --csv recipes-270m.csv

Each run is a process of its own, and its folder under `--work` is kept: run the same command again to go on where it was
stopped. Fine-tuning end to end is left out unless `--end-to-end N` gives it N tokens, or `--minutes` decides, since only
our own recipe has it. Everything is measured by `crosstrace evaluate` on the same held-out documents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, write_csv

from crosstrace.replacement_model import load_recipe

RECIPES = ("laptop", "gemma-scope-2", "anthropic-2025", "batch-topk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", nargs="+", required=True, help="text files with a document on each line")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--tokens", type=int, help="tokens of every run")
    length.add_argument("--minutes", type=float, help="minutes of every run")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="names or files of recipes")
    parser.add_argument("--kinds", nargs="+", default=["clt"], choices=["clt", "transcoders"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--buffer-passes", type=int, nargs="+", default=[None], help="by --minutes; default: the recipe's"
    )
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--l0", type=float, default=20.0)
    parser.add_argument("--end-to-end", type=int, default=0, metavar="N", help="tokens of fine-tuning, with --tokens")
    parser.add_argument("--evaluation-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("recipe-runs"), help="where runs are kept")
    parser.add_argument("--csv", help="name of a file in benchmarks/results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tokens and args.buffer_passes != [None]:
        parser.error("--buffer-passes: with --tokens every buffer is used once; expected --minutes")
    torch.set_num_threads(args.threads)
    if args.one:
        one_run(args, json.loads(args.one))
        return
    rows = []
    for recipe, kind, seed, passes in itertools.product(args.recipes, args.kinds, args.seeds, args.buffer_passes):
        rows.append(row(args, recipe, kind, seed, passes))
        print_row(rows[-1], header=len(rows) == 1)
    if args.csv:
        write_csv(RESULTS / args.csv, machine(), rows)


def row(args: argparse.Namespace, recipe: str, kind: str, seed: int, passes: int | None) -> dict[str, Any]:
    """Train and measure one dictionary, unless its folder has both, and return its line of the table."""
    changes: dict[str, Any] = {"kind": kind, "seed": seed, "features": args.features, "l0": args.l0}
    if args.tokens:
        changes |= {"tokens": args.tokens, "end_to_end_tokens": args.end_to_end}
        length = f"{args.tokens}" + (f"-{args.end_to_end}" if args.end_to_end else "")
    else:
        changes |= {"minutes": args.minutes}
        length = f"{args.minutes:g}min"
    if passes:
        changes |= {"buffer_passes": passes}
        length += f"-{passes}passes"
    folder = args.work / f"{Path(recipe).stem}-{kind}-{args.features}-{length}-seed{seed}"
    if not (folder / "report.json").is_file():
        one = json.dumps({"recipe": recipe, "folder": str(folder), "changes": changes})
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", one], check=True)
    run, report = (json.loads((folder / name).read_text()) for name in ("training.json", "report.json"))
    layers, everything = report["layers"], report["all"]
    stages = {name: run["run"].get(name, {}) for name in ("training", "end to end")}

    def mean(key: str) -> float:
        return statistics.mean(layer[key] for layer in layers)

    return {
        "recipe": Path(recipe).stem,
        "kind": kind,
        "seed": seed,
        "buffer_passes": load_recipe(folder / "training.json").passes,
        "tokens": stages["training"].get("tokens", 0),
        "end_to_end_tokens": stages["end to end"].get("tokens", 0),
        "minutes": round(run["run"]["seconds"] / 60, 1),
        "fvu": round(mean("fvu"), 3),
        "fvu_weighted": round(mean("fvu_weighted"), 3),
        "l0": round(mean("l0"), 1),
        "dead_percent": round(100 * mean("dead"), 2),
        "ce_delta": round(everything["ce_replaced"] - everything["ce_model"], 2),
        "top1": round(everything["top1"], 3),
    }


def print_row(values: dict[str, Any], header: bool) -> None:
    """Print a line of a Markdown table."""
    if header:
        print("| " + " | ".join(values) + " |")
        print("| " + " | ".join("---" for _ in values) + " |")
    print("| " + " | ".join(str(value) for value in values.values()) + " |", flush=True)


def one_run(args: argparse.Namespace, run: dict[str, Any]) -> None:
    """Train one dictionary and write its report."""
    from crosstrace.replacement_model import BaseModel, Corpus, Texts, open_transcoders, train
    from crosstrace.replacement_model.training.data.capture import to_fast_dtype
    from crosstrace.replacement_model.training.data.documents import Documents
    from crosstrace.tracer import evaluate
    from crosstrace.tracer.terminal.training import training_progress

    settings = load_recipe(run["recipe"], **run["changes"])
    base, corpus, folder = BaseModel.from_pretrained(args.model), Corpus(args.corpus), Path(run["folder"])
    to_fast_dtype(base)
    begun, start = (folder / "training.json").is_file(), time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with training_progress(lambda: False, None) as watcher:
        train(base, corpus, folder, settings, resume=begun, watcher=watcher)
    print(f"{folder}: trained in {(time.monotonic() - start) / 60:.1f} min", file=sys.stderr)
    held_out = Documents(corpus, settings.held_out_share).some_held_out(args.evaluation_tokens)
    reader = open_transcoders(os.fspath(folder))
    # The loss of single layers is not in the table, and takes the most time.
    report = evaluate(base, reader, Texts(held_out, "held-out documents"), args.evaluation_tokens, layer_tokens=0)
    report.write(folder / "report.json")


if __name__ == "__main__":
    main()
