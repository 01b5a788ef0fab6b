"""Is the two-step circuit where a reader looks for it: a city's state at the city, and the answer through it?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model import Ablate, FeatureAt, LocalReplacementModel, ReplacementModel, intervene_batch
from crosstrace.replacement_model.demo import DALLAS_PROMPT, Facts
from crosstrace.replacement_model.demo.corpus import held_out_cities

RANDOM_SETS = 100


@dataclass(frozen=True)
class CityReadout:
    """Over the held-out cities of states, in the Dallas prompt's phrasing, at the city's own position.

    `named`: for how many a feature named after the city's state is active; `lens`: for how many the state's token is on
    top when the residual stream is read through the final norm and the unembedding, before and after every layer.
    """

    cities: int
    named: int
    lens: list[int]


@dataclass(frozen=True)
class Ablation:
    """By how much Austin's centred logit falls in the Dallas prompt when features are ablated, all else recomputed.

    `named`: all the features named after Texas, `count` of them; `strongest`: as many others, those that alone take
    away the most; `at_random`: mean and largest over random sets of as many others; `single`: the others that alone
    take away the most, by name.
    """

    count: int
    named: float
    strongest: float
    at_random: tuple[float, float]
    single: list[tuple[str, float]]


def named_after(label: str, place: str) -> bool:
    """Whether a label names this place and no other: "Texas", "say Austin (Texas)", "Dallas (Texas)"."""
    return label == place or label.endswith(f"({place})")


@torch.no_grad()
def read_cities(model: ReplacementModel, facts: Facts) -> CityReadout:
    """See :class:`CityReadout`."""
    held_out, labels, gemma = held_out_cities(facts), model.transcoders.labels, model.model
    state_of = {city: state.name for state in facts.states for city in state.cities if city in held_out}
    ids = torch.stack([model.tokenize(DALLAS_PROMPT.replace("Dallas", city)) for city in state_of])
    states = torch.stack([model.tokenize(state)[-1] for state in state_of.values()])
    position = model.token_strings(model.tokenize(DALLAS_PROMPT)).index("Dallas")

    named = 0
    for tokens_p, state in zip(ids, state_of.values(), strict=True):
        active = model.local(tokens_p).activations.indices.tolist()
        named += any(p == position and labels.get((layer, feature)) == state for layer, p, feature in active)
    *passing, normed = gemma(ids, use_cache=False, output_hidden_states=True).hidden_states
    readable = [*(gemma.model.norm(residual) for residual in passing), normed]  # the last comes with the norm applied
    lens = [int((gemma.lm_head(residual[:, position]).argmax(-1) == states).sum()) for residual in readable]
    return CityReadout(len(state_of), named, lens)


def ablate_texas(model: ReplacementModel, answer: str = "Austin", place: str = "Texas") -> Ablation:
    """See :class:`Ablation`."""
    local = model.local(DALLAS_PROMPT)
    labels = model.transcoders.labels
    active = [FeatureAt(layer, f, position) for layer, position, f in local.activations.indices.tolist()]
    name = {feature: labels.get((feature.layer, feature.feature), "") for feature in active}
    of_place = [feature for feature in active if named_after(name[feature], place)]
    others = [feature for feature in active if feature not in of_place]
    token = int(model.tokenize(answer)[-1])

    alone = dict(zip(others, _drops(model, local, [[feature] for feature in others], token), strict=True))
    strongest = sorted(others, key=lambda feature: -alone[feature])
    draw, count = random.Random(0), min(len(of_place), len(others))
    sets = [of_place, strongest[:count], *(draw.sample(others, count) for _ in range(RANDOM_SETS))]
    named, most, *rest = _drops(model, local, sets, token)
    return Ablation(
        count=len(of_place),
        named=named,
        strongest=most,
        at_random=(sum(rest) / len(rest), max(rest)),
        single=[(f"{name[feature]} ({feature})", alone[feature]) for feature in strongest[:3]],
    )


def _drops(
    model: ReplacementModel, local: LocalReplacementModel, sets: Sequence[Sequence[FeatureAt]], token: int
) -> list[float]:
    runs = [(local, [Ablate(feature) for feature in features]) for features in sets]
    return [-_centred(outcome.logit_changes_qv[-1], token) for outcome in intervene_batch(model, runs)]


def _centred(changes_v: Tensor, token: int) -> float:
    return float(changes_v[token] - changes_v.mean())
