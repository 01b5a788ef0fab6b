"""What guesses at the names of features cost: what many features of a model promote, over its whole vocabulary.

    python benchmarks/guesses.py --model DIR/gemma3-270m --transcoders DIR/clt/width_18k_l0_medium
    python benchmarks/guesses.py --features 100,1000 --threads 1,2

A guess is what a feature's decoder rows, added up, raise most through the final norm and the unembedding: a matrix product
of 2 × features × d_model × vocabulary operations, which is most of the time. Before anything is timed, some features are
checked against `direct_logits`, which computes them layer by layer. With `--bfloat16` the same product in bfloat16 is timed
beside it: it is faster only on processors with instructions for it (AVX512-BF16, AMX), and its ranking would have to be
repaired in float32. Without a model, the embedded demo is measured. How alike tokens are by chance is found once a model,
before anything is timed; it takes as long as 64 features.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from crosstrace.graphs.cards.labels import is_weak_guess
from crosstrace.replacement_model import ReplacementModel, direct_logits
from crosstrace.replacement_model.readouts.direct_logits import promoted_tokens
from crosstrace.tracer import guesses


def spread_features(model: ReplacementModel, count: int) -> list[tuple[int, int]]:
    """Return features spread evenly over all layers."""
    counts = model.transcoders.reader.n_features
    every = [(layer, feature) for layer, n in enumerate(counts) for feature in range(n)]
    return every[:: max(1, len(every) // count)][:count]


def check(model: ReplacementModel, features: list[tuple[int, int]]) -> None:
    """Compare some features with `direct_logits`.

    Raises:
        AssertionError: They differ.
    """
    found = promoted_tokens(model, features, 8)
    for row, (layer, feature) in enumerate(features):
        expected = direct_logits(model, layer, torch.tensor([feature]), 8)
        torch.testing.assert_close(found.raised[row], expected.raised[0], rtol=1e-4, atol=1e-5)


def seconds(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median wall time of a run and its CPU time, in seconds, after one that is not counted."""
    run()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="M")
    parser.add_argument("--transcoders", metavar="T")
    parser.add_argument("--features", default="100,1000", metavar="N,…", help="how many features")
    parser.add_argument("--threads", default=str(torch.get_num_threads()), metavar="N,…")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--bfloat16", action="store_true", help="time the product in bfloat16 too")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.transcoders is None):
        parser.error("--model and --transcoders go together")
    if arguments.model is None:
        model = ReplacementModel.demo("cpu")
    else:
        model = ReplacementModel.from_pretrained(arguments.model, arguments.transcoders, device="cpu")
    check(model, spread_features(model, 12))
    size = model.description
    print(
        f"{size.n_layers} layers, d_model {size.d_model:,}, vocabulary {size.vocab_size:,}; guesses agree with direct_logits"
    )
    print(f"{'features':>9} {'threads':>7} {'GFLOP':>7} {'wall s':>7} {'CPU s':>7} {'GFLOP/s':>8}")
    weak, features = 0.0, []
    for count in map(int, arguments.features.split(",")):
        features = spread_features(model, count)
        weak = sum(map(is_weak_guess, guesses(model, features).values())) / len(features)
        work = 2e-9 * len(features) * size.d_model * size.vocab_size
        for threads in map(int, arguments.threads.split(",")):
            torch.set_num_threads(threads)
            wall, cpu = seconds(lambda features=features: guesses(model, features), arguments.repeats)
            print(f"{len(features):>9,} {threads:>7} {work:>7.1f} {wall:>7.2f} {cpu:>7.2f} {work / wall:>8.0f}")
            if arguments.bfloat16:
                rows = torch.randn(len(features), size.d_model).bfloat16()
                columns = model.sites.unembedding.bfloat16().T
                wall, cpu = seconds(lambda rows=rows, columns=columns: product(rows, columns), 1)
                print(f"{'bfloat16':>9} {threads:>7} {work:>7.1f} {wall:>7.2f} {cpu:>7.2f} {work / wall:>8.0f}")
    print(f"{weak:.0%} of the last {len(features):,} guesses are weak")


def product(rows: torch.Tensor, columns: torch.Tensor) -> None:
    """Multiply, a block of the vocabulary at a time."""
    for some in columns.split(1 << 12, dim=1):
        rows @ some


if __name__ == "__main__":
    main()
