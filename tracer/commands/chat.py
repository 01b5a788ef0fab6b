"""`crosstrace chat …`: what decides a refusal, what a wrapper does to it, what an answer runs through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer.commands.delivery import Delivery, write_each
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
from crosstrace.tracer.commands.prompt_choice import Answer, ChatTemplate

chat = typer.Typer(
    name="chat",
    help="Chat models: why a request is refused, why a wrapper works, whether the reasoning was what it did.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Report = Annotated[
    list[Path] | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write the report: .json, or .html for a page. Repeatable."),
]


PrefixFile = Annotated[
    Path | None,
    typer.Option(
        "--prefixes",
        metavar="FILE",
        help='How answers begin: a JSON object with the lists "refusal" and "compliance".',
        show_default="English ones",
    ),
]
Counts = Annotated[str, typer.Option("--counts", metavar="N,N,…", help="How many features to change.")]
Graphs = Annotated[
    int, typer.Option("--graphs", min=1, metavar="N", help="Trace N conversations of each kind to rank features.")
]
MaxFeatureNodes = Annotated[
    int,
    typer.Option(
        "--max-feature-nodes", min=1, metavar="N", help="Features of a graph that get a row, the most influential ones."
    ),
]
AnswerTokens = Annotated[
    int, typer.Option("--answer-tokens", min=1, metavar="N", help="Generate at most N tokens of an answer.")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", help="Of the split, the random ranking, the bootstrap.")
]
_COUNTS = "1,2,4,8,16,32,64"


def _check(outputs: list[Path] | None, resume: bool) -> None:
    for path in outputs or ():
        if path.suffix.lower() not in (".json", ".html", ".htm"):
            raise typer.BadParameter(f"{path}: reports are written as .json or .html")
    if resume and not outputs:
        raise typer.BadParameter("--resume needs the -o FILE of the interrupted run: its state is kept beside it")


def _state_beside(outputs: list[Path] | None) -> Path | None:
    """Where a run keeps what it has found until its report is written; None where none is."""
    return Path(f"{outputs[0]}.partial") if outputs else None


def _finish(delivery: Delivery, keep: Path | None, quiet: bool) -> None:
    """Forget a run's state once its report is safe, and say what was written."""
    if keep is not None and not delivery.failures:
        keep.unlink(missing_ok=True)
    delivery.finish(quiet)


def _counts(text: str) -> list[int]:
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise typer.BadParameter(f"--counts {text}: write whole numbers, such as 1,2,4,8")
    return [int(number) for number in numbers]


