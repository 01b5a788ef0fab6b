"""`crosstrace intervene`: change features in a prompt and see what the model says then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer.commands.delivery import write_each
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.model_choice import ModelChoice
from crosstrace.tracer.commands.options import (
    CardsOption,
    Debug,
    Device,
    Dtype,
    ExcludeFirst,
    Model,
    Quiet,
    Saes,
    TranscodersOption,
)
from crosstrace.tracer.commands.prompt_choice import Answer, ChatTemplate, Messages, OptionalPrompt, PromptChoice

_EDITS = "Interventions"


def intervene(
    prompt: OptionalPrompt = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FEATURE=VALUE", help="Set the activation.", rich_help_panel=_EDITS),
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option("--scale", metavar="FEATURE=FACTOR", help="Multiply the activation.", rich_help_panel=_EDITS),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            "--add", "--steer", metavar="FEATURE=AMOUNT", help="Add to the activation.", rich_help_panel=_EDITS
        ),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option("--ablate", metavar="FEATURE", help="Set the activation to zero.", rich_help_panel=_EDITS),
    ] = None,
    swap_in: Annotated[
        list[str] | None,
        typer.Option(
            "--swap-in",
            metavar="FEATURE=PROMPT",
            help="Take the activation from the same positions of another prompt.",
            rich_help_panel=_EDITS,
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Groups that a graph's page saved; a FEATURE may then be a group's name in quotes.",
            rich_help_panel=_EDITS,
        ),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A graph, .safetensors or .json; a FEATURE may then be any name that it shows, in quotes.",
            rich_help_panel=_EDITS,
        ),
    ] = None,
    cards: CardsOption = None,
    sae: Saes = None,
    freeze: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="What stays as it was: direct (all other features), constrained:LAYER (features up to LAYER), "
            "or iterative (attention alone).",
        ),
    ] = "iterative",
    free_attention: Annotated[bool, typer.Option("--free-attention", help="Recompute attention patterns too.")] = False,
    errors: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="What transcoders miss is frozen, recomputed by the model's own MLPs, or dropped.",
        ),
    ] = "frozen",
    top: Annotated[int, typer.Option(min=1, metavar="N", help="List the N most probable tokens.")] = 10,
    generate: Annotated[int, typer.Option(min=0, metavar="N", help="Generate N tokens, before and after.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the result as .json.")
    ] = None,
    messages: Messages = None,
    answer: Answer = None,
    chat_template: ChatTemplate = None,
    quiet: Quiet = False,
    debug: Debug = False,
    model: Model = None,
    transcoders: TranscodersOption = None,
    device: Device = None,
    dtype: Dtype = None,
    exclude_first: ExcludeFirst = None,
) -> None:
    """Change features in a prompt, and list the top tokens before and after.

    A FEATURE is L3/417@7, or a label such as '"Texas"@5:'; without @, it means every position. --add also takes a latent of
    an SAE, resid_post/12/417@7, and adds its decoder.

    Example: crosstrace intervene "The capital of the state containing Dallas is" --ablate Texas
    """
    chosen = ModelChoice(model, transcoders, device, dtype, exclude_first=exclude_first, chat_template=chat_template)
    words = PromptChoice(prompt, messages, answer)
    asked = {"set": set_, "scale": scale, "add": add, "ablate": ablate, "swap-in": swap_in}
    if not any(asked.values()):
        raise typer.BadParameter("give at least one of --set, --scale, --add, --ablate, --swap-in")
    with one_line_errors(debug):
        words.read()
        from crosstrace.graphs import FeatureCards, check_state, read_graph, with_card_labels
        from crosstrace.replacement_model.fingerprints import weight_fingerprints
        from crosstrace.tracer.attribution.named_saes import named_saes
        from crosstrace.tracer.attribution.tracing import saes_in_use
        from crosstrace.tracer.cards.lookup import find_cards
        from crosstrace.tracer.interventions.before_after import (
            before_and_after,
            check_report_file,
            parse_intervention,
            write_before_after,
        )
        from crosstrace.tracer.interventions.latents import with_latents
        from crosstrace.tracer.interventions.named_features import by_name
        from crosstrace.tracer.terminal.interventions import show_before_after

        check_report_file(output)
        named = None if graph is None else read_graph(graph)
        if cards is not None:
            FeatureCards(cards)
        interventions = [parse_intervention(verb, edit) for verb, edits in asked.items() for edit in edits or ()]
        if groups is not None:
            check_state(groups)  # before minutes are spent on loading
        readers = named_saes(sae, [str(edit.where) for edit in interventions], loaded_demo=model is None)
        loaded = chosen.load()
        interventions = with_latents(interventions, loaded, saes_in_use(loaded, readers))
        words.note(loaded)
        found = find_cards(loaded.name, loaded.transcoders.name, weight_fingerprints(loaded), given=cards, note=note)
        if named is not None:
            named = with_card_labels(named, found)
        result = before_and_after(
            loaded,
            words.of(loaded),
            by_name(interventions, loaded, groups, note, named, cards),
            freeze=freeze,
            free_attention=free_attention,
            errors=errors,
            top=top,
            max_new_tokens=generate,
            cards=found,
        )
        delivery = write_each([output] if output else [], lambda path: write_before_after(result, path), debug)
        if not quiet:
            show_before_after(result)
        delivery.finish(quiet)
