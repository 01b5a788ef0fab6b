"""`crosstrace trace`: from a prompt to its attribution graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.graphs.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import check_graph_outputs, check_thresholds, deliver_graph
from crosstrace.tracer.commands.dictionaries import named_saes
from crosstrace.tracer.commands.figure_options import (
    Everything,
    FigureChoice,
    GraphLayout,
    Groups,
    Layout,
    Merge,
    Supernodes,
    TopPaths,
)
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.model_choice import ModelChoice, note_unknown_words
from crosstrace.tracer.commands.options import (
    CardsOption,
    Debug,
    Device,
    DeviceMap,
    Dtype,
    EdgeThreshold,
    ExcludeFirst,
    GraphOutputs,
    MemoryBudget,
    Model,
    NodeThreshold,
    Quiet,
    Resume,
    Saes,
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

_TARGETS = "What to explain"


def trace(
    prompt: OptionalPrompt = None,
    output: GraphOutputs = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Estimate memory and downloads from configs and file headers; trace nothing."),
    ] = False,
    resume: Resume = False,
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
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Rows computed at a time.",
            show_default="what memory allows",
            rich_help_panel="Model and machine",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="Explain this instead of the most probable tokens: '\" Austin\"', '\"\\n\"', #24278 (an id), "
            '\'" Austin" - " Dallas"\', L3/417@7, or resid_post/12/417@7 with --sae. Repeatable; all weigh the same.',
            rich_help_panel=_TARGETS,
        ),
    ] = None,
    sae: Saes = None,
    position: Annotated[
        int,
        typer.Option(
            metavar="P",
            help="Read targets at this position; negative numbers count from the end.",
            rich_help_panel=_TARGETS,
        ),
    ] = -1,
    max_logits: Annotated[
        int,
        typer.Option(metavar="N", help="Explain at most N of the most probable tokens.", rich_help_panel=_TARGETS),
    ] = defaults.MAX_LOGITS,
    logit_probability: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Explain the fewest tokens that reach this probability together.",
            rich_help_panel=_TARGETS,
        ),
    ] = defaults.LOGIT_PROBABILITY,
    max_feature_nodes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Trace at most N features, the most influential ones.",
            show_default=str(defaults.MAX_FEATURE_NODES),
            rich_help_panel=_TARGETS,
        ),
    ] = None,
    node_threshold: NodeThreshold = NODE_THRESHOLD,
    edge_threshold: EdgeThreshold = EDGE_THRESHOLD,
    everything: Everything = False,
    supernodes: Supernodes = False,
    groups: Groups = None,
    merge: Merge = False,
    top_paths: TopPaths = None,
    layout: Layout = GraphLayout.POSITIONS,
    messages: Messages = None,
    answer: Answer = None,
    generate: Annotated[
        int,
        typer.Option(
            "--generate",
            min=0,
            metavar="N",
            help="Let the model answer with at most N tokens first, and explain that answer.",
            rich_help_panel="Conversation",
        ),
    ] = 0,
    chat_template: ChatTemplate = None,
    hide_template: HideTemplate = False,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention",
            help="Also keep which head carried each edge, and why the heads that matter most looked there.",
        ),
    ] = False,
) -> None:
    """Trace a prompt into its attribution graph.

    Example: crosstrace trace "The capital of the state containing Dallas is" -o dallas.svg

    Example: crosstrace trace --messages chat.json --generate 20 -o chat.html
    """
    chosen = ModelChoice(model, transcoders, device, dtype, memory_budget, device_map, exclude_first, chat_template)
    asked = PromptChoice(prompt, messages, answer, generate)
    figure = FigureChoice(everything, supernodes, groups, merge, top_paths, layout)
    with one_line_errors(debug):
        check_graph_outputs(output, figure)
        check_thresholds(node_threshold, edge_threshold)
        asked.read()
        if explain:
            from crosstrace.tracer.terminal.plan import show_plan

            show_plan(chosen.plan(asked.planned(model, chat_template), max_feature_nodes, batch_size))
            return
        if resume and not output:
            raise ValueError("--resume needs the -o FILE of the interrupted trace: its rows are kept beside it")
        checkpoint = Path(f"{output[0]}.partial") if output else None
        from crosstrace.graphs import prune, without_template
        from crosstrace.tracer.attribution.tracing import saes_in_use
        from crosstrace.tracer.attribution.tracing import trace as trace_prompt
        from crosstrace.tracer.cards.naming import with_guesses
        from crosstrace.tracer.terminal.graph import show_graph

        readers = named_saes(sae, target or (), loaded_demo=model is None)
        loaded = chosen.load()
        saes = saes_in_use(loaded, readers)
        note_unknown_words(loaded, asked.text)
        graph = trace_prompt(
            loaded,
            asked.of(loaded),
            targets=target or None,
            max_logits=max_logits,
            logit_probability=logit_probability,
            max_feature_nodes=max_feature_nodes,
            batch_size=batch_size,
            position=position,
            progress=False if quiet else None,
            checkpoint=checkpoint,
            resume=resume,
            keep_checkpoint=True,
            note=note,
            saes=saes,
        )
        pruned = with_guesses(prune(graph, node_threshold, edge_threshold), loaded, beyond_kept=defaults.ALSO_NAMED)
        if attention:
            from crosstrace.tracer.attention.ranking import with_attention

            pruned = with_attention(pruned, loaded, progress=False if quiet else None)
        if saes:
            from crosstrace.tracer.reading.written_latents import with_written_latents

            pruned = with_written_latents(pruned, loaded, saes)
        if hide_template:
            pruned = without_template(pruned)
        show = None if quiet else lambda labelled, _: show_graph(labelled)
        delivery = deliver_graph(pruned, output, figure, cards, show, debug)
        is_safe = any(path.suffix.lower() == ".safetensors" for path in delivery.written)
        if checkpoint is not None and (is_safe or not delivery.failures):  # a full disk must not cost the rows
            checkpoint.unlink(missing_ok=True)
        delivery.finish(quiet)
