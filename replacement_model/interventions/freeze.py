"""What a pass holds fixed: features, attention and norms by a `Freeze`, and the name of what becomes of the errors.

Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph Hypotheses with Interventions"; names follow
that paper and circuit-tracer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crosstrace.replacement_model.interventions.kinds import whole_number


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
            last = whole_number(self.up_to, "the last constrained layer")
            object.__setattr__(self, "up_to", last)  # the dataclass is frozen

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
