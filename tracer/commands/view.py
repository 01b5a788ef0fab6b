"""`crosstrace view`: an interactive page of a graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer.commands.delivery import PAGES, open_page, say_wrote
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import CardsOption, Debug, OpenIt


def view(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A graph: .safetensors, or .json of crosstrace, circuit-tracer or Neuronpedia."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PAGE", help="Write the page here.", show_default="FILE with .html"),
    ] = None,
    cards: CardsOption = None,
    open_it: OpenIt = False,
    debug: Debug = False,
) -> None:
    """Make an interactive page of a graph: one HTML file that works offline.

    Example: crosstrace view dallas.safetensors --open
    """
    with one_line_errors(debug):
        path = output or file.with_suffix(".html")
        if path.suffix.lower() not in PAGES:
            raise ValueError(f"the page must be an .html file, not {str(path)!r}")
        from crosstrace.graphs import view as write_page
        from crosstrace.tracer.cards.lookup import find_cards

        write_page(file, path, partial(find_cards, given=cards, note=note))
        say_wrote(path)
        if open_it:
            open_page(path)
