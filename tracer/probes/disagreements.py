"""Where a read-out and what is said part ways: the model holds one thing, and the text or the answer claims another."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosstrace.graphs.files import write_atomically
from crosstrace.replacement_model import LoadedModel
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.tracer.probes.examples import Example
from crosstrace.tracer.probes.probe import Probe


@dataclass(frozen=True)
class Compared:
    """A text, the probe's score of it, and what it claims.

    Attributes:
        text: The text.
        score: The probe's score, in nats.
        says: What the text or its answer claims.
    """

    text: str
    score: float
    says: bool

    @property
    def holds(self) -> bool:
        """What the probe says: whether the score is above 0."""
        return self.score > 0


@dataclass(frozen=True)
class Disagreements:
    """A probe beside what is said.

    Attributes:
        probe_name: What it is a probe of.
        rows: Every text, in order.
    """

    probe_name: str
    rows: Sequence[Compared]

    @property
    def apart(self) -> list[Compared]:
        """The texts where both part ways, those with the largest scores first."""
        return sorted((row for row in self.rows if row.holds != row.says), key=lambda row: -abs(row.score))

    def number(self, holds: bool, says: bool) -> int:
        """Return at how many texts the probe says one thing and the text another, or the same."""
        return sum((row.holds, row.says) == (holds, says) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON has it."""
        return {
            "probe": self.probe_name,
            "texts": len(self.rows),
            "apart": len(self.apart),
            "rows": [{"text": row.text, "score": row.score, "holds": row.holds, "says": row.says} for row in self.rows],
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        write_atomically(path, (text + "\n").encode("utf-8", "surrogatepass"))


def disagreements(
    model: LoadedModel, probe: Probe, examples: Sequence[Example], used: Sequence[DictionaryInUse]
) -> Disagreements:
    """Compare a probe with what texts claim.

    Args:
        model: The model that the probe was trained in.
        probe: The probe.
        examples: The texts, each with what it claims in `says`.
        used: The dictionaries that the probe reads.

    Raises:
        ValueError: A text does not say what it claims, or cannot be read; file and line are named.
    """
    score = probe.scorer(model, used)
    rows = []
    for example in examples:
        if example.says is None:
            raise ValueError(f"{example.place}: it is not said what the text claims")
        try:
            rows.append(Compared(example.text, score(example.text).whole, example.says))
        except ValueError as problem:
            raise ValueError(f"{example.place}: {problem}") from None
    return Disagreements(probe.name, rows)
