"""Time and peak memory of a trace by phase, and its rows against a floor of bare matrix products.

    python benchmarks/make_model.py DIR --shape 270m --features 2048 --active 35
    python benchmarks/trace.py DIR --tokens 16 --nodes 512
    python benchmarks/trace.py DIR --tokens 16 32 64 --nodes 128 512 --csv trace-270m.csv --plot

Verifies before it times: every row must be complete (what flows in equals what is there) to 1e-5. The floor is the same
work as bare products, in the same run: for every batch each layer's projections and attention, and a product of the size
of each (position, layer) group's scores; no scales, no bookkeeping, no copies, weights and rows in float32 beforehand.
Traces and floors take turns (``--repeats``), and of each the fastest counts: what else a machine does only adds.

Memory is this process's peak while it runs: resident counts pages of mapped files too, which the system takes back
whenever anyone needs the room; anonymous is what the process itself holds.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Phases, machine, random_prompt, watched_memory, write_csv

from crosstrace.graphs import prune, write_json
from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel, Target
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.dictionaries import active_rows, in_use
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.local.adjoint import Adjoint
from crosstrace.replacement_model.memory import format_bytes
from crosstrace.tracer import RowStore, plan_trace, trace

PHASES = ("forward", "encode", "gather", "decode", "rows", "scores", "store", "ranking", "assemble", "prune", "export")


class Watch:
    """Replaces functions by timed ones while it is open, and remembers the batches."""

    def __init__(self, phases: Phases) -> None:
        self.phases = phases
        self.batches: list[list[tuple[int, int, bool]]] = []
        self._undo: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Watch:
        for owner, function, name in (
            (ModelSites, "run", "forward"),
            (in_use, "encode", "encode"),
            (Transcoders, "decoder_rows_of", "gather"),
            (active_rows.ActiveRows, "decode", "decode"),
            (active_rows.ActiveRows, "scores", "scores"),
            (Adjoint, "rows", "rows"),
            (RowStore, "add", "store"),
            (RowStore, "most_influential", "ranking"),
            (RowStore, "assemble", "assemble"),
        ):
            original = getattr(owner, function)
            self._undo.append((owner, function, original))
            setattr(owner, function, self.phases.timed(name, original))
        timed = Adjoint.rows

        def remembered(adjoint: Adjoint, targets: list[Target]) -> Any:
            self.batches.append([(t.layer, t.position, t.after_attention) for t in targets])
            return timed(adjoint, targets)

        Adjoint.rows = remembered  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for owner, function, original in self._undo:
            setattr(owner, function, original)


@torch.no_grad()
def floor_seconds(local: LocalReplacementModel, batches: list[list[tuple[int, int, bool]]]) -> dict[str, float]:
    """Seconds of the bare products of some batches: layers and scores."""
    size, device = local.description, local.residuals_lpd.device
    heads, width, kv_heads, d_model = size.n_heads, size.head_dim, size.n_kv_heads, size.d_model
    output, value = torch.randn(d_model, heads * width, device=device), torch.randn(width, d_model, device=device)
    seconds = {"layers": 0.0, "scores": 0.0}

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for batch in batches:
        n_positions = max(position for _, position, _ in batch) + 1
        top = max(layer for layer, _, _ in batch)
        pattern = torch.randn(n_positions, heads // kv_heads * n_positions, device=device)
        for layer in range(top, -1, -1):
            rows = sum(at > layer or (at == layer and after) for at, _, after in batch)
            if not rows:
                continue
            gradient = torch.randn(n_positions * rows, d_model, device=device)
            mixed = torch.randn(heads // kv_heads * n_positions, rows * width, device=device)
            values = torch.randn(n_positions * rows, width, device=device)
            begin = clock()
            gradient @ output
            for _ in range(kv_heads):
                pattern @ mixed
                values @ value
            seconds["layers"] += clock() - begin
        seconds["scores"] += _score_floor(local.activations, batch, n_positions, top, d_model, local)
    return seconds


def _score_floor(
    activations: SparseActivations,
    batch: list[tuple[int, int, bool]],
    n_positions: int,
    top: int,
    d_model: int,
    local: LocalReplacementModel,
) -> float:
    counts = activations.offsets.diff().view(activations.n_layers, activations.n_positions)[:, :n_positions]
    device, seconds = activations.device, 0.0
    for layer in range(top):
        written = min(local.transcoders.reader.n_written(layer), top - layer)
        rows = sum(at > layer for at, _, _ in batch)
        gradient = torch.randn(rows, written * d_model, device=device)
        most = int(counts[layer].max())
        decoder = torch.randn(written * d_model, max(most, 1), device=device)
        for count in counts[layer].tolist():
            begin = time.perf_counter()
            gradient @ decoder[:, :count]
            seconds += time.perf_counter() - begin
    return seconds


def measure(
    folder: Path, clt: Path, n_tokens: int, n_nodes: int, budget: str | None, batch: int | None, repeats: int
) -> dict[str, object]:
    """One trace: verified, then timed, the fastest of some."""
    begin = time.perf_counter()
    model = ReplacementModel.from_pretrained(folder, clt, memory_budget=budget)
    loading = time.perf_counter() - begin
    prompt = random_prompt(n_tokens, model.description.vocab_size)
    check = trace(model, prompt, max_feature_nodes=min(n_nodes, 16), progress=False)  # warms up, too
    error = check.completeness_error()
    assert error < 1e-5, f"rows are not complete: {error:.1e}"
    total, times, floor = math.inf, {}, {}  # type: tuple[float, dict[str, float], dict[str, float]]
    for _ in range(repeats):
        phases = Phases(model.device)
        with watched_memory() as memory, Watch(phases) as watch:
            begin = time.perf_counter()
            graph = trace(model, prompt, max_feature_nodes=n_nodes, batch_size=batch)
            seconds = time.perf_counter() - begin
        with phases.phase("prune"):
            pruned = prune(graph)
        with tempfile.TemporaryDirectory() as scratch, phases.phase("export"):
            write_json(pruned, Path(scratch) / "graph.json")
        local = model.local(prompt)
        bare, rows = floor_seconds(local, watch.batches), (local.active_rows.nbytes, local.active_rows.place)
        del local  # or its rows would be in memory twice in the next round
        if seconds < total:
            total, times = seconds, phases.seconds
        if not floor or sum(bare.values()) < sum(floor.values()):
            floor = bare
    result: dict[str, object] = {
        "tokens": n_tokens,
        "active": len(graph.active_features),
        "nodes": len(graph.selected_features),
        "edges": graph.edges.nnz,
        "load_s": round(loading, 3),
        "trace_s": round(total, 3),
    }
    result |= {f"{name}_s": round(times.get(name, 0.0), 3) for name in PHASES}
    result |= {f"floor_{name}_s": round(seconds, 3) for name, seconds in floor.items()}
    result |= {
        "rows_over_floor": round(times["rows"] / sum(floor.values()), 2),
        "peak_resident_gb": round(memory.resident / 1e9, 2),
        "peak_anonymous_gb": round(memory.anonymous / 1e9, 2),
        "completeness_error": f"{graph.completeness_error():.1e}",
    }
    if model.device.type == "cuda":
        result["peak_device_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    print(
        f"{n_tokens} tokens, {result['active']:,} active, {result['nodes']} nodes: {total:.2f} s, rows {times['rows']:.2f} s "
        f"= {result['rows_over_floor']} x the floor; peak {format_bytes(memory.resident)} resident, "
        f"{format_bytes(memory.anonymous)} of it the process's own; decoder rows: {format_bytes(rows[0])} in {rows[1]}"
    )
    print("  " + ", ".join(f"{name} {times.get(name, 0.0):.2f} s" for name in PHASES))
    plan = plan_trace(folder, clt, n_tokens, n_nodes, batch, memory_budget=budget)
    expected = ", ".join(f"{part.name} {format_bytes(part.n_bytes)} ({part.place})" for part in plan.parts)
    print(f"  expected by --explain: {format_bytes(plan.peak_bytes)}: {expected}")
    return result


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time by phase against tokens and against nodes, each line named at its end."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, along, other in ((axes[0], "tokens", "nodes"), (axes[1], "nodes", "tokens")):
        fixed = max(row[other] for row in rows)
        chosen = sorted((row for row in rows if row[other] == fixed), key=lambda row: row[along])
        places = [row[along] for row in chosen]
        for name in ("trace_s", "rows_s", "scores_s", "gather_s", "forward_s"):
            seconds = [row[name] for row in chosen]
            (line,) = axis.plot(places, seconds, "o-", linewidth=1.5, markersize=4)
            axis.annotate(
                name.removesuffix("_s"),
                (places[-1], seconds[-1]),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=line.get_color(),
            )
        axis.set(xlabel=f"{along} ({fixed} {other})", xscale="log", yscale="log", xticks=places)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.set_xticks(places, [str(place) for place in places])
        axis.set_xlim(places[0] * 0.9, places[-1] * (places[-1] / places[0]) ** 0.22)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("seconds")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what make_model.py wrote")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16])
    parser.add_argument("--nodes", type=int, nargs="+", default=[512])
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--memory-budget")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", help="name under benchmarks/results")
    parser.add_argument("--plot", action="store_true", help="draw scaling beside the CSV")
    arguments = parser.parse_args()
    clt = next((arguments.folder / "clt").iterdir())
    print(machine())
    rows = [
        measure(
            arguments.folder / "model",
            clt,
            tokens,
            nodes,
            arguments.memory_budget,
            arguments.batch_size,
            arguments.repeats,
        )
        for tokens in arguments.tokens
        for nodes in arguments.nodes
    ]
    if arguments.csv:
        write_csv(RESULTS / arguments.csv, f"benchmarks/trace.py on {machine()}", rows)
        if arguments.plot:
            plot(rows, (RESULTS / arguments.csv).with_suffix(".png"))


if __name__ == "__main__":
    main()
