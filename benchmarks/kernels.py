"""Sparse kernels against dense and against the obvious torch code: checked first, then timed side by side in one run.

    python benchmarks/kernels.py [--size cpu|1b|tiny] [--name cpu-epyc-1thread] [--repeats 5] [--threads 1]

Sweeps how many features are active a token and layer, and how many layers there are: at equal activity a layer, and at
equal activity in all. Writes ``benchmarks/results/kernels-NAME.csv`` and ``.png``.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kernel_methods import WAYS, Workload
from measuring import Machine, interleaved, measure_machine, peak_bytes

from crosstrace.kernels import decode_reference, encode_reference, scores_reference

RESULTS = Path(__file__).parent / "results"
DEFINITION_LIMIT = 20_000  # entries: the definitions go one by one; past this the dense way is what is compared with


@dataclass(frozen=True)
class Size:
    """Of both sweeps; ``depth_*`` of the second, which has to hold every depth's dense decoder."""

    positions: int
    rows: int
    layers: int
    d_model: int
    features: int
    activities: tuple[int, ...]
    depths: tuple[int, ...]
    depth_d_model: int
    depth_features: int
    depth_rows: int
    depth_active: int
    dtype: torch.dtype


SIZES = {
    "tiny": Size(4, 3, 3, 16, 64, (5, 20), (4, 8), 16, 64, 3, 5, torch.float32),
    "cpu": Size(
        16,
        64,
        8,
        256,
        2048,
        (5, 20, 50, 100, 200, 500, 1000),
        (4, 8, 13, 18, 26, 34, 48, 62),
        128,
        512,
        16,
        10,
        torch.float32,
    ),
    "1b": Size(
        64,
        512,
        26,
        1152,
        10_080,
        (5, 20, 50, 100, 200, 500, 1000),
        (4, 8, 13, 18, 26, 34, 48, 62),
        1152,
        4096,
        128,
        40,
        torch.bfloat16,
    ),
}


def check(operation: str, work: Workload) -> float:
    """The largest relative error of any way against the definition; stops where one is wrong."""
    ways = WAYS[operation](work)
    few = len(work.activations) <= DEFINITION_LIMIT
    worst = 0.0
    if operation == "encode":
        for layer, found in enumerate(ways["sparse"]()):
            wanted = encode_reference(work.x_lpd[layer], work.encoders_df[layer], work.bias_f, work.thresholds_f[layer])
            found_n, wanted_n = (part[0] * work.n_features + part[1] for part in (found, wanted))
            for (positions, features, values), ours in ((found, wanted_n), (wanted, found_n)):
                lone_n = ~torch.isin(positions * work.n_features + features, ours)
                distance_n = (values - work.thresholds_f[layer].expand(work.n_features)[features]).abs()[lone_n]
                # a pre-activation so near its threshold that another order of summing moves it to the other side
                assert not (distance_n > 1e-5 * values.abs().max()).any(), f"encode: other features, layer {layer}"
            common, wanted_common = (
                part[2][torch.isin(own_n, other_n)]
                for part, own_n, other_n in ((found, found_n, wanted_n), (wanted, wanted_n, found_n))
            )
            worst = max(worst, float((common - wanted_common).norm() / wanted_common.norm()))
        return worst
    if operation == "decode":
        expected = decode_reference(work.activations, work.decoders_fjd, work.indices) if few else ways["dense"]()
    elif few:
        expected = scores_reference(work.activations, work.decoders_fjd, work.gradients_bpld, work.indices)
    else:
        expected = ways["dense"]()
    for name, way in ways.items():
        error = float((way() - expected).norm() / expected.norm())
        # ours sum in float32 whatever the weights are; the others in the weights' dtype
        limit = 1e-5 if (name.startswith("sparse") and few) or work.dtype == torch.float32 else 3e-2
        assert error < limit, f"{operation}, {name}: relative error {error:.1e}"
        worst = max(worst, error if name.startswith("sparse") else 0.0)
    return worst


