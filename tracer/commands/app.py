"""The ``crosstrace`` command. Heavy imports wait until a verb needs them: help answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.graphs.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.tracer import defaults
from crosstrace.tracer.commands.compare import compare
from crosstrace.tracer.commands.features import features
from crosstrace.tracer.commands.figure_options import (
    FigureChoice,
    GraphLayout,
    Groups,
    Layout,
    Merge,
    Supernodes,
    TopPaths,
)
from crosstrace.tracer.commands.intervene import intervene
from crosstrace.tracer.commands.options import (
    CardsOption,
    Debug,
    Device,
    DeviceMap,
    Dtype,
    MemoryBudget,
    Model,
    Quiet,
    TranscodersOption,
    load_model,
    note,
    note_unknown_words,
    one_line_errors,
    parse_dtype,
    read_prompt,
)
from crosstrace.tracer.commands.validate import validate
from crosstrace.tracer.commands.view import view

if TYPE_CHECKING:
    from crosstrace.graphs import AttributionGraph, FeatureCards

app = typer.Typer(
    name="crosstrace",
    help="Open up Gemma 3: trace a prompt into an attribution graph of transcoder features.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

Outputs = Annotated[
    list[Path] | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write the graph, repeatable; the suffix says how: .safetensors and .html (a page) whole, "
        ".json, .dot, .svg, .pdf, .png, .graphml pruned.",
    ),
]
NodeThreshold = Annotated[float, typer.Option(help="Share of influence that the kept nodes reach, 0 to 1.")]
EdgeThreshold = Annotated[float, typer.Option(help="Share of edge scores that the kept edges reach, 0 to 1.")]


def main() -> None:
    """Run the command line; exit code 0 done, 1 it failed, 2 wrong usage."""
    app()


@app.command()
def trace(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to trace; - reads it from standard input.")],
    model: Model = None,
    transcoders: TranscodersOption = None,
    output: Outputs = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help='What to explain instead of the top tokens: a token, \'" Austin" - " Dallas"\', L3/417@7. Repeatable.',
        ),
    ] = None,
    position: Annotated[int, typer.Option(help="Where targets are read; negative counts from the end.")] = -1,
    max_logits: Annotated[int, typer.Option(help="At most so many top tokens.")] = defaults.MAX_LOGITS,
    logit_probability: Annotated[
        float, typer.Option(help="Top tokens until they reach this probability.")
    ] = defaults.LOGIT_PROBABILITY,
    max_feature_nodes: Annotated[
        int | None,
        typer.Option(
            help="Trace only so many of the most influential features.", show_default=str(defaults.MAX_FEATURE_NODES)
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows at a time.", show_default="by memory")] = None,
    node_threshold: NodeThreshold = NODE_THRESHOLD,
    edge_threshold: EdgeThreshold = EDGE_THRESHOLD,
    supernodes: Supernodes = False,
    groups: Groups = None,
    merge: Merge = False,
    top_paths: TopPaths = None,
    layout: Layout = GraphLayout.POSITIONS,
    cards: CardsOption = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted trace.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what the trace would take, from file headers alone; trace nothing.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Trace a prompt into its attribution graph.

    Example: crosstrace trace "The capital of the state containing Dallas is" -o dallas.svg
    """
    if (model is None) != (transcoders is None):
        raise typer.BadParameter("--model and --transcoders go together; without both, the embedded demo is traced")
    figure = FigureChoice(supernodes, groups, merge, top_paths, layout)
    with one_line_errors(debug):
        _check_outputs(output, figure)
        _check_thresholds(node_threshold, edge_threshold)
        text = read_prompt(prompt)
        if explain:
            from crosstrace.tracer.attribution.plan import explain_trace

            explain_trace(
                model, transcoders, text, max_feature_nodes, batch_size, device, parse_dtype(dtype), memory_budget
            )
            return
        if resume and not output:
            raise ValueError("--resume needs the -o FILE of the interrupted trace: its rows are kept beside it")
        checkpoint = Path(f"{output[0]}.partial") if output else None
        from crosstrace.graphs import prune
        from crosstrace.tracer.attribution.tracing import trace as trace_prompt

        replacement_model = load_model(model, transcoders, device, dtype, quiet, memory_budget, device_map)
        note_unknown_words(replacement_model, text)
        graph = trace_prompt(
            replacement_model,
            text,
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
        )
        _deliver(prune(graph, node_threshold, edge_threshold), output, figure, cards, quiet)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)  # not before the graph is written: a full disk must not cost the rows


