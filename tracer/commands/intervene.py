"""``crosstrace intervene``: change features in a prompt and see what the model says then."""

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
    note_unknown_words,
    one_line_errors,
    read_prompt,
)

_REFERENCE = "L3/417@7, or a label or group such as '\"Texas\"@5:'; without @, everywhere."


def intervene(
    prompt: Annotated[str, typer.Argument(help="The text; - reads it from standard input.")],
    model: Model = None,
    transcoders: TranscodersOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FEATURE=VALUE", help=f"Give an activation to {_REFERENCE}")
    ] = None,
    scale: Annotated[
        list[str] | None, typer.Option("--scale", metavar="FEATURE=FACTOR", help="Multiply the activation.")
    ] = None,
    add: Annotated[
        list[str] | None, typer.Option("--add", "--steer", metavar="FEATURE=AMOUNT", help="Add to the activation.")
    ] = None,
    ablate: Annotated[list[str] | None, typer.Option("--ablate", metavar="FEATURE", help="Set it to zero.")] = None,
    swap_in: Annotated[
        list[str] | None,
        typer.Option(
            "--swap-in", metavar="FEATURE=PROMPT", help="Take the activation from another prompt, same positions."
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Groups that a graph's page saved; their names, in quotes, are FEATUREs then."
        ),
    ] = None,
    freeze: Annotated[
        str, typer.Option(help="What is held: direct, constrained:LAYER, or iterative (nothing but attention).")
    ] = "iterative",
    free_attention: Annotated[bool, typer.Option("--free-attention", help="Recompute attention patterns too.")] = False,
    errors: Annotated[
        str, typer.Option(help="What transcoders miss: frozen, recomputed by the model's own MLPs, or dropped.")
    ] = "frozen",
    top: Annotated[int, typer.Option(min=1, help="How many tokens to list.")] = 10,
    generate: Annotated[int, typer.Option(min=0, help="Generate so many tokens, before and after.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the result, .json.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Change features in a prompt: the top tokens before and after, side by side.

    Example: crosstrace intervene "The capital of the state containing Dallas is" --ablate Texas
    """
    if (model is None) != (transcoders is None):
        raise typer.BadParameter("--model and --transcoders go together; without both, the embedded demo is used")
    wishes = {"set": set_, "scale": scale, "add": add, "ablate": ablate, "swap-in": swap_in}
    if not any(wishes.values()):
        raise typer.BadParameter("give at least one of --set, --scale, --add, --ablate, --swap-in")
    with one_line_errors(debug):
        text = read_prompt(prompt)
        from crosstrace.graphs import check_state
        from crosstrace.tracer.interventions.before_after import (
            check_report_file,
            compare,
            parse_intervention,
            write_comparison,
        )
        from crosstrace.tracer.interventions.named_features import by_name

        check_report_file(output)
        interventions = [parse_intervention(verb, wish) for verb, texts in wishes.items() for wish in texts or []]
        if groups is not None:
            check_state(groups)  # before minutes are spent on loading
        loaded = load_model(model, transcoders, device, dtype, quiet)
        note_unknown_words(loaded, text)
        comparison = compare(
            loaded,
            text,
            by_name(interventions, loaded, groups),
            freeze=freeze,
            free_attention=free_attention,
            errors=errors,
            top=top,
            max_new_tokens=generate,
        )
        if output is not None:
            write_comparison(comparison, output)
        if not quiet:
            from rich.console import Console

            from crosstrace.tracer.interventions.before_after import show_comparison

            console = Console()
            show_comparison(comparison, console)
            if output is not None:
                console.print(f"wrote {output}", highlight=False, markup=False)
