"""What `-o` does: each output is tried, whatever became of the others; then what was written and what failed is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from crosstrace.tracer.commands.figure_options import FigureChoice
from crosstrace.tracer.commands.messages import USER_ERRORS, note, one_line, say_error

if TYPE_CHECKING:
    from crosstrace.graphs import AttributionGraph, FeatureCards, Figure, SavedState

PAGES = (".html", ".htm")

Write = Callable[[Path], str | None]
"""Writes one file; may return the program that drew it, such as `dot 2.42.2`."""


def say_wrote(what: Path | str) -> None:
    """Say what was written, on a line of its own however long the path is."""
    typer.echo(f"wrote {what}")


def open_page(path: Path) -> None:
    """Show an HTML file in the browser."""
    import webbrowser

    webbrowser.open(path.resolve().as_uri())


@dataclass
class Delivery:
    """The outcome of writing outputs.

    Attributes:
        debug: Show stack traces, and which program drew each picture.
        written: The files that were written.
        failures: What kept the others from being written.
    """

    debug: bool
    written: list[Path] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def write(self, path: Path, write: Write) -> None:
        """Write one file, or keep the error for the end."""
        try:
            with _warnings_as_notes():
                program = write(path)
        except USER_ERRORS as error:
            self.failures.append(error)
            return
        self.written.append(path)
        if self.debug and program is not None:
            typer.echo(f"{path}: drawn by {program}", err=True)

    def finish(self, quiet: bool) -> None:
        """Name what was written, then what failed, one line each.

        Args:
            quiet: Do not name what was written.

        Raises:
            typer.Exit: Something failed; the exit code is 1.
        """
        if not quiet:
            for path in self.written:
                say_wrote(path)
        # Several outputs may fail for one reason, such as cards that cannot be read: say it once.
        for error in {one_line(error): error for error in self.failures}.values():
            say_error(error, self.debug)
        if self.failures:
            raise typer.Exit(1)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Say what a writer warns of as one line each; Python's own warnings show a line of the program."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            note(" ".join(str(warning.message).split()))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def write_each(outputs: Sequence[Path] | None, write: Write, debug: bool) -> Delivery:
    """Try to write every output; errors wait until the delivery is finished."""
    delivery = Delivery(debug)
    for path in outputs or ():
        delivery.write(path, write)
    return delivery


class GraphDelivery:
    """A graph on its way to its files and to the terminal. Cards, figure and groups are made when the first output asks."""

    def __init__(self, graph: AttributionGraph, choice: FigureChoice, given_cards: Path | None) -> None:
        """
        Args:
            graph: Pruned, if there are outputs.
            choice: What pictures show, and how.
            given_cards: The cards to use; None for those beside the transcoders.
        """
        self.graph, self.choice, self.given_cards = graph, choice, given_cards

    @cached_property
    def cards(self) -> FeatureCards | None:
        """The graph's feature cards, if there are any."""
        from crosstrace.tracer.cards.lookup import cards_of

        return cards_of(self.graph, self.given_cards, note)

    @cached_property
    def labelled(self) -> AttributionGraph:
        """The graph with automatic labels from its cards."""
        from crosstrace.graphs import with_card_labels

        return with_card_labels(self.graph, self.cards)

    @cached_property
    def _figure(self) -> Figure:
        return self.choice.of(self.labelled, self.cards)

    @cached_property
    def _state(self) -> SavedState | None:
        return self.choice.state_of(self.graph)

    def write(self, path: Path) -> str | None:
        """Write one file in the format of its suffix; return the program that drew it, if one did."""
        from crosstrace.graphs import FIGURES, write_graph

        write: Callable[..., str | None] = write_graph
        suffix = path.suffix.lower()
        if suffix == ".safetensors":  # as it was traced: needs neither cards nor groups
            return write(self.graph, path)
        return write(self.graph, path, self._figure if suffix in FIGURES else None, self.cards, self._state)


def check_graph_outputs(outputs: Sequence[Path] | None, choice: FigureChoice) -> None:
    """Find wrong suffixes, folders and options before minutes are spent.

    Raises:
        ValueError: A suffix is unknown, or an option does not go with the outputs.
        OSError: A folder cannot be written to, or a file of groups cannot be read.
    """
    from crosstrace.graphs import check_suffix
    from crosstrace.graphs.files import check_writable

    for path in outputs or ():
        check_suffix(path)
        check_writable(path)
    choice.check(outputs)


def check_thresholds(node_threshold: float, edge_threshold: float) -> None:
    """Find thresholds outside 0 to 1 before minutes are spent.

    Raises:
        ValueError: One is; the message names it.
    """
    from crosstrace.graphs import check_threshold

    check_threshold("node_threshold", node_threshold)
    check_threshold("edge_threshold", edge_threshold)


def deliver_graph(
    graph: AttributionGraph,
    outputs: Sequence[Path] | None,
    choice: FigureChoice,
    given_cards: Path | None,
    show: Callable[[AttributionGraph, FeatureCards | None], None] | None,
    debug: bool,
) -> Delivery:
    """Write a graph to its outputs, then show it.

    Args:
        graph: Pruned, if there are outputs.
        outputs: The files, whose suffixes set the formats.
        choice: What pictures show, and how.
        given_cards: The cards to use; None for those beside the transcoders.
        show: Prints the labelled graph, given its cards; None prints nothing.
        debug: Show stack traces, and which program drew each picture.

    Returns:
        What was written and what failed; the caller finishes it.
    """
    files = GraphDelivery(graph, choice, given_cards)
    delivery = write_each(outputs, files.write, debug)
    if show is not None:
        try:
            labelled, cards = files.labelled, files.cards
        except USER_ERRORS as error:
            delivery.failures.append(error)
            labelled, cards = graph, None
        try:
            show(labelled, cards)
        except USER_ERRORS as error:  # what was written is still to be named
            delivery.failures.append(error)
    return delivery
