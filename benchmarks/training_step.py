"""One training step of a cross-layer transcoder: ours, dense and ``embedding_bag``, checked first, then timed in one run.

    python benchmarks/training_step.py [--size 270m block-1b ...] [--threads 1] [--repeats 5] [--out FILE.csv]

Sizes: ``270m`` is a whole step at 18 layers of 1,024 features; ``block-270m`` and ``block-1b`` are decode, backward and Adam
for one decoder block, the latter at 10,080 features and d_model 1,152; ``1b`` is the whole step at that size, for a GPU. Then
time and memory against depth at equal activity a layer. The inputs are random, so that every feature is about as often
active; ``--moments bfloat16`` adds our step with narrow moments.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import machine, write_csv
from measuring import interleaved, peak_bytes
from training_methods import STEPS, Step, Training, sparse_step, weights_of

from crosstrace.kernels import AdamStep
from crosstrace.kernels.dispatch import choose_path
from kernels import exponent


@dataclass(frozen=True)
class Size:
    """Of one measurement; a block is one source layer that writes to one."""

    layers: int
    tokens: int
    d_model: int
    features: int
    active: int = 20
    encodes: bool = True


SIZES = {
    "tiny": Size(3, 32, 32, 64, 4),
    "block-270m": Size(1, 512, 640, 1024, encodes=False),
    "block-1b": Size(1, 512, 1152, 10_080, encodes=False),
    "270m": Size(18, 512, 640, 1024),
    "1b": Size(26, 512, 1152, 10_080),
}
DEPTHS = (4, 8, 13, 18, 26)
DEPTH = Size(0, 256, 256, 1024)
SMALL_DEPTH = Size(0, 16, 32, 64, 4)
SLOW = 3.0  # a bfloat16 product that takes this many times a float32 one has no hardware behind it


def drawn(size: Size, device: torch.device, layers: int | None = None, **settings: Any) -> Training:
    shape = (layers or size.layers, size.tokens, size.d_model, size.features, size.active)
    return Training(*shape, device, encodes=size.encodes, **settings)


def check(ways: dict[str, Step], size: Size, device: torch.device) -> float:
    """One step of every way from the same weights has to end at the same; returns our largest relative difference.

    With Adam's epsilon far above the gradients a step is nearly proportional to them: with the usual one the first step only
    shows their signs.
    """
    start = drawn(size, device, layers=min(size.layers, 2), adam=AdamStep(1.0, epsilon=1.0))
    before = dict(weights_of(start))
    worst = 0.0
    expected: dict[str, torch.Tensor] = {}
    for name in ("dense float32", *(name for name in ways if name != "dense float32")):
        after = start.copy()
        STEPS.get(name, ways.get(name, sparse_step))(after)
        changes = {key: weight - before[key] for key, weight in weights_of(after)}
        expected = expected or changes
        limit = 5e-2 if "bfloat16" in name else 1e-4
        for key, change in changes.items():
            scale = float(expected[key].norm())
            error = float((change - expected[key]).norm()) / scale if scale else float(change.norm())
            # near the threshold bfloat16 encodes other features than float32: only its decoder alone can be compared
            assert error < limit or ("dense bfloat16" in name and size.encodes), f"{name}, {key}: error {error:.1e}"
            if name == "sparse":
                worst = max(worst, error)
    return worst


def bfloat16_is_slow(device: torch.device) -> float:
    """How many times a float32 product a bfloat16 one takes."""
    wide = torch.randn(512, 512, device=device)
    narrow = wide.bfloat16()
    times = interleaved({"wide": lambda: wide @ wide, "narrow": lambda: narrow @ narrow}, device, 3)
    return times["narrow"] / times["wide"]


def measure(
    label: str, size: Size, training: Training, ways: dict[str, Step], repeats: int, error: float
) -> list[dict[str, Any]]:
    """One row for each way."""

    def bound(step: Step) -> Any:
        return lambda: step(training)

    times = interleaved({name: bound(step) for name, step in ways.items()}, training.device, repeats)
    rows = []
    for name, step in ways.items():
        held = training.held_bytes()
        peak = peak_bytes(bound(step), training.device)
        rows.append(
            {
                "size": label,
                "way": name,
                "layers": size.layers or training.n_layers,
                "features": training.n_features,
                "d_model": training.d_model,
                "tokens": training.n_tokens,
                "active": len(training.activations) / training.n_layers / training.n_tokens,
                "written": training.written,
                "milliseconds": 1e3 * times[name],
                "tokens_per_second": training.n_tokens / times[name],
                "held_megabytes": held / 1e6,
                "peak_megabytes": peak / 1e6,
                "times_sparse": times[name] / times["sparse"],
                "sparse_error": error,
            }
        )
        print(
            f"{label:10} L={training.n_layers:2} {name:24} {1e3 * times[name]:10.2f} ms "
            f"{training.n_tokens / times[name]:9.0f} tokens/s  held {held / 1e6:8.1f} MB, peak {peak / 1e6:7.1f} MB more "
            f"{times[name] / times['sparse']:7.2f} x sparse",
            flush=True,
        )
    return rows


def depth(
    size: Size, depths: tuple[int, ...], ways: dict[str, Step], device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """A sweep over the number of layers at equal activity a layer, with the exponents of time and memory."""
    rows: list[dict[str, Any]] = []
    error = check(ways, Size(2, size.tokens, size.d_model, size.features, size.active), device)
    for layers in depths:
        training = drawn(size, device, layers=layers)
        rows += measure("depth", size, training, ways, repeats, error)
        del training
        gc.collect()
    for name in ways:
        own = [row for row in rows if row["way"] == name]
        of = {
            "time": [(row["layers"], row["written"], row["milliseconds"]) for row in own],
            "memory": [(row["layers"], row["written"], row["held_megabytes"] + row["peak_megabytes"]) for row in own],
        }
        for what, points in of.items():
            print(
                f"depth: {name}, {what}: grows as layers^{exponent([(x, y) for x, _, y in points]):.2f}, "
                f"written pairs^{exponent([(x, y) for _, x, y in points]):.2f}"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["block-270m", "block-1b", "270m"])
    parser.add_argument("--threads", type=int, help="on the CPU; with 1, the thread's own time is taken")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--moments", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--no-depth", action="store_true", help="leave the sweep over depths out")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    slower = bfloat16_is_slow(device)
    note = f"{machine(device.type)}; our path: {choose_path('decode_backward_adam', device)}"
    if slower > SLOW:
        note += f"; a bfloat16 product takes {slower:.0f} times a float32 one here, so dense bfloat16 is left out"
    print(note)
    ways = {name: step for name, step in STEPS.items() if slower <= SLOW or name != "dense bfloat16"}
    rows: list[dict[str, Any]] = []
    for label in ["tiny"] if arguments.small else arguments.size:
        size = SIZES[label]
        error = check(ways, size, device)
        training = drawn(size, device)
        rows += measure(label, size, training, ways, arguments.repeats, error)
        if arguments.moments == "bfloat16":
            print("with bfloat16 moments:")
            narrow = {"sparse": sparse_step}
            training.moments = drawn_moments(training)
            training.moments_dtype = torch.bfloat16
            own = measure(label, size, training, narrow, arguments.repeats, error)
            rows += [{**row, "way": "sparse, bfloat16 moments"} for row in own]
        del training
        gc.collect()
    if not arguments.no_depth:
        swept = {name: step for name, step in ways.items() if name in ("sparse", "dense float32")}
        small = arguments.small
        rows += depth(
            SMALL_DEPTH if small else DEPTH, DEPTHS[:2] if small else DEPTHS, swept, device, arguments.repeats
        )
    if arguments.out:
        shown = [{key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(arguments.out, note, shown)


def drawn_moments(training: Training) -> dict[str, Any]:
    """The moments of a training in bfloat16."""
    from crosstrace.kernels import RowMoments

    return {
        name: [RowMoments(s.first.bfloat16(), s.second.bfloat16(), s.steps) for s in states]
        for name, states in training.moments.items()
    }


if __name__ == "__main__":
    main()
