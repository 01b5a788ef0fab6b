"""``crosstrace validate``: hold a graph against what interventions do to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer.commands.options import (
    Debug,
    Device,
    Dtype,
    Model,
    Quiet,
    TranscodersOption,
    load_model,
    one_line_errors,
)


def validate(
    graph: Annotated[Path, typer.Argument(help="A .safetensors graph, raw or pruned.")],
    model: Model = None,
    transcoders: TranscodersOption = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write numbers (.json) or plots (.png, .svg, .pdf). Repeatable."
        ),
    ] = None,
    sources: Annotated[int, typer.Option(min=1, help="Doubled at most so many sources for the direct effects.")] = 256,
    features: Annotated[int, typer.Option(min=2, help="So many of the top features for the total effects.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample and the bootstrap.")] = 0,
    groups: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Groups that the graph's page saved: ablated as one for the total effects."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check a graph by interventions: direct effects, total effects, faithfulness, the replacement model itself.

    Example: crosstrace trace "The capital of the state containing Dallas is" -o dallas.safetensors
    and crosstrace validate dallas.safetensors -o report.json -o plots.png
    """
    if (model is None) != (transcoders is None):
        raise typer.BadParameter("--model and --transcoders go together; without both, the embedded demo is used")
    with one_line_errors(debug):
        from crosstrace.graphs import read_graph, read_state, with_card_labels
        from crosstrace.tracer.cards.lookup import cards_of
        from crosstrace.tracer.validation.report import check_outputs, show_validation, write_validation
        from crosstrace.tracer.validation.validate import validate_graph

        check_outputs(output or [])
        traced = read_graph(graph)
        supernodes = [] if groups is None else read_state(groups, traced).supernodes
        # Edges hold for the weights as they were used.
        loaded = load_model(model, transcoders, device, dtype or traced.settings.get("weights_dtype"), quiet)
        labelled = with_card_labels(traced, cards_of(traced))
        validation = validate_graph(loaded, labelled, sources, features, seed, supernodes)
        for path in output or []:
            write_validation(validation, path)
        if not quiet:
            from rich.console import Console

            console = Console()
            show_validation(validation, console)
            for path in output or []:
                console.print(f"wrote {path}", highlight=False, markup=False)
