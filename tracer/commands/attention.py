"""`crosstrace attention`: which head carried an edge, and why a head looked where it did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import write_each
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.model_choice import ModelChoice, choice_of_graph
from crosstrace.tracer.commands.options import CardsOption, Debug, Device, Dtype, Model, Quiet, TranscodersOption

_BETWEEN = "\x1f"


class PairedEdges(TyperCommand):
    """A command whose `--edge` takes two values and may be repeated, which typer cannot do by itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the two values after each `--edge` into one."""
        joined, rest = [], list(args)
        while rest:
            joined.append(rest.pop(0))
            if joined[-1] == "--edge" and len(rest) >= 2:
                joined.append(f"{rest.pop(0)}{_BETWEEN}{rest.pop(0)}")
        return super().parse_args(ctx, joined)


def attention(
    graph: Annotated[Path, typer.Argument(metavar="GRAPH", help="A .safetensors graph, raw or pruned.")],
    edge: Annotated[
        list[str] | None,
        typer.Option(
            "--edge",
            metavar="SOURCE TARGET",
            help="Show how much of this edge passes through each head. Nodes are written L3/417@7, 'error L3@7', "
            "'token @7', or as a target's text. Repeatable.",
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="LAYER.HEAD", help="Take this head's attention apart, such as 4.2.")
    ] = None,
    query: Annotated[
        int | None, typer.Option(metavar="P", help="The position that looks.", show_default="the last")
    ] = None,
    key: Annotated[
        int | None,
        typer.Option(metavar="P", help="The position that is looked at.", show_default="where most attention goes"),
    ] = None,
    rather_than: Annotated[
        int | None, typer.Option(metavar="P", help="Explain why the key and not this position.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sum the terms of the groups that the graph's page saved.")
    ] = None,
    heads: Annotated[
        int, typer.Option(min=1, metavar="N", help="List the N heads that carry most.")
    ] = defaults.ATTENTION_HEADS,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Name N nodes and pairs.")] = defaults.ATTENTION_TERMS,
    ablate: Annotated[
        int, typer.Option(min=0, metavar="N", help="Ablate the N strongest nodes: predicted beside measured.")
    ] = 3,
    output: Annotated[
        list[Path] | None, typer.Option("-o", "--output", metavar="FILE", help="Write the report here (.json).")
    ] = None,
    cards: CardsOption = None,
    quiet: Quiet = False,
    debug: Debug = False,
    model: Model = None,
    transcoders: TranscodersOption = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Show which heads carry a graph's edges, and why a head looked where it did.

    Without --edge and --head it lists the heads worth asking about.

    Example: crosstrace attention dallas.safetensors --head 2.3 --query 8 --key 7
    """
    ModelChoice(model, transcoders)  # wrong usage is found before any file is read
    if head is None and any(given is not None for given in (query, key, rather_than, groups)):
        raise typer.BadParameter("--query, --key, --rather-than and --groups go with --head LAYER.HEAD")
    ends = [tuple(text.split(_BETWEEN)) for text in edge or ()]
    if any(len(pair) != 2 for pair in ends):
        raise typer.BadParameter("--edge takes two nodes, SOURCE TARGET")
    if rather_than is not None and key is None:
        raise typer.BadParameter("--rather-than needs the --key that it is compared with")
    for path in output or ():
        if path.suffix.lower() != ".json":
            raise typer.BadParameter(f"{path}: reports are written as .json")
    with one_line_errors(debug):
        from crosstrace.graphs import read_state, read_whole_graph, with_card_labels
        from crosstrace.graphs.files import check_writable
        from crosstrace.tracer.attention.loadings import check_edges, loadings_of
        from crosstrace.tracer.attention.places import TracedPrompt
        from crosstrace.tracer.attention.ranking import rank_heads
        from crosstrace.tracer.attention.references import find_node, parse_head
        from crosstrace.tracer.attention.report import AttentionReport, score_report
        from crosstrace.tracer.attention.scores import HeadScores
        from crosstrace.tracer.cards.lookup import cards_of
        from crosstrace.tracer.terminal.attention import show_attention

        for path in output or ():
            check_writable(path)
        place = None if head is None else parse_head(head)
        traced = read_whole_graph(graph, "attention")
        labelled = with_card_labels(traced, cards_of(traced, cards, note))
        pairs = [(find_node(labelled, target), find_node(labelled, source)) for source, target in ends]
        edges = check_edges(traced, pairs)
        supernodes = [] if groups is None else read_state(groups, traced).supernodes
        loaded = choice_of_graph(traced, model, transcoders, device, dtype).load()
        prompt, progress = TracedPrompt(loaded, traced, note), False if quiet else None
        report = AttentionReport(labelled, top=top)
        if len(edges):
            report.loadings = loadings_of(prompt, edges, progress=progress)
        if place is not None:
            scores = HeadScores(prompt, *place, len(traced.tokens) - 1 if query is None else query)
            chosen = scores.keys[int(scores.probabilities.argmax())] if key is None else key
            report.score = score_report(scores, chosen, rather_than, top, ablate, supernodes)
        if not len(edges) and place is None:
            report.heads = rank_heads(prompt, heads, progress).heads
        delivery = write_each(output, report.write, debug)
        if not quiet:
            show_attention(report)
        delivery.finish(quiet)
