"""Options of the verbs that draw: what pictures and GraphML show of a graph, and how; groups also for pages and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from crosstrace.graphs import AttributionGraph, FeatureCards, Figure, SavedState

_PICTURES = "Pictures"


class GraphLayout(StrEnum):
    """`crosstrace.graphs.pictures.figure.LAYOUTS`, repeated here because help must not wait for that import."""

    POSITIONS = "positions"
    LAYERS = "layers"
    FORCE = "force"


Everything = Annotated[
    bool,
    typer.Option(
        "--all",
        help="Draw all that pruning kept rather than the story: groups of features that carry most of the influence.",
        rich_help_panel=_PICTURES,
    ),
]
Supernodes = Annotated[
    bool, typer.Option("--supernodes", help="Frame the suggested supernodes.", rich_help_panel=_PICTURES)
]
Groups = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Use the supernodes and pins that the page saved; also in pages and .json.",
        rich_help_panel=_PICTURES,
    ),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Draw each supernode as one node, its edges summed; with --groups, draw only what is pinned there.",
        rich_help_panel=_PICTURES,
    ),
]
TopPaths = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Draw only the N strongest paths to the first target.", rich_help_panel=_PICTURES
    ),
]
Layout = Annotated[
    GraphLayout,
    typer.Option(
        metavar="LAYOUT",
        help="positions: layers by tokens. layers: layers with few crossings. force: no layers.",
        rich_help_panel=_PICTURES,
    ),
]


class FigureChoice(NamedTuple):
    """What the options ask for.

    Attributes:
        everything: Draw all that pruning kept.
        supernodes: Frame the suggested supernodes.
        groups: A file of supernodes and pins that the page saved.
        merge: Draw each supernode as one node.
        top_paths: Draw only this many of the strongest paths to the first target; None for all edges.
        layout: How nodes are arranged.
    """

    everything: bool
    supernodes: bool
    groups: Path | None
    merge: bool
    top_paths: int | None
    layout: GraphLayout

    def check(self, outputs: Sequence[Path] | None) -> None:
        """Find what is wrong before minutes are spent.

        Raises:
            ValueError: Nothing is drawn, or the file of groups is not one.
            OSError: The file of groups cannot be read.
        """
        from crosstrace.graphs import FIGURES, check_state

        asked = (
            self.everything or self.supernodes or self.merge or self.top_paths or self.layout != GraphLayout.POSITIONS
        )
        suffixes = {path.suffix.lower() for path in outputs or ()}
        if asked and not suffixes & set(FIGURES):
            raise ValueError(
                "--all, --supernodes, --merge, --top-paths and --layout say how a graph is drawn: give an -o FILE "
                f"that is drawn ({', '.join(FIGURES)})"
            )
        if self.groups is not None:
            check_state(self.groups)
            if not suffixes - {".safetensors"}:
                raise ValueError("--groups is for pictures, pages and JSON: give an -o FILE of such a kind")

    def state_of(self, graph: AttributionGraph) -> SavedState | None:
        """Return what `--groups` names, as nodes of the graph; None without `--groups`."""
        from crosstrace.graphs import read_state

        return None if self.groups is None else read_state(self.groups, graph)

    def of(self, graph: AttributionGraph, cards: FeatureCards | None = None) -> Figure:
        """Return the figure of a pruned graph.

        Args:
            graph: Pruned and labelled.
            cards: Its feature cards, which count when groups are suggested.
        """
        from crosstrace.graphs import Figure, suggest_supernodes

        supernodes, only = [], None
        if (state := self.state_of(graph)) is not None:
            supernodes = state.supernodes
            only = state.pinned if self.merge else None
        elif self.supernodes or self.merge:
            supernodes = suggest_supernodes(graph, cards)
        return Figure(supernodes, self.merge, only, self.top_paths, self.layout.value, self.everything)
