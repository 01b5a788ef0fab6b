"""`crosstrace validate`: check a graph against what interventions do to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer.commands.delivery import write_each
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.model_choice import ModelChoice, choice_of_graph
from crosstrace.tracer.commands.options import CardsOption, Debug, Device, Dtype, Model, Quiet, TranscodersOption
from crosstrace.tracer.commands.prompt_choice import Answer, ChatTemplate, Messages, PromptChoice


def validate(
    graph: Annotated[Path | None, typer.Argument(metavar="GRAPH", help="A .safetensors graph, raw or pruned.")] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write numbers (.json) or plots (.png, .svg, .pdf). Repeatable."
        ),
    ] = None,
    sources: Annotated[
        int, typer.Option(min=1, metavar="N", help="Direct effects: double at most N sources, one at a time.")
    ] = 256,
    features: Annotated[
        int, typer.Option(min=2, metavar="N", help="Total effects: ablate the N most influential features.")
    ] = 64,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed for the sample of sources and the bootstrap.")
    ] = 0,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Total effects: also ablate each group that the graph's page saved, as a whole."
        ),
    ] = None,
    messages: Messages = None,
    answer: Answer = None,
    chat_template: ChatTemplate = None,
    cards: CardsOption = None,
    quiet: Quiet = False,
    debug: Debug = False,
    model: Model = None,
    transcoders: TranscodersOption = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Check a graph with interventions: direct and total effects, heads, faithfulness, and the replacement model itself.

    Without --model and --transcoders, those that the graph names are used. With --messages in place of GRAPH a
    conversation is traced first.

    Example: crosstrace validate dallas.safetensors -o report.json -o plots.png
    """
    chosen = ModelChoice(model, transcoders, device, dtype, chat_template=chat_template)  # wrong usage comes first
    if (graph is None) == (messages is None):
        raise typer.BadParameter("give a GRAPH, or a conversation with --messages FILE")
    if graph is not None and (answer is not None or chat_template is not None):
        raise typer.BadParameter("--answer and --chat-template go with --messages; a graph has its own prompt")
    asked = None if messages is None else PromptChoice(None, messages, answer)
    with one_line_errors(debug):
        from crosstrace.graphs import read_state, read_whole_graph, with_card_labels
        from crosstrace.tracer.attribution.tracing import trace
        from crosstrace.tracer.cards.lookup import cards_of
        from crosstrace.tracer.terminal.validation import show_validation
        from crosstrace.tracer.validation.report import check_outputs, write_validation
        from crosstrace.tracer.validation.validate import validate_graph

        check_outputs(output or ())
        loaded = None
        if asked is not None:
            asked.read()
            loaded = chosen.load()
            traced = trace(loaded, asked.of(loaded), note=note)
        else:
            assert graph is not None
            traced = read_whole_graph(graph, "validation")
            chosen = choice_of_graph(traced, model, transcoders, device, dtype)
        supernodes = [] if groups is None else read_state(groups, traced).supernodes
        loaded = loaded or chosen.load()
        labelled = with_card_labels(traced, cards_of(traced, cards, note))
        validation = validate_graph(loaded, labelled, sources, features, seed, supernodes, note)
        delivery = write_each(output, lambda path: write_validation(validation, path), debug)
        if not quiet:
            show_validation(validation)
        for problem in (validation.direct.problem, validation.heads.problem):
            if problem:
                delivery.failures.append(ValueError(problem))
        delivery.finish(quiet)
