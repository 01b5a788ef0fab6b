"""Interventions checked against a prompt and spelled out: one factor and one offset for every place they change.

Letters: L layers, P positions of the prompt, T positions of prompt and generated tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crosstrace.replacement_model.interventions.kinds import (
    Ablate,
    Add,
    AllFeatures,
    DirectionAt,
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
    named,
)
from crosstrace.replacement_model.interventions.references import find_features
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.local.running_model import Localize

FeatureIndex = tuple[int, int, int]  # (layer, position, feature), as in a row of `SparseActivations.indices`
_LARGEST = 1e15  # far beyond any activation, and norms can still square what comes of it in float32


@dataclass
class Edits:
    """What one row of a batch changes; an activation a becomes `factor * a + offset`.

    Attributes:
        features: Factor and offset by (layer, position, feature).
        others: The factor of every feature that is not in `features`.
        errors: Factors by (layer, position).
        tokens: Factors by position.
        directions: What is added to the residual stream (D,), by (layer after which, position of the prompt).
    """

    features: dict[FeatureIndex, tuple[float, float]] = field(default_factory=dict)
    others: float = 1.0
    errors: dict[tuple[int, int], float] = field(default_factory=dict)
    tokens: dict[int, float] = field(default_factory=dict)
    directions: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        single = len(self.features) + len(self.errors) + len(self.tokens) + len(self.directions)
        return single + (self.others != 1.0)


def resolve(
    interventions: Sequence[Intervention],
    local: LocalReplacementModel,
    localize: Localize,
    n_generated: int = 0,
) -> Edits:
    """Check interventions on a prompt and spell them out.

    Scaling and adding at one place take effect in the order given. A place that is set, which includes ablating it and
    swapping it in, takes no other intervention. An intervention on single features overrides `AllFeatures`.

    Args:
        interventions: What to change.
        local: The prompt's local replacement model.
        localize: Gives the local replacement model of another prompt, for swapping in.
        n_generated: The number of tokens that may be generated after the prompt.

    Returns:
        The edits, with all positions counted from the start.

    Raises:
        ValueError: A feature, layer, position or label does not exist, a value is too large, or two interventions
            contradict each other. One line names it and what is valid.
    """
    if isinstance(interventions, (Set, Scale, Add, Ablate, SwapIn)):
        raise ValueError(f"interventions must be a list: [{type(interventions).__name__}(…)]")
    resolver = _Resolver(local, localize, n_generated)
    for intervention in interventions:
        resolver.add(intervention)
    return resolver.edits


class _Resolver:
    def __init__(self, local: LocalReplacementModel, localize: Localize, n_generated: int) -> None:
        self.local, self.localize, self.n_generated = local, localize, n_generated
        self.edits = Edits()
        self._how: dict[FeatureIndex, str] = {}  # places that are set, and to what; or "changed"

    def add(self, intervention: Intervention) -> None:
        if not isinstance(intervention, (Set, Scale, Add, Ablate, SwapIn)):
            raise ValueError(f"{intervention!r} is not an intervention; known are Set, Scale, Add, Ablate and SwapIn")
        where = intervention.where
        if isinstance(where, DirectionAt):
            self._direction(where, intervention)
            return
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
                    raise ValueError(f"{named(where)} has {len(members)} members, but {len(values)} values were given")
                self._set_each(members, values)
            case Ablate():
                self._set_each(members, [0.0] * len(members))
            case Scale(factor=factor):
                self._change(members, _checked(factor, "factor", where), 0.0)
            case Add(amount=amount):
                self._change(members, 1.0, _checked(amount, "amount", where))
            case SwapIn():
                self._swap(members, intervention)

    def _direction(self, where: DirectionAt, intervention: Intervention) -> None:
        if not isinstance(intervention, Add):
            raise ValueError(f"{where}: a direction can be added to, not {type(intervention).__name__.lower()}")
        size = self.local.description
        if not 0 <= where.layer < size.n_layers:
            raise ValueError(f"{where}: the model has layers 0 to {size.n_layers - 1}")
        if where.vector_d.shape != (size.d_model,) or not where.vector_d.isfinite().all():
            raise ValueError(
                f"{where}: its vector has shape {tuple(where.vector_d.shape)}; expected ({size.d_model},), all finite"
            )
        added_d = _checked(intervention.amount, "amount", where) * where.vector_d.float()
        for position in self._positions(self._within_prompt(where.positions), where):
            place = (where.layer, position)
            self.edits.directions[place] = self.edits.directions.get(place, 0.0) + added_d

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
                self._set(place, _checked(value, "value", member))

    def _set(self, place: FeatureIndex, value: float) -> None:
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
                _checked(factor * before_factor, "factor of all interventions", _at(place)),
                _checked(factor * before_offset + offset, "amount of all interventions", _at(place)),
            )

    def _swap(self, members: Sequence[FeatureAt], swap: SwapIn) -> None:
        source = self.localize(swap.source)
        if (
            swap.source_position is None
        ):  # open ends stop with the prompt: the source has no generated positions to read
            members = [dataclasses.replace(m, positions=self._within_prompt(m.positions)) for m in members]
        factor = _checked(swap.factor, "factor", swap.where)
        places: list[FeatureIndex] = []
        reads: list[FeatureIndex] = []
        for member in members:
            for place in self._places(member):
                layer, position, feature = place
                read = position if swap.source_position is None else swap.source_position
                if not -source.n_positions <= read < source.n_positions:
                    raise ValueError(
                        f"{member}: the prompt to swap in from has {source.n_positions} tokens, "
                        f"at positions 0 to {source.n_positions - 1}; position {read} does not exist"
                    )
                places.append(place)
                reads.append((layer, read % source.n_positions, feature))
        values = source.activations.at(torch.tensor(reads, dtype=torch.int64).view(-1, 3))
        for place, value in zip(places, values.tolist(), strict=True):
            self._set(place, factor * value)

    def _all(self, where: AllFeatures, factor: float) -> None:
        if self.edits.others != 1.0:
            raise ValueError("two interventions act on all features; give one factor")
        self.edits.others = factor
        for kept in where.but:
            for member in self._members(kept):
                for place in self._places(member):
                    self.edits.features.setdefault(place, (1.0, 0.0))

    def _places(self, member: FeatureAt) -> Iterator[FeatureIndex]:
        """Spell out a feature, one entry per position."""
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

    def _positions(self, positions: Positions, member: FeatureAt | DirectionAt) -> Iterator[int]:
        first, total = self.local.description.excluded_first, self.local.n_positions + self.n_generated
        if positions is None:
            positions = slice(None)
        if isinstance(positions, slice):
            if positions.step not in (None, 1):
                raise ValueError(f"{member}: a slice takes every position, not steps of {positions.step}")
            start = first if positions.start is None else self._position(positions.start, member)
            stop = total if positions.stop is None else self._position(positions.stop, member, stops=True)
            if start >= stop:
                raise ValueError(f"{member}: the slice contains no position; positions {self._valid()}")
            yield from range(start, stop)
            return
        several = positions if isinstance(positions, tuple) else (positions,)
        if not several:
            raise ValueError(f"{member}: no position was given; positions {self._valid()}")
        for position in several:
            yield self._position(position, member)

    def _position(self, position: int, where: FeatureAt | DirectionAt, stops: bool = False) -> int:
        """Count a position from the start.

        Args:
            stops: The position ends a slice, so that one past the last is allowed.
        """
        n_positions = self.local.n_positions
        place = position + n_positions if position < 0 else position
        if not 0 <= place < n_positions + self.n_generated + stops:
            raise ValueError(f"{where}: position {position} is outside the prompt; positions {self._valid()}")
        if not stops:
            self._not_excluded(place, where)
        return place

    def _not_excluded(self, position: int, where: FeatureAt | ErrorAt | DirectionAt) -> None:
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
        return _checked(intervention.factor, "factor", intervention.where)
    raise ValueError(f"{intervention.where} can be scaled or ablated, not {type(intervention).__name__}")


def _checked(value: float, what: str, where: object) -> float:
    if not abs(value) <= _LARGEST:  # NaN too
        raise ValueError(
            f"{named(where)}: {what} must be a number between -{_LARGEST:g} and {_LARGEST:g}, not {value!r}"
        )
    return float(value)


def _at(place: FeatureIndex) -> str:
    layer, position, feature = place
    return f"L{layer}/{feature}@{position}"
