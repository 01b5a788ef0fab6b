"""What part a position plays in its prompt, so that positions of different prompts can be the same.

- `end`: how far it is from the end. The last position is −1.
- `token`: the token that stands there; `of·2` is the second `of`.
- `span`: in a conversation the turn it is in, from its end (`user −1`), and the template's tokens by their text.
- a pattern with slots, such as `The capital of the state containing {city} is`: the slot's last token is `{city}`, the one
  before it `{city} −1`; the words between slots are their own text.

Letters: P positions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.text import marked

Alignment = Literal["end", "token", "span"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Placed:
    """The positions of a prompt.

    Attributes:
        roles: P names.
        slots: What stands in each slot of the pattern.
    """

    roles: list[str]
    slots: dict[str, str]


class Pattern:
    """A text with slots."""

    def __init__(self, text: str) -> None:
        """Read a pattern.

        Args:
            text: Such as `The capital of {country} is`; a slot may come twice, and then holds the same text.

        Raises:
            ValueError: A slot has no name, or there is none.
        """
        self.text = text
        pieces = _SLOT.split(text.strip())
        self.slots = list(dict.fromkeys(pieces[1::2]))
        if not self.slots:
            raise ValueError(f"pattern {text!r} has no slot, such as {{city}}")
        for name in self.slots:
            if not name.isidentifier():
                raise ValueError(f"pattern {text!r}: {{{name}}} is not a name; a slot is written {{city}}")
        expression, seen = "", set()
        for i, piece in enumerate(pieces):
            if i % 2 == 0:
                expression += re.escape(piece)
            else:
                expression += f"(?P={piece})" if piece in seen else f"(?P<{piece}>.+?)"
                seen.add(piece)
        self._expression = re.compile(expression, re.DOTALL)
        self._order, self._literals = pieces[1::2], pieces[::2]

    @property
    def fixed(self) -> int:
        """How many characters stand between its slots."""
        return sum(map(len, self._literals))

    def match(self, text: str) -> list[tuple[str, int, int]] | None:
        """Return (slot, start, stop) of every slot in a text; None if the text is not of this pattern."""
        blanks = len(text) - len(text.lstrip())
        found = self._expression.fullmatch(text.strip())
        if found is None:
            return None
        at, places = blanks, []
        for literal, slot in zip(self._literals, self._order, strict=False):
            start = at + len(literal)
            at = start + len(found[slot])
            places.append((slot, start, at))
        return places


def place(graph: AttributionGraph, alignment: Alignment, patterns: Sequence[Pattern] = ()) -> Placed | None:
    """Return the roles of a prompt's positions.

    Args:
        graph: The prompt's graph.
        alignment: How positions are aligned where there are no patterns.
        patterns: Of those that the prompt is of, the one with the most text between its slots counts.

    Returns:
        None if there are patterns and the prompt is of none of them.
    """
    if patterns:
        ordered = sorted(patterns, key=lambda pattern: -pattern.fixed)
        return next((found for pattern in ordered if (found := _by_pattern(graph, pattern)) is not None), None)
    if alignment == "span" and graph.spans is not None:
        return Placed(_by_span(graph), {})
    if alignment == "token":
        return Placed(_counted(graph.names()[0]), {})
    P = len(graph.tokens)
    return Placed([_from_end(P - p) for p in range(P)], {})


def token_places(graph: AttributionGraph) -> list[tuple[int, int]]:
    """Return where in `graph.prompt` each token stands, without blanks around it; what cannot be found has no width."""
    places, at, lost = [], 0, False
    for text in graph.token_strings:
        text = text.strip()
        found = graph.prompt.find(text, at) if text else -1
        if found < 0 or (not lost and graph.prompt[at:found].strip()):
            places.append((at, at))
            lost = lost or bool(text)
            continue
        places.append((found, found + len(text)))
        at, lost = found + len(text), False
    return places


def _by_pattern(graph: AttributionGraph, pattern: Pattern) -> Placed | None:
    places = token_places(graph)
    special = sum(
        1 for text, (start, _) in zip(graph.token_strings, places, strict=True) if start == 0 and _special(text)
    )
    offset = places[special - 1][1] if special else 0
    found = pattern.match(graph.prompt[offset:])
    if found is None:
        return None
    roles: list[str | None] = [None] * len(places)
    for slot, start, stop in found:
        inside = [
            p
            for p, (first, last) in enumerate(places)
            if first < stop + offset and last > start + offset and last > first
        ]
        for p in inside:
            roles[p] = _slot_role(slot, inside[-1] - p)
    words = iter(_counted([name for name, role in zip(graph.names()[0], roles, strict=True) if role is None]))
    texts = {slot: graph.prompt[start + offset : stop + offset].strip() for slot, start, stop in found}
    return Placed([role if role is not None else next(words) for role in roles], texts)


def _special(text: str) -> bool:
    return text.startswith("<") and text.endswith(">")


def _slot_role(slot: str, before_last: int) -> str:
    return f"{{{slot}}}" if before_last == 0 else f"{{{slot}}} {_from_end(before_last)}"


def _from_end(places: int) -> str:
    return f"−{places}"


def _by_span(graph: AttributionGraph) -> list[str]:
    spans = graph.spans
    assert spans is not None
    roles: list[str | None] = [None] * len(graph.tokens)
    times: Counter[str] = Counter()
    for role, start, stop in spans.turns:
        times[role] += 1
        which = role if times[role] == 1 else f"{role}·{times[role]}"
        for p in range(start, stop):
            roles[p] = f"{which} {_from_end(stop - p)}"
    names = graph.names()[0]
    others = iter(_counted([marked(names[p].strip("‹›")) for p, role in enumerate(roles) if role is None]))
    return [role if role is not None else next(others) for role in roles]


def _counted(names: Sequence[str]) -> list[str]:
    """Names of which the second of the same is `name·2`, and so on."""
    times: Counter[str] = Counter()
    counted = []
    for name in names:
        times[name] += 1
        counted.append(name if times[name] == 1 else f"{name}·{times[name]}")
    return counted
