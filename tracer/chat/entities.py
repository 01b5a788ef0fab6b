"""Names that may stand for each other, to make false steps of true ones."""

from __future__ import annotations

import json
from pathlib import Path


def demo_entities(model: str | None) -> list[list[str]]:
    """Return the states and the capitals that the chat demo knows; none for another model."""
    from crosstrace.replacement_model.embedded import DEMO_CHAT, embedded_model

    if embedded_model(model) is not DEMO_CHAT:
        return []
    from crosstrace.replacement_model.demo_chat.world import load_places

    states = load_places().states
    return [[state.name for state in states], [state.capital for state in states]]


def read_entities(path: Path) -> list[list[str]]:
    """Read groups of names.

    Args:
        path: A JSON list of lists of texts; in a group one may stand for another.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not such a list.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: not JSON: {' '.join(str(problem).split())}") from None
    if not isinstance(given, list) or not all(
        isinstance(group, list) and len(group) > 1 and all(isinstance(name, str) and name.strip() for name in group)
        for group in given
    ):
        raise ValueError(f"{path}: expected a list of lists of names, at least two in each")
    return given
