"""Many prompts traced with the same settings, into one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer.attribution.checkpoint import TraceInterrupted
from crosstrace.tracer.progress import prompt_progress
from crosstrace.tracer.sweeps.folder import Manifest, Shard, open_manifest
from crosstrace.tracer.sweeps.pool import RayPool
from crosstrace.tracer.sweeps.prompts import SweepPrompt
from crosstrace.tracer.sweeps.settings import TraceSettings
from crosstrace.tracer.sweeps.tables import check_tables, write_tables
from crosstrace.tracer.sweeps.worker import Job, Loader, OneProcess


@dataclass(frozen=True)
class SweepReport:
    """How a sweep ended.

    Attributes:
        folder: Where the graphs are.
        done: How many prompts of the shard have a graph.
        traced: How many of them were traced now.
        failures: (place, why) of the prompts that failed.
        notes: (place, what) of prompts in which something is probably not meant.
    """

    folder: Path
    done: int
    traced: int
    failures: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...] = ()


def sweep(
    model: ReplacementModel | Loader,
    prompts: Sequence[SweepPrompt],
    folder: str | Path,
    settings: TraceSettings | None = None,
    *,
    saes: Sequence[str] = (),
    generate: int = 0,
    workers: int | None = None,
    ray_address: str | None = None,
    shard: tuple[int, int] = (1, 1),
    resume: bool = False,
    threads: int = 1,
    on_gpu: bool | None = None,
    cards: str | Path | None = None,
    progress: bool | None = None,
) -> SweepReport:
    """Trace many prompts into a folder: a graph file a prompt, a manifest, tables.

    Graphs are the same to the bit whatever the number of workers or shards, and in whatever order prompts are traced, on
    one kind of device: each is traced on `threads` threads of the CPU, with batches whose size depends on its length alone.

    Args:
        model: The replacement model; where there are several workers, a function that loads it, such as
            `ReplacementModel.demo`.
        prompts: The prompts, as `read_prompts` returns them. Long ones are traced first.
        folder: Where the results go; made if it does not exist.
        settings: How each is traced; None for the defaults of `trace`.
        saes: SAEs whose latents may be targets, as command lines name them.
        generate: Let the model answer with at most this many tokens first, and explain that answer; 0 for none.
        workers: Processes that trace; None or 1: this one, or with `ray_address` as many as the cluster has GPUs or cores.
            More than one need Ray.
        ray_address: A Ray cluster whose machines share `folder`; None for this machine.
        shard: (i, n): trace only every n-th prompt, from the i-th on. Shards may share a folder.
        resume: Finish what is in the folder: trace what has no graph yet, failed prompts included, and nothing else.
        threads: Threads of the CPU on which a worker computes.
        on_gpu: Whether workers of Ray get GPUs; None: where there are any.
        cards: Feature cards, which label features in the tables; features that they name get no guess. None: those beside
            the transcoders.
        progress: Show progress on standard error; None: yes.

    Returns:
        How many prompts are done, and which failed: a prompt that cannot be traced does not end the sweep.

    Raises:
        ValueError: There are no prompts, the folder holds another sweep (the message names what is different), a library is
            not installed, or the model cannot be loaded.
        OSError: The folder cannot be written to; what was traced is kept.
        TraceInterrupted: A KeyboardInterrupt whose text says how to continue.

    Example:
        >>> report = sweep(ReplacementModel.demo, read_prompts("cities.jsonl"), "cities", workers=2)
        >>> report.done, report.failures
        (354, ())
    """
    place, part = Path(folder), Shard(*shard)
    if not prompts:
        raise ValueError("there are no prompts")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    if part.of > len(prompts):
        raise ValueError(f"shard {part.number}/{part.of}: there are only {len(prompts):,} prompts")
    check_tables()
    by_ray = ray_address is not None or (workers or 1) > 1
    if by_ray and isinstance(model, ReplacementModel):
        raise ValueError("several workers load the model themselves: give a function that loads it")
    (place / "graphs").mkdir(parents=True, exist_ok=True)
    load: Callable[[], ReplacementModel] = partial(_itself, model) if isinstance(model, ReplacementModel) else model
    labels = None if cards is None else Path(cards).resolve()
    job = Job(load, place.resolve(), settings or TraceSettings(), tuple(saes), generate, threads, labels)
    _refuse_at_once(place, part, resume)
    runner = RayPool(job, workers, ray_address, on_gpu) if by_ray else OneProcess(job)
    try:
        manifest = open_manifest(place, part, job.as_settings() | runner.identity(), prompts, resume)
        manifest.write()
        numbers = sorted(manifest.waiting, key=lambda number: (-prompts[number - 1].length, number))
        todo = [(number, prompts[number - 1]) for number in numbers]
        _trace_all(runner, todo, manifest, progress)
    finally:
        runner.close()
    write_tables(place, part, [manifest.row(number) for number in manifest.done], labels)
    failures = tuple((row["place"], row["error"]) for row in manifest.failures)
    notes = tuple((row["place"], note) for row in manifest.noted for note in row["notes"])
    return SweepReport(place, len(manifest.done), len(todo) - len(failures), failures, notes)


def _refuse_at_once(folder: Path, shard: Shard, resume: bool) -> None:
    """Refuse a folder that holds a sweep before the model is loaded."""
    if not resume and (folder / f"manifest{shard.suffix}.json").is_file():
        raise ValueError(f"{folder} holds a sweep already; --resume finishes it")


def _trace_all(
    runner: OneProcess | RayPool, todo: Sequence[tuple[int, SweepPrompt]], manifest: Manifest, progress: bool | None
) -> None:
    """Trace prompts and take down what becomes of each."""
    done = failed = 0
    try:
        with prompt_progress(len(todo), progress) as report:
            for outcome in runner.run(todo):
                manifest.record(outcome)
                done, failed = done + 1, failed + bool(outcome.error)
                report(done, failed)
    except KeyboardInterrupt:
        manifest.write()
        raise TraceInterrupted(
            f"interrupted: {len(manifest.done):,} of {len(manifest.prompts):,} prompts are traced; --resume finishes the rest"
        ) from None
    except OSError as problem:
        raise type(problem)(
            f"{problem} ({len(manifest.done):,} prompts are traced; --resume finishes the rest)"
        ) from problem
    manifest.write()


def _itself(model: Any) -> Any:
    return model
