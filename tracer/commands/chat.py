"""`crosstrace chat …`: what decides a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer.commands.delivery import write_each
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.model_choice import ModelChoice
from crosstrace.tracer.commands.options import (
    Debug,
    Device,
    Dtype,
    ExcludeFirst,
    MemoryBudget,
    Model,
    Quiet,
    Resume,
    TranscodersOption,
)
from crosstrace.tracer.commands.prompt_choice import ChatTemplate

chat = typer.Typer(
    name="chat",
    help="Chat models: why a request is refused.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Report = Annotated[
    list[Path] | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write the report: .json, or .html for a page. Repeatable."),
]


@chat.command()
def refusal(
    refused: Annotated[
        Path, typer.Option(metavar="FILE", help="Conversations that the model refuses, one a line (.jsonl).")
    ],
    complied: Annotated[Path, typer.Option(metavar="FILE", help="Conversations that it complies with.")],
    output: Report = None,
    prefixes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='How answers begin: a JSON object with the lists "refusal" and "compliance".',
            show_default="English ones",
        ),
    ] = None,
    counts: Annotated[
        str, typer.Option(metavar="N,N,…", help="How many features to remove and to add.")
    ] = "1,2,4,8,16,32,64",
    ablate: Annotated[
        str, typer.Option(metavar="HOW", help="What a removed feature is set to: its mean in complied ones, or zero.")
    ] = "mean",
    graphs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trace N conversations of each kind to rank features.")
    ] = 12,
    max_feature_nodes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Features of a graph that get a row, the most influential ones.")
    ] = 1024,
    answer_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Generate at most N tokens of an answer.")
    ] = 24,
    boundary: Annotated[
        int, typer.Option(min=0, metavar="N", help="List the N conversations nearest to the margin's zero.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the split, the random ranking, the bootstrap.")] = 0,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
    model: Model = None,
    transcoders: TranscodersOption = None,
    chat_template: ChatTemplate = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
    exclude_first: ExcludeFirst = None,
) -> None:
    """Find the features that carry a model's refusals: ranked on half of the conversations, tried on the other half.

    Example: crosstrace chat refusal --refused refused.jsonl --complied complied.jsonl --model demo-chat -o report.html
    """
    chosen = ModelChoice(
        model or "demo-chat", transcoders, device, dtype, memory_budget, None, exclude_first, chat_template
    )
    for path in output or ():
        if path.suffix.lower() not in (".json", ".html", ".htm"):
            raise typer.BadParameter(f"{path}: reports are written as .json or .html")
    if ablate not in ("mean", "zero"):
        raise typer.BadParameter(f"--ablate {ablate}: a removed feature is set to its mean or to zero")
    numbers = [text.strip() for text in counts.split(",")]
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise typer.BadParameter(f"--counts {counts}: write whole numbers, such as 1,2,4,8")
    if resume and not output:
        raise typer.BadParameter("--resume needs the -o FILE of the interrupted run: its state is kept beside it")
    with one_line_errors(debug):
        from crosstrace.graphs.files import check_writable
        from crosstrace.replacement_model import read_conversations
        from crosstrace.tracer.chat.prefixes import read_prefixes
        from crosstrace.tracer.chat.refusal import refusal as find
        from crosstrace.tracer.chat.refusal_report import write_refusal
        from crosstrace.tracer.progress import step_progress
        from crosstrace.tracer.terminal.chat import show_refusal

        for path in output or ():
            check_writable(path)
        begins = read_prefixes(prefixes)
        asked = read_conversations(refused), read_conversations(complied)
        loaded = chosen.load()
        keep = Path(f"{output[0]}.partial") if output else None
        with step_progress(False if quiet else None) as progress:
            report = find(
                loaded,
                *asked,
                begins,
                counts=[int(number) for number in numbers],
                removal="zero" if ablate == "zero" else "mean",
                graphs=graphs,
                max_feature_nodes=max_feature_nodes,
                answer_tokens=answer_tokens,
                boundary=boundary,
                seed=seed,
                keep=keep,
                resume=resume,
                progress=progress,
                note=note,
            )
        delivery = write_each(output, lambda path: write_refusal(report, path), debug)
        if keep is not None and not delivery.failures:
            keep.unlink(missing_ok=True)
        if not quiet:
            show_refusal(report)
        delivery.finish(quiet)
