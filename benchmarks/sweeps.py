"""Throughput of sweeps: a loop of `trace` in one process against `sweep` with one and two workers, and what bounds them.

    python benchmarks/sweeps.py
    python benchmarks/sweeps.py --model model.gguf --transcoders DIR --cards FILE --prompts acronyms.jsonl --count 8

Before anything is timed, the graphs of all three are compared, bit by bit. Every process computes on one thread of the CPU,
so two workers want two quiet cores. *Start* is what a run takes beside its prompts: loading the model, and Ray; it does not
grow with their number. *A prompt* is the time between two prompts of one worker, divided by the number of workers. The last
table says what a prompt's time goes to, in one process. Without `--prompts`, cities that the demo knows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from common import machine

from crosstrace.graphs import with_card_labels
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import SweepPrompt, TraceSettings, read_prompts, sweep
from crosstrace.tracer.attribution.batches import steady_batch_size
from crosstrace.tracer.cards.lookup import cards_of
from crosstrace.tracer.sweeps.folder import Manifest
from crosstrace.tracer.sweeps.tables import graph_tables, write_parts


def prompts_of(path: Path | None, count: int) -> list[SweepPrompt]:
    """Return the first prompts of a file, or of the demo's cities."""
    if path is not None:
        return read_prompts(path)[:count]
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from sweep_prompts import cities

    return [SweepPrompt(row["city"], row["prompt"], metadata=row) for row in cities()[::7]][:count]


def loop(
    load: partial[ReplacementModel], prompts: list[SweepPrompt], folder: Path, cards: Path | None
) -> tuple[float, float]:
    """Trace prompts one after the other as a script would; return the seconds of the start, and of a prompt."""
    began = time.perf_counter()
    model = load()
    loaded = time.perf_counter()
    for number, prompt in enumerate(prompts, 1):
        given = prompt.of(model)
        size = steady_batch_size(model.description, len(model.tokenize(given)), model.device.type)
        settings = TraceSettings(batch_size=size)
        graph = settings.trace(model, given, progress=False, note=lambda line: None)
        settings.finish(graph, model, progress=False, named=cards_of(graph, cards) or ()).save(
            folder / f"{number:06d}.safetensors"
        )
    return loaded - began, (time.perf_counter() - loaded) / len(prompts)


def swept(
    load: partial[ReplacementModel], prompts: list[SweepPrompt], folder: Path, workers: int, cards: Path | None
) -> tuple[float, float]:
    """Sweep prompts; return the seconds of the start, and of a prompt."""
    began = time.perf_counter()
    report = sweep(load, prompts, folder, workers=workers, cards=cards, progress=False)
    total = time.perf_counter() - began
    assert not report.failures, report.failures
    busy = sum(row["seconds"] for row in Manifest.read(folder / "manifest.json").prompts) / workers
    return total - busy, busy / len(prompts)


def same(one: Path, other: Path, count: int) -> None:
    """Compare the graphs of two folders.

    Raises:
        AssertionError: Some are not equal to the bit.
    """
    for number in range(1, count + 1):
        name = f"{number:06d}.safetensors"
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{one / name} and {other / name} differ"


def parts(
    load: partial[ReplacementModel], prompts: list[SweepPrompt], folder: Path, given: Path | None
) -> dict[str, float]:
    """Return what a prompt's seconds go to."""
    model = load()
    spent = dict.fromkeys(("tracing", "pruning and names", "rows of the tables", "writing"), 0.0)
    settings = TraceSettings()
    (folder / "graphs").mkdir(parents=True)
    for number, prompt in enumerate(prompts, 1):
        at = [time.perf_counter()]
        graph = settings.trace(model, prompt.of(model), progress=False, note=lambda line: None)
        at.append(time.perf_counter())
        cards = cards_of(graph, given)
        pruned = settings.finish(graph, model, progress=False, named=cards or ())
        at.append(time.perf_counter())
        tables = graph_tables(with_card_labels(pruned, cards), f"{number}", prompt.as_dict())
        at.append(time.perf_counter())
        write_parts(folder, number, tables)
        pruned.save(folder / "graphs" / f"{number:06d}.safetensors")
        at.append(time.perf_counter())
        for i, name in enumerate(spent):
            spent[name] += (at[i + 1] - at[i]) / len(prompts)
    return spent


def main() -> None:
    """Compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--transcoders")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--cards", type=Path)
    parser.add_argument("--count", type=int, default=48, help="prompts")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    load = partial(ReplacementModel.from_pretrained, asked.model, asked.transcoders)
    prompts = prompts_of(asked.prompts, asked.count)
    with tempfile.TemporaryDirectory() as kept:
        place = Path(kept)
        (place / "loop").mkdir()
        loop(load, prompts[:2], place / "loop", asked.cards)  # files and libraries into memory
        times = {"a loop of trace": loop(load, prompts, place / "loop", asked.cards)}
        for workers in (1, asked.workers):
            name = f"sweep, {workers} worker{'s' if workers > 1 else ''}"
            times[name] = swept(load, prompts, place / f"{workers}", workers, asked.cards)
            same(place / "loop", place / f"{workers}" / "graphs", len(prompts))
        spent = parts(load, prompts[: max(2, len(prompts) // 4)], place / "parts", asked.cards)
    print(f"{machine()}; {asked.model}, {len(prompts)} prompts; all graphs equal to the bit\n")
    print("| | start | a prompt | prompts a minute | against the loop |\n| --- | --- | --- | --- | --- |")
    first = times["a loop of trace"][1]
    for name, (start, each) in times.items():
        print(f"| {name} | {start:.1f} s | {each:.3f} s | {60 / each:.0f} | {first / each:.2f} x |")
    whole = sum(spent.values())
    print("\n| of a prompt's time in one process | | |\n| --- | --- | --- |")
    for name, seconds in spent.items():
        print(f"| {name} | {seconds:.3f} s | {seconds / whole:.0%} |")


if __name__ == "__main__":
    main()