@chat.command()
def refusal(
    refused: Annotated[Path, typer.Option(metavar="FILE", help="Conversations that are refused, one a line (.jsonl).")],
    complied: Annotated[Path, typer.Option(metavar="FILE", help="Conversations that are complied with.")],
    output: Report = None,
    prefixes: PrefixFile = None,
    counts: Counts = _COUNTS,
    ablate: Annotated[
        str, typer.Option(metavar="HOW", help="What a removed feature is set to: its mean in complied ones, or zero.")
    ] = "mean",
    graphs: Graphs = 12,
    max_feature_nodes: MaxFeatureNodes = 1024,
    answer_tokens: AnswerTokens = 24,
    boundary: Annotated[
        int, typer.Option(min=0, metavar="N", help="List the N conversations nearest to the margin's zero.")
    ] = 0,
    seed: Seed = 0,
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

    Example: crosstrace chat refusal --refused refused.jsonl --complied complied.jsonl -o report.html
    """
    chosen = ModelChoice(
        model or "demo-chat", transcoders, device, dtype, memory_budget, None, exclude_first, chat_template
    )
    _check(output, resume)
    numbers = _counts(counts)
    if ablate not in ("mean", "zero"):
        raise typer.BadParameter(f"--ablate {ablate}: a removed feature is set to its mean or to zero")
    with one_line_errors(debug):
        from crosstrace.graphs.files import check_writable
        from crosstrace.replacement_model import read_conversations
        from crosstrace.tracer.chat.prefixes import read_prefixes
        from crosstrace.tracer.chat.refusal import refusal as find
        from crosstrace.tracer.chat.reports import write_report
        from crosstrace.tracer.progress import step_progress
        from crosstrace.tracer.terminal.chat.reports import show_refusal

        for path in output or ():
            check_writable(path)
        begins = read_prefixes(prefixes)
        asked = read_conversations(refused), read_conversations(complied)
        loaded = chosen.load()
        keep = _state_beside(output)
        with step_progress(False if quiet else None) as progress:
            report = find(
                loaded,
                *asked,
                begins,
                counts=numbers,
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
        delivery = write_each(output, lambda path: write_report(report, path), debug)
        if not quiet:
            show_refusal(report)
        _finish(delivery, keep, quiet)


@chat.command()
def jailbreak(
    plain: Annotated[Path, typer.Option(metavar="FILE", help="Requests that are refused, one a line (.jsonl).")],
    wrapped: Annotated[Path, typer.Option(metavar="FILE", help="The same behind the wrapper, in the same order.")],
    output: Report = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the margin's graphs of one pair side by side as a page (.html)."),
    ] = None,
    prefixes: PrefixFile = None,
    counts: Counts = _COUNTS,
    graphs: Graphs = 12,
    max_feature_nodes: MaxFeatureNodes = 1024,
    answer_tokens: AnswerTokens = 24,
    seed: Seed = 0,
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
    """Find what a wrapper does to refusals, and undo it: on half of the pairs found, on the other half tried.

    Example: crosstrace chat jailbreak --plain plain.jsonl --wrapped wrapped.jsonl -o report.html --page pair.html
    """
    chosen = ModelChoice(
        model or "demo-chat", transcoders, device, dtype, memory_budget, None, exclude_first, chat_template
    )
    _check(output, resume)
    numbers = _counts(counts)
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"{page}: a page is written as .html")
    with one_line_errors(debug):
        from crosstrace.graphs import prune, write_comparison_html
        from crosstrace.graphs.files import check_writable
        from crosstrace.replacement_model import read_conversations
        from crosstrace.tracer.chat.jailbreak import jailbreak as find
        from crosstrace.tracer.chat.prefixes import read_prefixes
        from crosstrace.tracer.chat.reports import write_report
        from crosstrace.tracer.progress import step_progress
        from crosstrace.tracer.terminal.chat.reports import show_jailbreak

        for path in [*(output or ()), *([page] if page else [])]:
            check_writable(path)
        begins = read_prefixes(prefixes)
        pairs = read_conversations(plain), read_conversations(wrapped)
        loaded = chosen.load()
        keep = _state_beside(output)
        with step_progress(False if quiet else None) as progress:
            found = find(
                loaded,
                *pairs,
                begins,
                counts=numbers,
                graphs=graphs,
                max_feature_nodes=max_feature_nodes,
                answer_tokens=answer_tokens,
                seed=seed,
                keep=keep,
                resume=resume,
                progress=progress,
                note=note,
            )
        delivery = write_each(output, lambda path: write_report(found.report, path), debug)
        if page is not None:
            both = prune(found.plain), prune(found.wrapped)
            delivery.write(page, lambda path: write_comparison_html(*both, path, ("plain", "wrapped")))
        if not quiet:
            show_jailbreak(found.report)
        _finish(delivery, keep, quiet)


@chat.command()
def reasoning(
    messages: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Conversations whose answers reason first: .json, or one a line (.jsonl)."),
    ],
    output: Report = None,
    answer: Answer = None,
    hint: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A text in the question that hints at an answer.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="REGEX", help="What is a step.", show_default="a sentence")
    ] = None,
    lead_in: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="What stands between the steps and the answer.", show_default="Answer :"),
    ] = None,
    false: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names that may stand for each other in false steps: a JSON list of lists.",
            show_default="the demo's states and capitals, for the chat demo",
        ),
    ] = None,
    max_feature_nodes: MaxFeatureNodes = 1024,
    answer_tokens: AnswerTokens = 64,
    seed: Seed = 0,
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
    """Say whether answers run through the reasoning before them: graph mass and interventions, step by step.

    A line of the file may be an object with messages, answer, hint and label ("dependent", or another).

    Example: crosstrace chat reasoning --messages reasoning.jsonl -o report.html
    """
    chosen = ModelChoice(
        model or "demo-chat", transcoders, device, dtype, memory_budget, None, exclude_first, chat_template
    )
    _check(output, resume)
    with one_line_errors(debug):
        from crosstrace.graphs.files import check_writable
        from crosstrace.replacement_model import read_conversations
        from crosstrace.tracer.chat.entities import demo_entities, read_entities
        from crosstrace.tracer.chat.reasoning import LEAD_IN, STEP
        from crosstrace.tracer.chat.reasoning import reasoning as find
        from crosstrace.tracer.chat.reports import write_report
        from crosstrace.tracer.progress import step_progress
        from crosstrace.tracer.terminal.chat.reports import show_reasoning

        for path in output or ():
            check_writable(path)
        patterns = check_regex("--step", step or STEP), check_regex("--lead-in", lead_in or LEAD_IN)
        records = read_conversations(messages)
        entities = read_entities(false) if false is not None else demo_entities(chosen.model)
        loaded = chosen.load()
        keep = _state_beside(output)
        with step_progress(False if quiet else None) as progress:
            report = find(
                loaded,
                records,
                answer=answer,
                hint=hint,
                step=patterns[0],
                lead_in=patterns[1],
                entities=entities,
                max_feature_nodes=max_feature_nodes,
                answer_tokens=answer_tokens,
                seed=seed,
                keep=keep,
                resume=resume,
                progress=progress,
            )
        delivery = write_each(output, lambda path: write_report(report, path), debug)
        if not quiet:
            show_reasoning(report)
        _finish(delivery, keep, quiet)


def check_regex(option: str, pattern: str) -> str:
    """Return a regular expression that is one.

    Raises:
        ValueError: It is not; the message names the option.
    """
    try:
        re.compile(pattern)
    except re.error as problem:
        raise ValueError(f"{option} {pattern!r} is not a regular expression: {problem}") from None
    return pattern