def measure(
    operation: str, work: Workload, machine: Machine, repeats: int, only: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """One row for each way, checked, then timed."""
    error = check(operation, work)
    ways = {name: way for name, way in WAYS[operation](work).items() if not only or name in only}
    times = interleaved(ways, work.device, repeats)
    rows = []
    for name, way in ways.items():
        n_bytes, n_flops = work.work(operation, dense="dense" in name)
        rows.append(
            {
                "operation": operation,
                "way": name,
                "layers": work.n_layers,
                "active": work.active,
                "density": work.active / work.n_features,
                "written": work.written,
                "milliseconds": 1e3 * times[name],
                "megabytes_moved": n_bytes / 1e6,
                "gigaflop": n_flops / 1e9,
                "share_of_roofline": machine.floor(n_bytes, n_flops) / times[name],
                "peak_megabytes": peak_bytes(way, work.device) / 1e6,
                "weight_megabytes": work.weight_bytes(name) / 1e6 if operation != "encode" else 0.0,
                "times_sparse": times[name] / times["sparse"],
                "sparse_error": error,
            }
        )
        print(
            f"{operation:7} L={work.n_layers:2} active={work.active:6.1f} {name:20} {rows[-1]['milliseconds']:9.2f} ms  "
            f"{rows[-1]['megabytes_moved']:8.1f} MB  {rows[-1]['share_of_roofline']:5.0%} of roofline  "
            f"peak {rows[-1]['peak_megabytes']:8.1f} MB  {rows[-1]['times_sparse']:6.2f} x sparse",
            flush=True,
        )
    return rows


def exponent(points: list[tuple[float, float]]) -> float:
    """Least squares of log y on log x."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def memory(rows: list[dict[str, Any]]) -> float:
    """Megabytes: the decoder rows that have to be held, and the most that one of the operations takes beyond them."""
    return max(row["weight_megabytes"] for row in rows) + max(row["peak_megabytes"] for row in rows)


def totals(rows: list[dict[str, Any]], way: str, of: str) -> list[tuple[int, int, float]]:
    """(layers, written pairs, encode + decode + scores) of a sweep over depths."""
    depths = sorted({row["layers"] for row in rows})
    out = []
    for depth in depths:
        chosen = [row for row in rows if row["layers"] == depth and row["way"] == way]
        out.append((depth, chosen[0]["written"], memory(chosen) if of == "memory" else sum(row[of] for row in chosen)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--name", help="of the machine, in the names of the files; default: the device's kind")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="on the CPU; with 1, the thread's own time is taken")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    machine = measure_machine(device, size.dtype)
    print(
        f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}, {size.dtype}: "
        f"{machine.bytes_per_second / 1e9:.1f} GB/s, {machine.flops / 1e9:.0f} GFLOP/s"
    )
    rows: list[dict[str, Any]] = []
    for active in size.activities:
        work = Workload(size.layers, size.positions, size.d_model, size.features, active, size.rows, size.dtype, device)
        for operation in WAYS:
            rows += [{"sweep": "activity", **row} for row in measure(operation, work, machine, arguments.repeats)]
        del work
        gc.collect()
    for sweep in ("depth, equal a layer", "depth, equal in all"):
        for depth in size.depths:
            per_layer: float = size.depth_active
            if sweep == "depth, equal in all":  # as many a token in all at every depth
                per_layer = 4 * size.depth_active * size.depths[0] / depth
            work = Workload(
                depth,
                size.positions,
                size.depth_d_model,
                size.depth_features,
                per_layer,
                size.depth_rows,
                size.dtype,
                device,
            )
            for operation in WAYS:
                timed = measure(operation, work, machine, arguments.repeats, only=("sparse", "dense"))
                rows += [{"sweep": sweep, **row} for row in timed]
            del work
            gc.collect()
        swept = [row for row in rows if row["sweep"] == sweep]
        for way in ("sparse", "dense"):
            for of in ("milliseconds", "memory"):
                found = totals(swept, way, of)
                print(
                    f"{sweep}: {way}, {of}: grows as layers^{exponent([(d, y) for d, _, y in found]):.2f}, "
                    f"written pairs^{exponent([(w, y) for _, w, y in found]):.2f}"
                )
    arguments.results.mkdir(parents=True, exist_ok=True)
    name = f"kernels-{arguments.name or device.type}"
    with (arguments.results / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    from kernel_plot import plot

    plot(rows, totals, arguments.results / f"{name}.png")


if __name__ == "__main__":
    main()
