"""Interventions: small named objects that say what a pass changes, and what it holds fixed.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions". `Freeze`
names what is held fixed as that paper and circuit-tracer do.

Every object converts its numbers when it is made: integers and sequences of NumPy and torch become Python's own.

Letters: L layers, P positions of the prompt.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

from crosstrace.replacement_model.prompts import Prompt

if TYPE_CHECKING:
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
        _convert(self, "layer", _integer(self.layer, "the layer of a feature"))
        _convert(self, "feature", _integer(self.feature, "the index of a feature"))
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
        _convert(self, "layer", _integer(self.layer, "the layer of an error"))
        _convert(self, "position", _integer(self.position, "the position of an error"))

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
        _convert(self, "position", _integer(self.position, "the position of a token"))

    def __str__(self) -> str:
        return f"token @{self.position}"


# A text names a feature or a label, as in `L3/417@7` or `"Texas"`; see the module `references`.
FeaturePlace = FeatureAt | Supernode | str
Place = FeaturePlace | AllFeatures | ErrorAt | TokenAt


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
        where: The features.
        amount: What is added, in the features' own units.

    Raises:
        ValueError: The amount is not a number.
    """

    where: FeaturePlace
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
            _convert(self, "source_position", _integer(self.source_position, "source_position"))
        _convert(self, "factor", _number(self.factor, "factor", self.where))


Intervention = Set | Scale | Add | Ablate | SwapIn


@dataclass(frozen=True)
class Freeze:
    """What a pass holds at the prompt's own values; made by one of the three constructors.

    Attributes:
        name: The constructor.
        up_to: Layers 0 to `up_to` keep their features and errors, so that their MLP outputs change only by what is
            intervened on; None for no layer. The skip connections of affine transcoders are live in every layer and at
            every position, as in the linear model of the graph.
        attention: Whether attention patterns are frozen; values still flow through them.
        norms: Whether the denominators of the residual stream's norms are frozen.
    """

    name: Literal["direct", "constrained", "iterative"]
    up_to: int | None
    attention: bool
    norms: bool

    def __post_init__(self) -> None:
        if self.up_to is not None:
            _convert(self, "up_to", _integer(self.up_to, "the last constrained layer"))

    @staticmethod
    def direct() -> Freeze:
        """Freeze attention, norm denominators and all features not intervened on: the linear model of the graph.

        The change is then the sum of the direct effects, which are the edges. In circuit-tracer:
        `constrained_layers=range(n_layers)`.
        """
        return Freeze("direct", None, True, True)

    @staticmethod
    def constrained(
        up_to: int, attention: Literal["frozen", "free"] = "frozen", norms: Literal["frozen", "free"] = "free"
    ) -> Freeze:
        """Hold the features of the first layers: the paper's "constrained patching".

        MLP outputs of layers 0 to `up_to` change only by what is intervened on; later layers are recomputed. The paper
        intervenes at layers up to the last constrained one, so that features there have exactly the values asked for,
        and reads effects in later layers. circuit-tracer calls the range `constrained_layers`.

        Args:
            up_to: The last constrained layer.
            attention: Whether attention patterns are frozen.
            norms: Whether norm denominators are frozen.

        Raises:
            ValueError: A choice is neither `frozen` nor `free`.
        """
        return Freeze("constrained", up_to, _frozen("attention", attention), _frozen("norms", norms))

    @staticmethod
    def iterative(attention: Literal["frozen", "free"] = "frozen", norms: Literal["frozen", "free"] = "free") -> Freeze:
        """Recompute the features of every layer from what reaches it: the paper's "iterative patching".

        Args:
            attention: Whether attention patterns are frozen.
            norms: Whether norm denominators are frozen.

        Raises:
            ValueError: A choice is neither `frozen` nor `free`.
        """
        return Freeze("iterative", None, _frozen("attention", attention), _frozen("norms", norms))

    def holds_features(self, layer: int) -> bool:
        """Say whether features of a layer keep the prompt's activations unless intervened on."""
        return self.name == "direct" or (self.up_to is not None and layer <= self.up_to)

    def check_layers(self, n_layers: int) -> None:
        """Check that the constrained layers exist.

        Raises:
            ValueError: The layer does not exist.
        """
        if self.up_to is not None and not 0 <= self.up_to < n_layers:
            raise ValueError(f"constrained up to layer {self.up_to}: the model has layers 0 to {n_layers - 1}")

    @staticmethod
    def parse(freeze: Freeze | str) -> Freeze:
        """Read a freeze as it is written: `direct`, `iterative` or `constrained:5`.

        Args:
            freeze: The text; a `Freeze` is returned as it is.

        Raises:
            ValueError: The text is none of these.
        """
        if isinstance(freeze, Freeze):
            return freeze
        if not isinstance(freeze, str):
            raise ValueError(f"freeze must be a Freeze, direct, iterative or constrained:LAYER, not {freeze!r}")
        name, _, layer = freeze.partition(":")
        if name in ("direct", "iterative") and not layer:
            return Freeze.direct() if name == "direct" else Freeze.iterative()
        if name == "constrained" and layer.isdecimal():
            return Freeze.constrained(int(layer))
        raise ValueError(f"unknown freeze {freeze!r}: known are direct, iterative, constrained:LAYER")


# What becomes of the part of the MLP outputs that transcoders miss; see the module `held_errors`.
Errors = Literal["frozen", "recomputed", "dropped"]


def _frozen(what: str, choice: str) -> bool:
    if choice not in ("frozen", "free"):
        raise ValueError(f"{what} must be frozen or free, not {choice!r}")
    return choice == "frozen"


def _convert(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, value)  # the dataclasses are frozen


def _is_several(value: object) -> TypeGuard[Iterable[Any]]:
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def _integer(value: object, what: str) -> int:
    number = _as_integer(value)
    if number is None:
        raise ValueError(f"{what} must be a whole number, not {value!r}")
    return number


def _as_integer(value: Any) -> int | None:
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
            None if end is None else _as_integer(end) for end in (positions.start, positions.stop, positions.step)
        )
        if (start, stop, step).count(None) != (positions.start, positions.stop, positions.step).count(None):
            raise ValueError(
                f"{name}: {positions!r} is not a range of positions; its ends must be whole numbers or None"
            )
        return slice(start, stop, step)
    one = _as_integer(positions)
    if one is not None:
        return one
    if _is_several(positions):
        several = tuple(_as_integer(position) for position in positions)
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
