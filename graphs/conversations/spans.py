"""What the tokens of a conversation belong to: a turn, the answer, or the chat template. A graph keeps it in its settings.

Letters: P positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "conversation"
"""Where `AttributionGraph.settings` keeps the spans."""


@dataclass(frozen=True)
class Spans:
    """The spans of a conversation.

    Attributes:
        turns: Role, first position and the position after the last of each turn, the answer's included.
        answer: First position of the answer and the position after its last; None where the graph has none.
        template: The positions of the template's tokens.
        log_probabilities: The model's log-probability of each of the answer's tokens, in nats.
    """

    turns: tuple[tuple[str, int, int], ...] = ()
    answer: tuple[int, int] | None = None
    template: frozenset[int] = frozenset()
    log_probabilities: tuple[float, ...] = ()

    @property
    def log_probability(self) -> float | None:
        """Of the whole answer, in nats; None where it is not known."""
        return sum(self.log_probabilities) if self.log_probabilities else None

    def as_settings(self) -> dict[str, Any]:
        """Return the spans as JSON-able values; `spans_of` reads them back."""
        return {
            "turns": [list(turn) for turn in self.turns],
            "answer": None if self.answer is None else list(self.answer),
            "template": sorted(self.template),
            "log_probabilities": list(self.log_probabilities),
        }


def spans_of(settings: Mapping[str, Any], n_positions: int) -> Spans | None:
    """Return the spans that a graph's settings hold; None for a prompt that is no conversation.

    Args:
        settings: Of a graph.
        n_positions: P; what lies outside is an error.

    Raises:
        ValueError: They are not spans of the prompt.
    """
    given = settings.get(KEY)
    if given is None:
        return None
    try:
        spans = Spans(
            tuple((str(role), int(start), int(stop)) for role, start, stop in given["turns"]),
            None if given["answer"] is None else (int(given["answer"][0]), int(given["answer"][1])),
            frozenset(int(position) for position in given["template"]),
            tuple(float(value) for value in given.get("log_probabilities", ())),
        )
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        raise ValueError(f"settings: {KEY!r} does not hold the spans of a conversation") from None
    ranges = [(start, stop) for _, start, stop in spans.turns] + ([spans.answer] if spans.answer else [])
    if any(not 0 <= start < stop <= n_positions for start, stop in ranges) or not all(
        0 <= position < n_positions for position in spans.template
    ):
        raise ValueError(f"settings: {KEY!r} has a span outside the prompt, which has {n_positions} tokens")
    return spans
