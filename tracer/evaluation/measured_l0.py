"""Whether as many features fire as the files' config says: the cheapest sign of a wrong site or a wrong model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# A measured L0 this many times the config's, or its inverse, is probably that of another site or another model.
_FAR = 4.0


class MeasuredL0(NamedTuple):
    """How many features of a layer fire at a token, on average, and what the config says; None if it does not say."""

    layer: int
    measured: float
    expected: float | None

    @property
    def factor(self) -> float:
        """How far apart the two are, 1 or more; 1 where the config does not say."""
        if not self.expected:
            return 1.0
        return max(self.measured / self.expected, self.expected / self.measured) if self.measured else float("inf")


def far_l0(layers: Iterable[MeasuredL0]) -> str | None:
    """Return one line that says how far the L0 of some layers is from the config's; None if it is not far in any.

    Args:
        layers: The layers of one dictionary.

    Example:
        >>> far_l0([MeasuredL0(9, 412.3, 15)])[:60]
        '1 of 1 layers are far from the L0 in the config, layer 9 mos'
    """
    layers = list(layers)
    far = [layer for layer in layers if layer.factor >= _FAR]
    if not far:
        return None
    most = max(far, key=lambda layer: layer.factor)
    assert most.expected is not None
    return (
        f"{len(far)} of {len(layers)} layers are far from the L0 in the config, layer {most.layer} most: "
        f"{most.measured:,.1f} measured and {most.expected:,.0f} expected; is this the model and the site that it was "
        "trained on?"
    )
