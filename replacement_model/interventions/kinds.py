"""Interventions: small named things that say what to change in a pass, and what to hold fixed meanwhile.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions". What is
held fixed is named after that paper and circuit-tracer: see :class:`Freeze`.

Letters: L layers, P positions of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from crosstrace.replacement_model.local.local_model import LocalReplacementModel

    SourcePrompt: TypeAlias = str | Sequence[int] | Tensor | LocalReplacementModel

# One position, several, a slice (open-ended: generated tokens too), or None: everywhere. Negative ones count from the
# end of the prompt. The excluded first positions carry no features: open starts begin after them.
Positions = int | tuple[int, ...] | slice | None


@dataclass(frozen=True)
class FeatureAt:
    """A feature, active or not, at some positions."""

    layer: int
    feature: int
    positions: Positions = None

    def __str__(self) -> str:
        return f"L{self.layer}/{self.feature}{_at(self.positions)}"


@dataclass(frozen=True)
class Supernode:
    """A named group of features that is intervened on as one."""

    name: str
    members: tuple[FeatureAt, ...]

    def __str__(self) -> str:
        count = len(self.members)
        return f'"{self.name}" ({count} feature{"s" if count != 1 else ""})'


@dataclass(frozen=True)
class AllFeatures:
    """Every feature of every layer and position but some. Scale or ablate it; more than that would fill the model."""

    but: tuple[FeatureAt | Supernode, ...] = ()

    def __str__(self) -> str:
        return f"all features but {len(self.but)}" if self.but else "all features"


@dataclass(frozen=True)
class ErrorAt:
    """What a layer's transcoder misses at a position of the prompt: a fixed vector, which can be scaled or ablated."""

    layer: int
    position: int

    def __str__(self) -> str:
        return f"error L{self.layer}@{self.position}"


@dataclass(frozen=True)
class TokenAt:
    """A prompt token's embedding vector, which can be scaled or ablated."""

    position: int

    def __str__(self) -> str:
        return f"token @{self.position}"


# A text names a feature or a label: ``L3/417@7``, ``"Texas"``; see crosstrace.replacement_model.interventions.references.
FeaturePlace = FeatureAt | Supernode | str
Place = FeaturePlace | AllFeatures | ErrorAt | TokenAt


@dataclass(frozen=True)
class Set:
    """Give features an activation, in the features' own units; those that were not active become so.

    ``value`` is one number, or one for each member of a supernode, in order.
    """

    where: FeaturePlace
    value: float | tuple[float, ...]


@dataclass(frozen=True)
class Scale:
    """Multiply what would be there without this intervention in the same pass; 0 ablates, 2 doubles, −1 inverts.

    Where features are recomputed, that is the recomputed activation. To clamp to a multiple of what the prompt had,
    whatever happens upstream, swap in the same prompt: ``SwapIn(where, prompt, factor=2)``.
    """

    where: Place
    factor: float


@dataclass(frozen=True)
class Add:
    """Add to the activation that would be there without this intervention in the same pass (steering)."""

    where: FeaturePlace
    amount: float


@dataclass(frozen=True)
class Ablate:
    """Set to zero."""

    where: Place


@dataclass(frozen=True)
class SwapIn:
    """Clamp features to their activations in another prompt: zero where they are not active there.

    Attributes:
        where: the features, at positions of the prompt that is intervened on.
        source: the other prompt, or its local replacement model where that is at hand.
        source_position: where in the other prompt to read; None reads at the same positions.
        factor: multiplies what is read.
    """

    where: FeaturePlace
    source: SourcePrompt
    source_position: int | None = None
    factor: float = 1.0


Intervention = Set | Scale | Add | Ablate | SwapIn


@dataclass(frozen=True)
class Freeze:
    """What a pass holds at the prompt's own values; make one with the three constructors.

    Attributes:
        name: of the constructor.
        up_to: layers 0 .. up_to keep their features and errors, so that their MLP outputs change by what is intervened
            on alone; None: no layer does. The skip connection of an affine transcoder is live in every layer and at
            every position, as it is in the linear model that edges are effects through.
        attention: attention patterns are frozen (values still flow through them).
        norms: the denominators of the residual stream's norms are frozen.
    """

    name: Literal["direct", "constrained", "iterative"]
    up_to: int | None
    attention: bool
    norms: bool

    @staticmethod
    def direct() -> Freeze:
        """Attention, norm denominators and all features that are not intervened on: the linear model of the graph.

        What changes is the sum of the direct effects: the edges. circuit-tracer: ``constrained_layers=range(n_layers)``.
        """
        return Freeze("direct", None, True, True)

    @staticmethod
    def constrained(
        up_to: int, attention: Literal["frozen", "free"] = "frozen", norms: Literal["frozen", "free"] = "free"
    ) -> Freeze:
        """ "Constrained patching": MLP outputs of layers 0 .. ``up_to`` change only by what is intervened on.

        Later layers are recomputed. The paper intervenes at layers up to the last constrained one, so that features
        there are at the values asked for and effects are read further up; circuit-tracer calls the range
        ``constrained_layers``.
        """
        return Freeze("constrained", up_to, _frozen("attention", attention), _frozen("norms", norms))

    @staticmethod
    def iterative(attention: Literal["frozen", "free"] = "frozen", norms: Literal["frozen", "free"] = "free") -> Freeze:
        """ "Iterative patching": every layer's features are recomputed from what reaches it, layer after layer."""
        return Freeze("iterative", None, _frozen("attention", attention), _frozen("norms", norms))

    def holds_features(self, layer: int) -> bool:
        """Whether features of a layer stay at the prompt's activations unless intervened on."""
        return self.name == "direct" or (self.up_to is not None and layer <= self.up_to)

    @staticmethod
    def parse(freeze: Freeze | str) -> Freeze:
        """A freeze as it is written: ``direct``, ``iterative``, ``constrained:5``.

        Raises:
            ValueError: none of these.
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


# What becomes of the part of the MLP outputs that transcoders miss:
# frozen: the vectors of the unchanged prompt, as in the local replacement model;
# recomputed: the model's own MLPs run, and what interventions change in features is added to their output;
# dropped: left out, as in the replacement model.
Errors = Literal["frozen", "recomputed", "dropped"]


def _frozen(what: str, choice: str) -> bool:
    if choice not in ("frozen", "free"):
        raise ValueError(f"{what} must be frozen or free, not {choice!r}")
    return choice == "frozen"


def _at(positions: Positions) -> str:
    if positions is None:
        return ""
    if isinstance(positions, slice):
        start, stop = ("" if end is None else end for end in (positions.start, positions.stop))
        return f"@{start}:{stop}"
    if hasattr(positions, "__index__") and getattr(positions, "ndim", 0) == 0:  # NumPy's and torch's numbers too
        return f"@{int(positions)}"
    return "@" + ",".join(str(position) for position in positions)  # type: ignore[union-attr]
