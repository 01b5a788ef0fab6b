"""Options of the verbs that draw: what pictures and GraphML show of a graph, and how; groups for pages and JSON too."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from crosstrace.graphs import AttributionGraph, FeatureCards, Figure, SavedState


class GraphLayout(StrEnum):
    """`crosstrace.graphs.pictures.figure.LAYOUTS`, named here too: help must not wait for the import."""

    POSITIONS = "positions"
    LAYERS = "layers"
    FORCE = "force"


Supernodes = Annotated[bool, typer.Option("--supernodes", help="In pictures, frame the suggested supernodes.")]
Groups = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Supernodes and pins that the page saved, in pictures, pages and .json."),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge", help="Draw each supernode as one node, edges summed; with --groups, only what is pinned there."
    ),
]
TopPaths = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="In pictures, only the N strongest paths to the first target.")
]
Layout = Annotated[
    GraphLayout, typer.Option(help="Pictures: layers by tokens, layers with few crossings, or no layers at all.")
]


class FigureChoice(NamedTuple):
    """What the options said."""

    supernodes: bool
    groups: Path | None
    merge: bool
    top_paths: int | None
    layout: GraphLayout

    def check(self, outputs: list[Path] | None) -> None:
        """Find what is wrong before minutes are spent.

        Raises:
            ValueError, OSError: nothing is drawn, or the file of groups is none; one line says what.
        """
        from crosstrace.graphs import FIGURES, check_state

        asked = self.supernodes or self.merge or self.top_paths or self.layout != GraphLayout.POSITIONS
        suffixes = {path.suffix.lower() for path in outputs or []}
        if asked and not suffixes & set(FIGURES):
            raise ValueError(
                "--supernodes, --merge, --top-paths and --layout say how a graph is drawn: give an -o FILE "
                f"that is drawn ({', '.join(FIGURES)})"
            )
        if self.groups is not None:
            check_state(self.groups)
            if not suffixes - {".safetensors"}:
                raise ValueError("--groups is for pictures, pages and JSON: give an -o FILE of such a kind")

    def state_of(self, graph: AttributionGraph) -> SavedState | None:
        """What --groups names, as nodes of the graph."""
        from crosstrace.graphs import read_state

        return None if self.groups is None else read_state(self.groups, graph)

    def of(self, graph: AttributionGraph, cards: FeatureCards | None = None) -> Figure:
        """The figure of a pruned graph; cards count in the suggested groups."""
        from crosstrace.graphs import Figure, suggest_supernodes

        supernodes, only = [], None
        if (state := self.state_of(graph)) is not None:
            supernodes = state.supernodes
            only = state.pinned if self.merge else None
        elif self.supernodes or self.merge:
            supernodes = suggest_supernodes(graph, cards)
        return Figure(supernodes, self.merge, only, self.top_paths, self.layout.value)
