"""What is known of a graph that was read from JSON, and what is not. A graph keeps it in its settings.

Such a file holds what pruning kept. What the whole graph was (its other features and edges, how complete its rows are) it
cannot say, so nothing that needs the whole graph may be computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

KEY = "read_from_json"
"""Where `AttributionGraph.settings` keeps it."""

WHOLE = "the whole graph"
"""How what scores count is named where it is everything that was traced."""


@dataclass(frozen=True)
class JsonOrigin:
    """What a JSON file says of its graph and no field of a graph holds.

    Attributes:
        scores: `replacement` and `completeness`, each None where there is nothing to explain, and `counted`, which says what
            they were computed on; under `whole` the same of the whole graph, where the file has it. None where it has no
            scores.
        n_active: How many features were active; None where the file does not say.
        n_traced: How many of them were traced; None likewise.
        knows_layers: Whether the file says how many layers the model has; otherwise only those of its nodes are counted.
        knows_influence: Whether the nodes' influence is the file's; otherwise it was computed from the links.
        slug: The graph's name in viewers; "" if it has none.
        q_params: What is pinned and grouped, as viewers read it.
        notes: Sentences on what in the file could not be read.
    """

    scores: dict[str, Any] | None = None
    n_active: int | None = None
    n_traced: int | None = None
    knows_layers: bool = True
    knows_influence: bool = True
    slug: str = ""
    q_params: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def whole_scores(self) -> dict[str, Any] | None:
        """The scores of the whole graph; None where the file does not have them."""
        known = self.scores or {}
        return known.get("whole") or (known if known.get("counted", "").startswith(WHOLE) else None)

    def as_settings(self) -> dict[str, Any]:
        """Return it as JSON-able values; `json_origin_of` reads them back."""
        return {**asdict(self), "notes": list(self.notes)}


def json_origin_of(settings: Mapping[str, Any]) -> JsonOrigin | None:
    """Return what a graph's settings hold of the JSON file that it was read from; None for a graph that was traced.

    Raises:
        ValueError: It has another shape.
    """
    given = settings.get(KEY)
    if given is None:
        return None
    try:
        return JsonOrigin(**{**given, "notes": tuple(map(str, given.get("notes", ())))})
    except (TypeError, AttributeError):
        raise ValueError(f"settings: {KEY!r} does not hold what a JSON file says") from None
