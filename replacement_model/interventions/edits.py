"""Interventions checked against a prompt and spelled out: one factor and offset for every place they change.

Letters: L layers, P positions of the prompt, T positions of prompt and generated tokens.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from crosstrace.replacement_model.interventions.kinds import (
    Ablate,
    Add,
    AllFeatures,
    ErrorAt,
    FeatureAt,
    FeaturePlace,
    Intervention,
    Positions,
    Scale,
    Set,
    Supernode,
    SwapIn,
    TokenAt,
)
from crosstrace.replacement_model.interventions.references import find_features
from crosstrace.replacement_model.local.local_model import LocalReplacementModel

Place3 = tuple[int, int, int]
_LARGEST = 1e15  # far beyond any activation, and norms can still square what comes of it in float32


@dataclass
class Edits:
    """What one row of a batch changes; an activation a becomes ``factor * a + offset``."""

    features: dict[Place3, tuple[float, float]] = field(default_factory=dict)  # (layer, position, feature)
    others: float = 1.0  # factor of every feature that is not in `features`
    errors: dict[tuple[int, int], float] = field(default_factory=dict)  # (layer, position) -> factor
    tokens: dict[int, float] = field(default_factory=dict)  # position -> factor

    def __len__(self) -> int:
        return len(self.features) + len(self.errors) + len(self.tokens) + (self.others != 1.0)


def resolve(
    interventions: Sequence[Intervention],
    local: LocalReplacementModel,
    localize: Callable[[object], LocalReplacementModel],
    n_generated: int = 0,
) -> Edits:
    """Check interventions on a prompt and spell them out.

    Scalings and additions to one place take effect in the order given. Setting a place (ablating and swapping in are
    ways to set it) leaves no room for anything else there. What is said of single features beats ``AllFeatures``.

    Args:
        local: the prompt's local replacement model.
        localize: gives the local replacement model of another prompt, for swapping in.
        n_generated: how many tokens follow the prompt, at most.

    Raises:
        ValueError: a feature, layer, position, label or value that cannot be, or interventions that contradict each
            other; one line that names it and what is valid.
    """
    if isinstance(interventions, (Set, Scale, Add, Ablate, SwapIn)):
        raise ValueError(f"interventions come as a list: [{type(interventions).__name__}(…)]")
    resolver = _Resolver(local, localize, n_generated)
    for intervention in interventions:
        resolver.add(intervention)
    return resolver.edits


class _Resolver:
    def __init__(
        self, local: LocalReplacementModel, localize: Callable[[object], LocalReplacementModel], n_generated: int
    ) -> None:
        self.local, self.localize, self.n_generated = local, localize, n_generated
        self.edits = Edits()
        self._how: dict[Place3, str] = {}  # places that are set, and to what; or "changed"

    def add(self, intervention: Intervention) -> None:
        if not isinstance(intervention, (Set, Scale, Add, Ablate, SwapIn)):
            raise ValueError(f"{intervention!r} is not an intervention; known are Set, Scale, Add, Ablate and SwapIn")
        where = intervention.where
        if isinstance(where, (AllFeatures, ErrorAt, TokenAt)):
            factor = _factor(intervention)
            if isinstance(where, AllFeatures):
                self._all(where, factor)
            elif isinstance(where, ErrorAt):
                place = (where.layer, self._prompt_position(where.position, where))
                if not 0 <= where.layer < self.local.description.n_layers:
                    raise ValueError(f"{where}: the model has layers 0 to {self.local.description.n_layers - 1}")
                self._not_excluded(place[1], where)
                self.edits.errors[place] = self.edits.errors.get(place, 1.0) * factor
            else:
                position = self._prompt_position(where.position, where)
                self.edits.tokens[position] = self.edits.tokens.get(position, 1.0) * factor
            return
        members = list(self._members(where))
        match intervention:
            case Set(value=value):
                values = value if isinstance(value, tuple) else (value,) * len(members)
                if len(values) != len(members):
                    raise ValueError(f"{_name(where)} has {len(members)} members, but {len(values)} values are set")
                self._set_each(members, values)
            case Ablate():
                self._set_each(members, [0.0] * len(members))
            case Scale(factor=factor):
                self._change(members, _finite(factor, "factor", where), 0.0)
            case Add(amount=amount):
                self._change(members, 1.0, _finite(amount, "amount", where))
            case SwapIn():
                self._swap(members, intervention)

    def _members(self, where: FeaturePlace) -> Iterator[FeatureAt]:
        if isinstance(where, str):
            where = find_features(where, self.local.transcoders.labels)
        if isinstance(where, Supernode):
            if not where.members:
                raise ValueError(f"supernode {where.name!r} has no features")
            yield from where.members
        elif isinstance(where, FeatureAt):
            yield where
        else:
            raise ValueError(f"{where!r} is not a place; give a FeatureAt, a Supernode, or a text such as 'L3/417@7'")

    def _set_each(self, members: Sequence[FeatureAt], values: Sequence[float]) -> None:
        for member, value in zip(members, values, strict=True):
            for place in self._places(member):
                self._set(place, _finite(value, "value", member))

    def _set(self, place: Place3, value: float) -> None:
        how = f"set to {value:g}"
        if self._how.get(place, how) != how:
            raise ValueError(f"contradictory interventions on {_at(place)}: {self._how[place]}, and {how}")
        self._how[place] = how
        self.edits.features[place] = (0.0, float(value))

    def _change(self, members: Sequence[FeatureAt], factor: float, offset: float) -> None:
        # A place that an intervention names twice, by two members or positions, is changed once.
        for place in dict.fromkeys(place for member in members for place in self._places(member)):
            if self._how.get(place, "changed") != "changed":
                raise ValueError(
                    f"contradictory interventions on {_at(place)}: {self._how[place]}, and scaled or added to"
                )
            self._how[place] = "changed"
            before_factor, before_offset = self.edits.features.get(place, (1.0, 0.0))
            self.edits.features[place] = (
                _finite(factor * before_factor, "factor of all interventions", _at(place)),
                _finite(factor * before_offset + offset, "amount of all interventions", _at(place)),
            )

    def _swap(self, members: Sequence[FeatureAt], swap: SwapIn) -> None:
        source = self.localize(swap.source)
        if swap.source_position is None:  # an open end is the prompt's: generated positions have nothing to read from
            members = [dataclasses.replace(m, positions=self._within_prompt(m.positions)) for m in members]
        factor = _finite(swap.factor, "factor", swap.where)
        active = source.activations
        values = dict(zip(map(tuple, active.indices.tolist()), active.values.tolist(), strict=True))
        for member in members:
            for layer, position, feature in self._places(member):
                read = position if swap.source_position is None else swap.source_position
                if not -source.n_positions <= read < source.n_positions:
                    raise ValueError(
                        f"{member}: the prompt it is swapped in from has {source.n_positions} tokens, "
                        f"so positions 0 to {source.n_positions - 1}; there is no {read}"
                    )
                value = values.get((layer, read % source.n_positions, feature), 0.0)
                self._set((layer, position, feature), factor * value)

    def _all(self, where: AllFeatures, factor: float) -> None:
        if self.edits.others != 1.0:
            raise ValueError("all features are intervened on twice; give their factor once")
        self.edits.others = factor
        for kept in where.but:
            for member in self._members(kept):
                for place in self._places(member):
                    self.edits.features.setdefault(place, (1.0, 0.0))

    def _places(self, member: FeatureAt) -> Iterator[Place3]:
        """The (layer, position, feature) of a feature, one for each of its positions."""
        n_layers, n_features = self.local.description.n_layers, self.local.transcoders.reader.n_features
        if not 0 <= member.layer < n_layers:
            raise ValueError(f"{member}: the model has layers 0 to {n_layers - 1}")
        if not 0 <= member.feature < n_features[member.layer]:
            raise ValueError(f"{member}: layer {member.layer} has features 0 to {n_features[member.layer] - 1}")
        for position in self._positions(member.positions, member):
            yield member.layer, position, member.feature

    def _within_prompt(self, positions: Positions) -> Positions:
        if positions is None:
            positions = slice(None)
        if isinstance(positions, slice) and positions.stop is None:
            return slice(positions.start, self.local.n_positions)
        return positions

    def _positions(self, positions: Positions, member: FeatureAt) -> Iterator[int]:
        first, total = self.local.description.excluded_first, self.local.n_positions + self.n_generated
        if positions is None:
            positions = slice(None)
        if isinstance(positions, slice):
            if any(_whole_numbers(end) is None for end in (positions.start, positions.stop) if end is not None):
                raise ValueError(
                    f"{_named(member)}: {positions!r} is no range of positions; its ends are whole numbers, or None"
                )
            if positions.step not in (None, 1):
                raise ValueError(f"{member}: positions in steps of {positions.step}; a slice takes every position")
            start = first if positions.start is None else self._position(positions.start, member)
            stop = total if positions.stop is None else self._position(positions.stop, member, stops=True)
            if start >= stop:
                raise ValueError(f"{member}: no position is left; positions {self._valid()}")
            yield from range(start, stop)
            return
        several = _whole_numbers(positions)
        if several is None:
            raise ValueError(
                f"{_named(member)}: {positions!r} is no position; give a whole number, several, a slice, or None"
            )
        if not several:
            raise ValueError(f"{member}: no position is given; positions {self._valid()}")
        for position in several:
            yield self._position(position, member)

    def _position(self, position: int, where: FeatureAt, stops: bool = False) -> int:
        """A position counted from the start; ``stops``: the end of a slice, one past the last position at most."""
        n_positions = self.local.n_positions
        place = position + n_positions if position < 0 else position
        if not 0 <= place < n_positions + self.n_generated + stops:
            raise ValueError(f"{where}: position {position} is outside the prompt; positions {self._valid()}")
        if not stops:
            self._not_excluded(place, where)
        return place

    def _not_excluded(self, position: int, where: FeatureAt | ErrorAt) -> None:
        first = self.local.description.excluded_first
        if position < first:
            raise ValueError(
                f"{where}: the first {'position carries' if first == 1 else f'{first} positions carry'} "
                f"no features and no errors; positions {self._valid()}"
            )

    def _prompt_position(self, position: int, where: ErrorAt | TokenAt) -> int:
        n_positions = self.local.n_positions
        if not -n_positions <= position < n_positions:
            raise ValueError(
                f"{where}: position {position} is outside the prompt; it has positions 0 to {n_positions - 1}"
            )
        return position % n_positions

    def _valid(self) -> str:
        first, n_positions = self.local.description.excluded_first, self.local.n_positions
        if first >= n_positions + self.n_generated:
            return f"are valid from {first} on, and the prompt has {n_positions}"
        if first >= n_positions:
            return f"{first} to {n_positions + self.n_generated - 1} are valid, for generated tokens"
        more = f", and up to {n_positions + self.n_generated - 1} for generated tokens" if self.n_generated else ""
        return f"{first} to {n_positions - 1} are valid{more}"


def _factor(intervention: Intervention) -> float:
    if isinstance(intervention, Ablate):
        return 0.0
    if isinstance(intervention, Scale):
        return _finite(intervention.factor, "factor", intervention.where)
    raise ValueError(f"{intervention.where} can be scaled or ablated, not {type(intervention).__name__}")


def _named(member: FeatureAt) -> FeatureAt:
    """The feature alone, where its positions cannot be written."""
    return dataclasses.replace(member, positions=None)


def _whole_numbers(positions: object) -> tuple[int, ...] | None:
    """One position or several, NumPy's and torch's whole numbers too; None where it is neither."""
    if isinstance(positions, (bool, str)):
        return None
    try:
        return (operator.index(positions),)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        pass
    try:
        return tuple(operator.index(position) for position in positions)  # type: ignore[attr-defined]
    except (TypeError, RuntimeError):
        return None


def _finite(value: float, what: str, where: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        raise ValueError(f"{_name(where)}: {what} must be a number of at most {_LARGEST:g} in size, not {value!r}")
    return float(value)


def _name(where: object) -> str:
    return repr(where) if isinstance(where, str) else str(where)


def _at(place: Place3) -> str:
    layer, position, feature = place
    return f"L{layer}/{feature}@{position}"
