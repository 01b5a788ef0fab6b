"""`crosstrace sweep`: many prompts traced into one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.graphs.analysis.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import check_thresholds, say_wrote
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.model_choice import ModelChoice
from crosstrace.tracer.commands.options import (
    Attention,
    BatchSize,
    CardsOption,
    Debug,
    Device,
    DeviceMap,
    Dtype,
    EdgeThreshold,
    ExcludeFirst,
    LogitProbability,
    MaxFeatureNodes,
    MaxLogits,
    MemoryBudget,
    Model,
    NodeThreshold,
    Position,
    Quiet,
    Saes,
    Targets,
    TranscodersOption,
)
from crosstrace.tracer.commands.prompt_choice import ChatTemplate, Generate, HideTemplate

_MANY = "Many prompts"
_FAILURES_NAMED = 5


def sweep(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS",
            help='.txt (a prompt a line), .jsonl or .parquet ("prompt" or "messages", "targets"; other keys are metadata).',
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Write graphs, manifest and tables here.")
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="Trace in N processes, through Ray.",
            show_default="this process; with --ray, one a GPU or core",
            rich_help_panel=_MANY,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Trace on a Ray cluster whose machines share FOLDER: auto, or HOST:PORT.",
            rich_help_panel=_MANY,
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="i/n", help="Trace only every n-th prompt.", rich_help_panel=_MANY)
    ] = "1/1",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Finish what is missing in FOLDER, and nothing else.", rich_help_panel=_MANY),
    ] = False,
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            min=1,
            metavar="N",
            help="Compute on N threads of the CPU in every process; bits depend on it.",
            rich_help_panel=_MANY,
        ),
    ] = 1,
    cards: CardsOption = None,
    quiet: Quiet = False,
    debug: Debug = False,
    model: Model = None,
    transcoders: TranscodersOption = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    exclude_first: ExcludeFirst = None,
    batch_size: BatchSize = None,
    target: Targets = None,
    sae: Saes = None,
    position: Position = -1,
    max_logits: MaxLogits = defaults.MAX_LOGITS,
    logit_probability: LogitProbability = defaults.LOGIT_PROBABILITY,
    max_feature_nodes: MaxFeatureNodes = None,
    node_threshold: NodeThreshold = NODE_THRESHOLD,
    edge_threshold: EdgeThreshold = EDGE_THRESHOLD,
    generate: Generate = 0,
    chat_template: ChatTemplate = None,
    hide_template: HideTemplate = False,
    attention: Attention = False,
) -> None:
    """Trace many prompts into a folder: a graph a prompt, a manifest, and Parquet tables of graphs, nodes and edges.

    Example: crosstrace sweep cities.jsonl -o cities

    Example: crosstrace sweep cities.jsonl -o cities --workers 8 --resume
    """
    chosen = ModelChoice(model, transcoders, device, dtype, memory_budget, device_map, exclude_first, chat_template)
    with one_line_errors(debug):
        check_thresholds(node_threshold, edge_threshold)
        if output.exists() and not output.is_dir():
            raise ValueError(f"cannot write {output}: it is a file; a sweep writes a folder")
        from crosstrace.tracer.sweeps.folder import Shard
        from crosstrace.tracer.sweeps.prompts import read_prompts
        from crosstrace.tracer.sweeps.run import sweep as trace_all
        from crosstrace.tracer.sweeps.settings import TraceSettings

        part = Shard.parse(shard)
        settings = TraceSettings(
            tuple(target or ()),
            max_logits,
            logit_probability,
            max_feature_nodes,
            batch_size,
            position,
            node_threshold,
            edge_threshold,
            attention,
            hide_template,
        )
        report = trace_all(
            chosen.load,
            read_prompts(prompts),
            output,
            settings,
            saes=sae or (),
            generate=generate,
            workers=workers,
            ray_address=ray,
            shard=(part.number, part.of),
            resume=resume,
            threads=threads,
            on_gpu=None if device is None else device.startswith("cuda"),
            cards=cards,
            progress=False if quiet else None,
        )
    if not quiet:
        say_wrote(f"{output}: {report.done:,} graphs, {report.traced:,} of them traced now")
        for place, what in report.notes[:_FAILURES_NAMED]:
            note(f"{place}: {what}")
        if len(report.notes) > _FAILURES_NAMED:
            note(f"{len(report.notes) - _FAILURES_NAMED:,} more notes on prompts are in the manifest")
    for place, why in report.failures[:_FAILURES_NAMED]:
        typer.echo(f"error: {why if why.startswith(place) else f'{place}: {why}'}", err=True)
    if report.failures:
        more = len(report.failures) - _FAILURES_NAMED
        if more > 0:
            note(f"{more:,} more prompts failed; the manifest says why")
        raise typer.Exit(1)
