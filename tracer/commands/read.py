"""`crosstrace read`: what the model holds at each token of a prompt, in the words of its dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import PAGES, open_page, write_each
from crosstrace.tracer.commands.dictionaries import cards_of_dictionaries, open_to_read
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import (
    Debug,
    Device,
    DeviceMap,
    Dtype,
    ExcludeFirst,
    MemoryBudget,
    Model,
    OpenIt,
    Quiet,
    Saes,
    TextField,
    TranscodersOption,
)
from crosstrace.tracer.commands.prompt_choice import (
    Answer,
    ChatTemplate,
    HideTemplate,
    Messages,
    OptionalPrompt,
    PromptChoice,
)


def read(
    prompt: OptionalPrompt = None,
    sae: Saes = None,
    transcoders: TranscodersOption = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write the reading: .json, or .html for a page. Repeatable."
        ),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option("--probe", metavar="FILE", help="Score every token with a probe of crosstrace probe.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="In place of PROMPT: texts (.jsonl) whose claims --says compares a probe with.",
        ),
    ] = None,
    says: Annotated[
        str | None,
        typer.Option(
            "--says",
            metavar="NAME",
            help="Key of --prompts that holds what a text or its answer claims, true or false.",
        ),
    ] = None,
    text_field: TextField = "text",
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep N latents at each position of every layer.")
    ] = defaults.READ_TOP,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Show about N latents.")] = defaults.READ_ROWS,
    messages: Messages = None,
    answer: Answer = None,
    chat_template: ChatTemplate = None,
    hide_template: HideTemplate = False,
    open_it: OpenIt = False,
    quiet: Quiet = False,
    debug: Debug = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    exclude_first: ExcludeFirst = None,
) -> None:
    """Read a prompt: which latents of SAEs or transcoders are active at each token.

    Example: crosstrace read "Dallas is a city in"

    Example: crosstrace read PROMPT --model gemma-3-270m --sae FOLDER -o reading.html
    """
    if prompts is not None and (prompt is not None or messages is not None):
        raise typer.BadParameter("give a PROMPT, a conversation with --messages FILE, or texts with --prompts FILE")
    words = PromptChoice(prompt, messages, answer) if prompts is None else None
    if prompts is not None and (probe is None or says is None):
        raise typer.BadParameter(
            "--prompts goes with --probe and --says: a probe is compared with what the texts claim"
        )
    if prompts is None and says is not None:
        raise typer.BadParameter("--says goes with --prompts: it names a key of that file")
    for path in output or ():
        if prompts is not None and path.suffix.lower() != ".json":
            raise typer.BadParameter(f"{path}: disagreements are written as .json")
        if path.suffix.lower() not in (".json", *PAGES):
            raise typer.BadParameter(f"{path}: readings are written as .json or .html")
    if open_it and not any(path.suffix.lower() in PAGES for path in output or ()):
        raise typer.BadParameter("--open shows a page: name one with -o FILE.html")
    with one_line_errors(debug):
        from crosstrace.graphs.files import check_writable
        from crosstrace.tracer.probes.disagreements import disagreements
        from crosstrace.tracer.probes.examples import read_examples
        from crosstrace.tracer.probes.probe import Probe
        from crosstrace.tracer.reading.read import read as read_with
        from crosstrace.tracer.reading.report import write_reading
        from crosstrace.tracer.terminal.probe import show_disagreements, show_scores
        from crosstrace.tracer.terminal.reading import show_reading

        for path in output or ():
            check_writable(path)
        if words is not None:
            words.read()
        examples = [] if prompts is None else read_examples(prompts, text_field, says_field=says)
        scorer = None if probe is None else Probe.load(probe)
        base, used = open_to_read(
            model, sae, transcoders, device, dtype, memory_budget, device_map, exclude_first, chat_template
        )
        if words is None:
            assert scorer is not None
            found = disagreements(base, scorer, examples, used)
            delivery = write_each(output, found.write, debug)
            if not quiet:
                show_disagreements(found)
            delivery.finish(quiet)
            return
        words.note(base)
        text = words.of(base)
        reading = read_with(base, text, used, top=top, cards=cards_of_dictionaries(base, used))
        if hide_template:
            reading = reading.without_template()
        scores = None if scorer is None else scorer.score(base, text, used)
        delivery = write_each(output, lambda path: write_reading(reading, path, scores), debug)
        if not quiet:
            show_reading(reading, rows=rows)
            if scores is not None:
                show_scores(scores)
        for line in reading.notes():
            note(line)
        if open_it:
            for path in delivery.written:
                if path.suffix.lower() in PAGES:
                    open_page(path)
        delivery.finish(quiet)
