"""`crosstrace aggregate`: what holds across the graphs of a sweep."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from crosstrace.graphs.aggregates.defaults import FALSE_DISCOVERY_RATE, MIN_INFLUENCE, MIN_SHARE
from crosstrace.tracer.commands.delivery import PAGES, write_each
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import CardsOption, Debug, Quiet

_ALIGNED = "What is the same"
_CIRCUIT = "The circuit"


class Align(StrEnum):
    """`crosstrace.graphs.aggregates.roles.ALIGNMENTS`, repeated here because help must not wait for that import."""

    END = "end"
    TOKEN = "token"
    SPAN = "span"


def aggregate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a sweep, all of its shards.")],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write what is found: .html (a page), .json, .csv (the nodes), or the circuit as .svg, .pdf, .png, .dot. "
            "Repeatable.",
        ),
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--pattern",
            metavar="TEXT",
            help='Align positions by a text with slots: "The capital of the state containing {city} is". Repeatable; '
            "prompts of none are left out.",
            rich_help_panel=_ALIGNED,
        ),
    ] = None,
    align: Annotated[
        Align | None,
        typer.Option(
            "--align",
            metavar="HOW",
            help="Without a pattern, positions are the same by their distance to the end, by their token, or by the span "
            "of a conversation: end, token, span.",
            show_default="span for conversations, else end",
            rich_help_panel=_ALIGNED,
        ),
    ] = None,
    named_by: Annotated[
        list[str] | None,
        typer.Option(
            "--named-by",
            metavar="KEY",
            help="Features named after what a prompt's KEY is are the same in all prompts, as are answers. Repeatable.",
            show_default="all texts of the metadata that differ",
            rich_help_panel=_ALIGNED,
        ),
    ] = None,
    min_share: Annotated[
        float,
        typer.Option(
            "--min-share", min=0.0, max=1.0, metavar="SHARE", help="Of the prompts.", rich_help_panel=_CIRCUIT
        ),
    ] = MIN_SHARE,
    min_influence: Annotated[
        float,
        typer.Option(
            "--min-influence",
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Mean share of the influence on the answer.",
            rich_help_panel=_CIRCUIT,
        ),
    ] = MIN_INFLUENCE,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="KEY",
            help="Compare the groups that this key of the metadata makes, by a permutation test.",
            rich_help_panel="Groups",
        ),
    ] = None,
    false_discovery_rate: Annotated[
        float,
        typer.Option(
            "--fdr",
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Of what is called different, the share that may be mistakes.",
            rich_help_panel="Groups",
        ),
    ] = FALSE_DISCOVERY_RATE,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="Of pictures and the page.")] = "",
    pages: Annotated[
        Path | None,
        typer.Option("--pages", metavar="FOLDER", help="Also write each prompt's own page; the page links to them."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of resamples, halves and permutations.")] = 0,
    cards: CardsOption = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find what holds across the graphs of a sweep: which features matter how often, and the circuit they make.

    Example: crosstrace aggregate cities --pattern "The capital of the state containing {city} is" -o cities.html -o cities.svg
    """
    if pattern and align:
        raise typer.BadParameter("--pattern aligns positions already: leave out --align")
    if pages is not None and not any(path.suffix.lower() in PAGES for path in output or ()):
        raise typer.BadParameter("--pages are what a page links to: give an -o FILE.html")
    with one_line_errors(debug):
        from crosstrace.graphs.aggregates.groups import compare_groups
        from crosstrace.graphs.files import check_writable
        from crosstrace.tracer.progress import step_progress
        from crosstrace.tracer.sweeps.aggregate_files import check_aggregate_suffix, write_aggregate
        from crosstrace.tracer.sweeps.aggregating import aggregate as find
        from crosstrace.tracer.sweeps.aggregating import write_prompt_pages
        from crosstrace.tracer.terminal.sweeps.aggregate import show_aggregate

        for path in output or ():
            check_aggregate_suffix(path)
            check_writable(path)
        with step_progress(False if quiet else None) as progress:
            found = find(
                folder,
                pattern or (),
                None if align is None else align.value,
                named_by,
                not_named_by=() if by is None or (named_by and by in named_by) else (by,),
                cards=cards,
                min_share=min_share,
                min_influence=min_influence,
                seed=seed,
                note=note,
                progress=progress,
            )
            comparison = None if by is None else compare_groups(found, by, false_discovery_rate, seed=seed)
            linked = {}
            if pages is not None:
                linked = write_prompt_pages(folder, found, pages, cards, progress)

        def write(path: Path) -> str | None:
            own = {name: _from(path, page) for name, page in linked.items()}
            return write_aggregate(found, path, comparison, title, own)

        delivery = write_each(output, write, debug)
        if not quiet:
            show_aggregate(found, comparison)
        delivery.finish(quiet)


def _from(page: Path, linked: Path) -> str:
    """The address of a page, from another."""
    import os
    from urllib.parse import quote

    return quote(os.path.relpath(linked, page.resolve().parent).replace(os.sep, "/"))
