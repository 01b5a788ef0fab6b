"""Which cards belong to a graph: those beside its transcoders, or a file that the user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.cards.feature_cards import FeatureCards

Note = Callable[[str], None]


def cards_of(graph: AttributionGraph, given: Path | None = None, note: Note | None = None) -> FeatureCards | None:
    """Open the cards of a graph's transcoders; None if there are none.

    Args:
        graph: The graph.
        given: As in `find_cards`.
        note: As in `find_cards`.

    Raises:
        OSError: The given file cannot be read.
        ValueError: The given file is not a file of cards, or belongs to other transcoders.
    """
    return find_cards(
        graph.model_name, graph.transcoders_name, graph.settings.get("fingerprints"), given=given, note=note
    )


def find_cards(
    model_name: str,
    transcoders_name: str,
    fingerprints: Mapping[str, str] | None = None,
    *,
    given: Path | None = None,
    note: Note | None = None,
) -> FeatureCards | None:
    """Open the cards of some transcoders; None if there are none.

    Args:
        model_name: The model's name.
        transcoders_name: The name of the transcoders, which says where they are.
        fingerprints: Fingerprints of the weights, where known; see `FeatureCards.belongs_to`.
        given: A file to use; None looks beside the transcoders.
        note: Called with one line that says why cards beside the transcoders are not used.

    Raises:
        OSError: The given file cannot be read.
        ValueError: The given file is not a file of cards, or belongs to other transcoders.
    """
    path = given if given is not None else _beside(transcoders_name)
    if path is None:
        return None
    try:
        cards = FeatureCards(path)
        if different := cards.belongs_to(model_name, transcoders_name, fingerprints):
            raise ValueError(different)
    except (OSError, ValueError) as problem:
        if given is not None:
            raise
        if note is not None:
            note(f"feature cards are not used: {problem}")
        return None
    return cards


def _beside(transcoders_name: str) -> Path | None:
    from crosstrace.replacement_model.dictionaries.readers.card_places import cards_path

    try:
        path = cards_path(transcoders_name)
    except OSError:  # transcoders that are not on this machine
        return None
    return path if path.is_file() else None
