"""Curves of a run: what steps saw, averaged over intervals, so that their number stays bounded however long it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_MOST_POINTS = 512
# Averaged over an interval; everything else of a point is its last step's.
_AVERAGED = ("loss", "fvu", "fvu_weighted", "l0", "dead")


@dataclass
class Curves:
    """Points of equal numbers of steps; when there are too many, neighbours are joined.

    Attributes:
        points: What is known of each interval.
        every: Steps of an interval.
    """

    points: list[dict[str, Any]] = field(default_factory=list)
    every: int = 1

    def add(self, point: dict[str, Any]) -> None:
        """Add a step.

        Args:
            point: Its figures by name: `stage`, `step`, `tokens`, `seconds`, `learning_rate`, `resets` and those that are
                averaged.
        """
        point = {**point, "steps": 1}
        last = self.points[-1] if self.points else None
        if last is not None and last["stage"] == point["stage"] and last["steps"] < self.every:
            self.points[-1] = _joined(last, point)
        else:
            self.points.append(point)
        if len(self.points) > _MOST_POINTS:
            self._thin()

    def _thin(self) -> None:
        self.every *= 2
        before, self.points = self.points, []
        for point in before:
            last = self.points[-1] if self.points else None
            if last is not None and last["stage"] == point["stage"] and last["steps"] + point["steps"] <= self.every:
                self.points[-1] = _joined(last, point)
            else:
                self.points.append(point)

    def to_dict(self) -> dict[str, Any]:
        """Return the curves, ready for JSON."""
        return {"every": self.every, "points": self.points}

    @staticmethod
    def of(record: dict[str, Any]) -> Curves:
        """Return curves as `to_dict` wrote them."""
        return Curves([dict(point) for point in record["points"]], record["every"])


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    a, b = first["steps"], second["steps"]
    joined = {**second, "steps": a + b, "resets": first.get("resets", 0) + second.get("resets", 0)}
    for name in _AVERAGED:
        if first.get(name) is not None and second.get(name) is not None:
            joined[name] = (first[name] * a + second[name] * b) / (a + b)
    return joined
