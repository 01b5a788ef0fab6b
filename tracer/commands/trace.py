"""`crosstrace trace`: from a prompt to its attribution graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.graphs.analysis.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import check_graph_outputs, check_thresholds, deliver_graph
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
    Attention,
    BatchSize,
    CardsOption,
    Debug,
    Device,
    DeviceMap,
    Dtype,
    EdgeThreshold,
    ExcludeFirst,
    GraphOutputs,
    LogitProbability,
    MaxFeatureNodes,
    MaxLogits,
    MemoryBudget,
    Model,
    NodeThreshold,
    Position,
    Quiet,
    Resume,
    Saes,
    Targets,
    TranscodersOption,
)
from crosstrace.tracer.commands.prompt_choice import (
    Answer,
    ChatTemplate,
    Generate,
    HideTemplate,
    Messages,
    OptionalPrompt,
    PromptChoice,
)


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
    batch_size: BatchSize = None,
    target: Targets = None,
    sae: Saes = None,
    position: Position = -1,
    max_logits: MaxLogits = defaults.MAX_LOGITS,
    logit_probability: LogitProbability = defaults.LOGIT_PROBABILITY,
    max_feature_nodes: MaxFeatureNodes = None,
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
    generate: Generate = 0,
    chat_template: ChatTemplate = None,
    hide_template: HideTemplate = False,
    attention: Attention = False,
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
        from crosstrace.tracer.attribution.named_saes import named_saes
        from crosstrace.tracer.attribution.tracing import saes_in_use
        from crosstrace.tracer.sweeps.settings import TraceSettings
        from crosstrace.tracer.terminal.graph import show_graph

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
        readers = named_saes(sae, target or (), loaded_demo=model is None)
        loaded = chosen.load()
        saes = saes_in_use(loaded, readers)
        note_unknown_words(loaded, asked.text)
        progress = False if quiet else None
        graph = settings.trace(loaded, asked.of(loaded), saes, progress, note, checkpoint, resume)
        pruned = settings.finish(graph, loaded, saes, progress)
        show = None if quiet else lambda labelled, _: show_graph(labelled)
        delivery = deliver_graph(pruned, output, figure, cards, show, debug)
        is_safe = any(path.suffix.lower() == ".safetensors" for path in delivery.written)
        if checkpoint is not None and (is_safe or not delivery.failures):  # a full disk must not cost the rows
            checkpoint.unlink(missing_ok=True)
        delivery.finish(quiet)