@app.command()
def prune(
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="A .safetensors graph, raw or pruned before.")],
    output: Outputs = None,
    node_threshold: NodeThreshold = NODE_THRESHOLD,
    edge_threshold: EdgeThreshold = EDGE_THRESHOLD,
    supernodes: Supernodes = False,
    groups: Groups = None,
    merge: Merge = False,
    top_paths: TopPaths = None,
    layout: Layout = GraphLayout.POSITIONS,
    cards: CardsOption = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prune a traced graph anew, with other thresholds or into other formats."""
    if not output:
        raise typer.BadParameter("give at least one -o FILE to write the pruned graph to")
    figure = FigureChoice(supernodes, groups, merge, top_paths, layout)
    with one_line_errors(debug):
        _check_outputs(output, figure)
        _check_thresholds(node_threshold, edge_threshold)
        from crosstrace.graphs import prune as prune_graph
        from crosstrace.graphs import read_graph

        _deliver(prune_graph(read_graph(raw), node_threshold, edge_threshold), output, figure, cards, quiet)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors graph.")],
    features: Annotated[int, typer.Option(min=0, help="How many of the strongest features to list.")] = 12,
    paths: Annotated[int, typer.Option(min=0, help="How many of the strongest paths to list.")] = 5,
    output: Outputs = None,
    supernodes: Supernodes = False,
    groups: Groups = None,
    merge: Merge = False,
    top_paths: TopPaths = None,
    layout: Layout = GraphLayout.POSITIONS,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature", metavar="L3/417", help="Show this feature instead: its edges and its card. Repeatable."
        ),
    ] = None,
    cards: CardsOption = None,
    debug: Debug = False,
) -> None:
    """Print a graph: prompt, targets, scores, the strongest features and paths; or one of its features (--feature).

    -o writes it, pruned as it is.
    """
    figure = FigureChoice(supernodes, groups, merge, top_paths, layout)
    with one_line_errors(debug):
        _check_outputs(output, figure)
        from crosstrace.graphs import prune as prune_graph
        from crosstrace.graphs import read_graph

        graph = read_graph(file)
        if output and graph.node_mask is None:
            graph = prune_graph(graph)
        if not feature:
            _deliver(graph, output, figure, cards, features=features, paths=paths)
            return
        from crosstrace.tracer.terminal.feature import show_features

        show_features(graph, feature, _cards_of(graph, cards))
        _deliver(graph, output, figure, cards, quiet=True)


app.command()(compare)
app.command()(features)
app.command()(intervene)
app.command()(validate)
app.command()(view)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib import metadata

        typer.echo(f"crosstrace {metadata.version('crosstrace')}")
        raise typer.Exit


def _check_outputs(outputs: list[Path] | None, figure: FigureChoice) -> None:
    """Find wrong suffixes, folders and options before minutes are spent."""
    from crosstrace.graphs import check_suffix

    for path in outputs or []:
        check_suffix(path)
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: output folder {path.absolute().parent} does not exist")
    figure.check(outputs)


def _check_thresholds(node_threshold: float, edge_threshold: float) -> None:
    from crosstrace.graphs import check_threshold

    check_threshold("node_threshold", node_threshold)
    check_threshold("edge_threshold", edge_threshold)


def _cards_of(graph: AttributionGraph, given: Path | None) -> FeatureCards | None:
    from crosstrace.tracer.cards.lookup import cards_of

    return cards_of(graph, given, note)


def _deliver(
    graph: AttributionGraph,
    outputs: list[Path] | None,
    figure: FigureChoice,
    given_cards: Path | None,
    quiet: bool = False,
    features: int = 12,
    paths: int = 5,
) -> None:
    """Write the files, then print the table and where things are."""
    from crosstrace.graphs import FIGURES, GraphvizMissing, with_card_labels, write_graph

    cards = _cards_of(graph, given_cards)
    labelled = with_card_labels(graph, cards)
    missing: GraphvizMissing | None = None
    state = figure.state_of(graph)
    drawn = figure.of(labelled, cards) if any(path.suffix.lower() in FIGURES for path in outputs or []) else None
    for path in outputs or []:
        try:
            write_graph(graph, path, drawn, cards, state)
        except GraphvizMissing as error:  # the other files are still wanted
            missing = error
    if not quiet:
        from rich.console import Console

        from crosstrace.tracer.terminal.graph import show_graph

        console = Console()
        show_graph(labelled, console, features, paths)
        for path in outputs or []:
            if path.exists():
                console.print(f"wrote {path}", highlight=False, markup=False)
    if missing is not None:
        raise missing
