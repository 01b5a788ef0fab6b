"""Interventions: small named objects that say what a pass changes, and where.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions". Every object
converts its numbers when it is made: integers and sequences of NumPy and torch become Python's own.

Letters: L layers, P positions of the prompt.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from crosstrace.replacement_model.prompts import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from crosstrace.replacement_model.local.local_model import LocalReplacementModel

    SourcePrompt: TypeAlias = Prompt | LocalReplacementModel

# One position, several, a slice (with an open end: generated tokens too), or None: everywhere. Negative ones count from
# the end of the prompt. The excluded first positions carry no features: open starts begin after them.
Positions = int | tuple[int, ...] | slice | None


@dataclass(frozen=True)
class FeatureAt:
    """A feature, active or not, at some positions.

    Attributes:
        layer: The layer that the feature reads, from 0.
        feature: The index within the layer.
        positions: One position, several, a slice, or None for all. Negative positions count from the end of the
            prompt; a slice with an open end reaches generated tokens too.

    Raises:
        ValueError: Layer, feature or positions are not whole numbers.
    """

    layer: int
    feature: int
    positions: Positions = None

    def __post_init__(self) -> None:
        _convert(self, "layer", whole_number(self.layer, "the layer of a feature"))
        _convert(self, "feature", whole_number(self.feature, "the index of a feature"))
        _convert(self, "positions", _positions(self.positions, f"L{self.layer}/{self.feature}"))

    def __str__(self) -> str:
        return f"L{self.layer}/{self.feature}{_at(self.positions)}"


@dataclass(frozen=True)
class Supernode:
    """A named group of features, intervened on as one.

    Attributes:
        name: The name in messages.
        members: The features; any iterable is accepted.
    """

    name: str
    members: tuple[FeatureAt, ...]

    def __post_init__(self) -> None:
        _convert(self, "members", tuple(self.members))

    def __str__(self) -> str:
        count = len(self.members)
        return f'"{self.name}" ({count} feature{"s" if count != 1 else ""})'


@dataclass(frozen=True)
class AllFeatures:
    """All features of all layers and positions, with exceptions; they can be scaled or ablated.

    Setting or adding to all of them would make every feature active, which no memory holds.

    Attributes:
        but: The exceptions; any iterable is accepted. A text names features as it does in an intervention.
    """

    but: tuple[FeatureAt | Supernode | str, ...] = ()

    def __post_init__(self) -> None:
        _convert(self, "but", tuple(self.but))

    def __str__(self) -> str:
        return f"all features but {len(self.but)}" if self.but else "all features"


@dataclass(frozen=True)
class ErrorAt:
    """What a layer's transcoder misses at one position of the prompt: a fixed vector that can be scaled or ablated.

    Attributes:
        layer: The layer, from 0.
        position: The position; negative ones count from the end of the prompt.

    Raises:
        ValueError: Layer or position is not a whole number.
    """

    layer: int
    position: int

    def __post_init__(self) -> None:
        _convert(self, "layer", whole_number(self.layer, "the layer of an error"))
        _convert(self, "position", whole_number(self.position, "the position of an error"))

    def __str__(self) -> str:
        return f"error L{self.layer}@{self.position}"


@dataclass(frozen=True)
class TokenAt:
    """The embedding vector of a prompt token; it can be scaled or ablated.

    Attributes:
        position: The position; negative ones count from the end of the prompt.

    Raises:
        ValueError: The position is not a whole number.
    """

    position: int

    def __post_init__(self) -> None:
        _convert(self, "position", whole_number(self.position, "the position of a token"))

    def __str__(self) -> str:
        return f"token @{self.position}"


@dataclass(frozen=True, eq=False)
class DirectionAt:
    """A direction of the residual stream after a layer, such as the decoder of an SAE's latent; it can be added to.

    Attributes:
        name: What messages call it.
        layer: The layer after which it is added, from 0.
        vector_d: (D,) what an amount of 1 adds.
        positions: One position of the prompt, several, a slice, or None for all.

    Raises:
        ValueError: Layer or positions are not whole numbers.
    """

    name: str
    layer: int
    vector_d: Tensor
    positions: Positions = None

    def __post_init__(self) -> None:
        _convert(self, "layer", whole_number(self.layer, "the layer of a direction"))
        _convert(self, "positions", _positions(self.positions, self.name))

    def __str__(self) -> str:
        return f"{self.name}{_at(self.positions)}"


# A text names a feature or a label, as in `L3/417@7` or `"Texas"`; see the module `references`.
FeaturePlace = FeatureAt | Supernode | str
Place = FeaturePlace | AllFeatures | ErrorAt | TokenAt | DirectionAt


@dataclass(frozen=True)
class Set:
    """Give features an activation, whether or not they were active.

    Attributes:
        where: The features.
        value: The activation in the features' own units: one number, or one per member of a supernode, in order.

    Raises:
        ValueError: The value is not a number.
    """

    where: FeaturePlace
    value: float | tuple[float, ...]

    def __post_init__(self) -> None:
        if _is_several(self.value):
            _convert(self, "value", tuple(_number(one, "value", self.where) for one in self.value))
        else:
            _convert(self, "value", _number(self.value, "value", self.where))


@dataclass(frozen=True)
class Scale:
    """Multiply the activation that the same pass would give without this intervention.

    A factor of 0 ablates, 2 doubles, −1 inverts. Where features are recomputed, the recomputed activation is scaled. To
    clamp to a multiple of the prompt's own activation whatever happens upstream, swap in the same prompt:
    `SwapIn(where, prompt, factor=2)`.

    Attributes:
        where: Features, errors or tokens.
        factor: The factor.

    Raises:
        ValueError: The factor is not a number.
    """

    where: Place
    factor: float

    def __post_init__(self) -> None:
        _convert(self, "factor", _number(self.factor, "factor", self.where))


@dataclass(frozen=True)
class Add:
    """Add to the activation that the same pass would give without this intervention (steering).

    Attributes:
        where: The features, or a direction of the residual stream.
        amount: What is added, in the features' own units, or times the direction.

    Raises:
        ValueError: The amount is not a number.
    """

    where: FeaturePlace | DirectionAt
    amount: float

    def __post_init__(self) -> None:
        _convert(self, "amount", _number(self.amount, "amount", self.where))


@dataclass(frozen=True)
class Ablate:
    """Set to zero.

    Attributes:
        where: Features, errors or tokens.
    """

    where: Place


@dataclass(frozen=True)
class SwapIn:
    """Clamp features to their activations in another prompt, to zero where they are not active there.

    Attributes:
        where: The features, at positions of the prompt that is intervened on.
        source: The other prompt, or its local replacement model if that is at hand.
        source_position: The position of the other prompt to read; None reads at the same positions.
        factor: Multiplies the activations that are read.

    Raises:
        ValueError: The position is not a whole number, or the factor is not a number.
    """

    where: FeaturePlace
    source: SourcePrompt
    source_position: int | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.source_position is not None:
            _convert(self, "source_position", whole_number(self.source_position, "source_position"))
        _convert(self, "factor", _number(self.factor, "factor", self.where))


Intervention = Set | Scale | Add | Ablate | SwapIn


def _convert(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, value)  # the dataclasses are frozen


def _is_several(value: object) -> TypeGuard[Iterable[Any]]:
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def whole_number(value: object, what: str) -> int:
    """Convert an integer of any make, also of NumPy and torch, to Python's own.

    Args:
        value: The number.
        what: Its name in the message.

    Raises:
        ValueError: It is not a whole number.
    """
    number = _as_whole_number(value)
    if number is None:
        raise ValueError(f"{what} must be a whole number, not {value!r}")
    return number


def _as_whole_number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # torch raises either
        return None


def _number(value: Any, what: str, where: object) -> float:
    """A Python number; its size is checked together with the prompt."""
    if not isinstance(value, (bool, str)):
        try:
            return value if isinstance(value, (int, float)) else float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise ValueError(f"{named(where)}: {what} must be a number, not {value!r}")


def _positions(positions: Any, name: str) -> Positions:
    if positions is None:
        return None
    if isinstance(positions, slice):
        start, stop, step = (
            None if end is None else _as_whole_number(end) for end in (positions.start, positions.stop, positions.step)
        )
        if (start, stop, step).count(None) != (positions.start, positions.stop, positions.step).count(None):
            raise ValueError(
                f"{name}: {positions!r} is not a range of positions; its ends must be whole numbers or None"
            )
        return slice(start, stop, step)
    one = _as_whole_number(positions)
    if one is not None:
        return one
    if _is_several(positions):
        several = tuple(_as_whole_number(position) for position in positions)
        if None not in several:
            return several  # type: ignore[return-value]  # no None is left
    raise ValueError(f"{name}: {positions!r} is not a position; give a whole number, several, a slice, or None")


def _at(positions: Positions) -> str:
    if positions is None:
        return ""
    if isinstance(positions, slice):
        start, stop = ("" if end is None else end for end in (positions.start, positions.stop))
        return f"@{start}:{stop}"
    return "@" + ",".join(map(str, positions if isinstance(positions, tuple) else (positions,)))


def named(where: object) -> str:
    """The name of a place in messages: texts in quotes, everything else as it prints itself."""
    return repr(where) if isinstance(where, str) else str(where)
