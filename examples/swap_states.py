"""Prove the demo's circuit: replace the state a prompt is about by another one, and the answer follows.

    python examples/swap_states.py [--targets 5] [-o swap.svg]

For every state, the features that stand for it are found by graph: those with a path to the answer in the graphs of most
of its cities, and of few other states' cities (so neither of one city nor of the sentence). In a prompt about a city, the
features of its state are then ablated and those of another state set to a multiple of their typical activation,
everything else recomputed (iterative patching, attention frozen). What becomes the most probable token?

How often is "most" and "few", at which positions, and which multiple, is settled on the cities of the training text:
two of each state's are set aside, features are searched in the others, and the setting that swaps the two best is taken.
Held-out cities are then swapped once, with that setting. One control swaps as many random features, at their typical
activations too; another every feature in which the prompt differs from one about the new state, which says how much of
the answer runs through features at all.
Plotting needs matplotlib (pip install "crosstrace[plot]").
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from crosstrace.graphs import AttributionGraph, write_atomically
from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.replacement_model import (
    Ablate,
    FeatureAt,
    Intervention,
    LocalReplacementModel,
    ReplacementModel,
    Set,
    intervene_batch,
)
from crosstrace.replacement_model.demo import load_facts
from crosstrace.replacement_model.demo.corpus import held_out_cities
from crosstrace.tracer import BeforeAfter, before_and_after, show_before_after, trace

PROMPT = "The capital of the state containing {city} is"
CITY_POSITION, LAST_POSITION = 7, 8
SEED = 0
SET_ASIDE, TARGETS_EACH = 2, 1  # cities of every state to choose settings by, and swaps of each

# What is tried: a state's features are in the graphs of at least this share of its cities, …
OWN_SHARES = (0.5, 0.8)
# … and of at most that share of all other states' cities; …
OTHER_SHARES = (0.05, 0.2)
# … they are swapped here, …
POSITIONS = {"at the city": (CITY_POSITION,), "at the end": (LAST_POSITION,), "everywhere": None}
# … and set to this multiple of their typical activation.
FACTORS = (1.0, 1.5, 2.0, 3.0)

STATE, RANDOM, ALL = KINDS = ("the state's features", "as many random ones", "all that differ")

Activations = dict[FeatureAt, float]
Choice = Callable[["Swap", Activations], tuple[Activations, Activations]]


@dataclass(frozen=True)
class Setting:
    """Which features stand for a state, where they are swapped, and how strongly the new ones are set."""

    own_share: float
    other_share: float
    where: str
    factor: float

    def here(self, features: Activations) -> Activations:
        """Of some features, those at the positions where this setting swaps."""
        positions = POSITIONS[self.where]
        return {at: a for at, a in features.items() if positions is None or at.positions in positions}


@dataclass(frozen=True)
class Swap:
    """One swap: a city that the search did not see, its state, the state put in its place, and a city there."""

    city: str
    state: str
    target: str
    control_city: str


@dataclass(frozen=True)
class Result:
    """The shares of swaps that end in the new state's capital, and in the old one's."""

    new: float
    old: float


class Experiment:
    """The model, and each prompt's features and local replacement model once computed."""

    def __init__(self) -> None:
        self.model, facts = ReplacementModel.demo(), load_facts()
        self.held_out = held_out_cities(facts)
        self.state_of = {city: state.name for state in facts.states for city in state.cities}
        self.capital = {state.name: state.capital for state in facts.states}
        self.token = {name: int(self.model.tokenize(word)[-1]) for name, word in self.capital.items()}
        self._locals: dict[str, LocalReplacementModel] = {}

    def local(self, city: str) -> LocalReplacementModel:
        if city not in self._locals:
            self._locals[city] = self.model.local(PROMPT.format(city=city))
        return self._locals[city]

    def active(self, city: str) -> Activations:
        """Every feature of the prompt about a city, and its activation."""
        found = self.local(city).activations
        return {
            FeatureAt(layer, feature, position): value
            for (layer, position, feature), value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        }

    def graph_features(self, city: str) -> Activations:
        """The features with a path to the answer, and their activations."""
        graph: AttributionGraph = trace(self.model, PROMPT.format(city=city), max_logits=1, progress=False)
        influence = spread(graph.edges, row_scale(graph.edges), target_weights(graph))
        found: Activations = {}
        for node in range(graph.layout.n_features):
            if influence[node] > 0:
                layer, position, feature = graph.feature_of(node)
                found[FeatureAt(layer, feature, position)] = graph.activations[graph.selected_features[node]].item()
        return found

    def draw_swaps(self, cities: Iterable[str], searched: Sequence[str], each: int, rng: random.Random) -> list[Swap]:
        """For every city some other states, each with one of its cities that were searched."""
        swaps = []
        for city in cities:
            others = sorted({self.state_of[other] for other in searched} - {self.state_of[city]})
            for target in rng.sample(others, each):
                control = rng.choice([other for other in searched if self.state_of[other] == target])
                swaps.append(Swap(city, self.state_of[city], target, control))
        return swaps

    def run(self, swaps: Sequence[Swap], choose: Choice, factor: float) -> Result:
        """Do swaps, taking away and putting in what `choose` says, and count the answers."""
        runs = []
        for swap in swaps:
            away, put = choose(swap, self.active(swap.city))
            runs.append((self.local(swap.city), replace(away, put, factor)))
        tops = [int(outcome.logits_v.argmax()) for outcome in intervene_batch(self.model, runs)]
        new = sum(top == self.token[swap.target] for top, swap in zip(tops, swaps, strict=True))
        old = sum(top == self.token[swap.state] for top, swap in zip(tops, swaps, strict=True))
        return Result(new / len(swaps), old / len(swaps))


def state_supernodes(
    graphs: dict[str, Activations], state_of: dict[str, str], own_share: float, other_share: float
) -> dict[str, Activations]:
    """For each state its features, with their mean activation where active."""
    by_state: dict[str, list[str]] = defaultdict(list)
    for city in graphs:
        by_state[state_of[city]].append(city)
    everywhere = Counter(place for found in graphs.values() for place in found)
    supernodes: dict[str, Activations] = {}
    for state, cities in by_state.items():
        own = Counter(place for city in cities for place in graphs[city])
        n_others = len(graphs) - len(cities)
        supernodes[state] = {
            place: sum(graphs[city].get(place, 0.0) for city in cities) / count
            for place, count in own.items()
            if count >= own_share * len(cities) and everywhere[place] - count <= other_share * n_others
        }
    return supernodes


def replace(away: Activations, put: Activations, factor: float) -> list[Intervention]:
    """Ablate some features and set others to ``factor`` times an activation."""
    edits: list[Intervention] = [Ablate(place) for place in away if place not in put]
    return edits + [Set(place, factor * value) for place, value in put.items()]


def of_the_state(supernodes: dict[str, Activations], setting: Setting) -> Choice:
    """Take the features of the prompt's state away, and put the other state's in."""

    def choose(swap: Swap, active: Activations) -> tuple[Activations, Activations]:
        own = supernodes[swap.state]
        return setting.here({at: a for at, a in active.items() if at in own}), setting.here(supernodes[swap.target])

    return choose


def at_random(
    graphs: dict[str, Activations], supernodes: dict[str, Activations], setting: Setting, rng: random.Random
) -> Choice:
    """As many features as `of_the_state` would, at the same positions, but of neither state."""

    def choose(swap: Swap, active: Activations) -> tuple[Activations, Activations]:
        away, put = of_the_state(supernodes, setting)(swap, active)
        named = supernodes[swap.state].keys() | supernodes[swap.target].keys()
        pool = {at: a for found in graphs.values() for at, a in setting.here(found).items() if at not in named}
        rest = {at: a for at, a in setting.here(active).items() if at not in named}
        return draw(rest, len(away), rng), draw(pool, len(put), rng)

    return choose


def all_that_differ(graphs: dict[str, Activations]) -> Choice:
    """Every feature, at every position, that only one of the prompt and a prompt about the new state has."""

    def choose(swap: Swap, active: Activations) -> tuple[Activations, Activations]:
        other = graphs[swap.control_city]
        away = {at: a for at, a in active.items() if at not in other}
        return away, {at: a for at, a in other.items() if at not in active}

    return choose


def draw(pool: Activations, count: int, rng: random.Random) -> Activations:
    """Random features, at most ``count``."""
    return dict(rng.sample(list(pool.items()), min(count, len(pool))))


def select(experiment: Experiment, graphs: dict[str, Activations], rng: random.Random) -> Setting:
    """The setting that swaps set-aside training cities best; of equals the one tried first, so the weakest factor."""
    by_state: dict[str, list[str]] = defaultdict(list)
    for city in graphs:
        by_state[experiment.state_of[city]].append(city)
    aside = [city for cities in by_state.values() for city in rng.sample(cities, SET_ASIDE)]
    searched = {city: found for city, found in graphs.items() if city not in aside}
    swaps = experiment.draw_swaps(aside, list(searched), TARGETS_EACH, rng)
    print(f"choosing a setting by {len(swaps)} swaps of {len(aside)} training cities set aside:")
    print(
        f"{'own cities':>10}  {'others':>6}  {'swapped':<11}  " + "".join(f"{f'× {factor:g}':>8}" for factor in FACTORS)
    )
    best, best_share = None, -1.0
    for own, other, where in itertools.product(OWN_SHARES, OTHER_SHARES, POSITIONS):
        supernodes = state_supernodes(searched, experiment.state_of, own, other)
        shares = []
        for factor in FACTORS:
            setting = Setting(own, other, where, factor)
            shares.append(experiment.run(swaps, of_the_state(supernodes, setting), factor).new)
            if shares[-1] > best_share:
                best, best_share = setting, shares[-1]
        print(f"{f'≥ {own:.0%}':>10}  {f'≤ {other:.0%}':>6}  {where:<11}  " + "".join(f"{s:>8.0%}" for s in shares))
    assert best is not None
    print(
        f"chosen: ≥ {best.own_share:.0%}, ≤ {best.other_share:.0%}, {best.where}, × {best.factor:g} ({best_share:.0%})"
    )
    return best


def swap_dallas(experiment: Experiment, supernodes: dict[str, Activations], setting: Setting) -> BeforeAfter:
    """Texas out, California in: the answer becomes Sacramento."""
    labels = experiment.model.transcoders.labels
    swap = Swap("Dallas", "Texas", "California", "")
    away, put = of_the_state(supernodes, setting)(swap, experiment.active("Dallas"))
    for name, places in (("Texas out", away), ("California in", put)):
        print(f"{name}:", ", ".join(f"{labels.get((p.layer, p.feature), '?')} ({p})" for p in places))
    california = before_and_after(
        experiment.model, PROMPT.format(city="Dallas"), replace(away, put, setting.factor), top=6
    )
    show_before_after(california, Console())
    return california


def swap_dallas_for_all(
    experiment: Experiment, supernodes: dict[str, Activations], setting: Setting
) -> dict[str, tuple[float, bool]]:
    """Texas out and each other state in: for each its capital's probability, and whether that is the answer."""
    choose, local = of_the_state(supernodes, setting), experiment.local("Dallas")
    states = [state for state in sorted(supernodes) if state != "Texas"]
    runs = []
    for state in states:
        away, put = choose(Swap("Dallas", "Texas", state, ""), experiment.active("Dallas"))
        runs.append((local, replace(away, put, setting.factor)))
    found = {}
    for state, outcome in zip(states, intervene_batch(experiment.model, runs), strict=True):
        token, logits = experiment.token[state], outcome.logits_v
        found[state] = (float(logits.softmax(-1)[token]), int(logits.argmax()) == token)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--targets", type=int, default=5, help="other states for each held-out city")
    parser.add_argument("-o", "--output", type=Path, help="plot: .svg, .png, .pdf")
    arguments = parser.parse_args()
    if arguments.output and not find_spec("matplotlib"):
        parser.error('plots need matplotlib: pip install "crosstrace[plot]"')

    experiment, rng = Experiment(), random.Random(SEED)
    training = [city for city in experiment.state_of if city not in experiment.held_out]
    graphs = {city: experiment.graph_features(city) for city in training}
    setting = select(experiment, graphs, rng)
    supernodes = state_supernodes(graphs, experiment.state_of, setting.own_share, setting.other_share)
    sizes = [len(setting.here(places)) for places in supernodes.values()]
    mean = sum(sizes) / len(sizes)
    print(
        f"\n{len(graphs)} training cities searched; {min(sizes)} to {max(sizes)} features a state, {mean:.1f} on average"
    )
    california = swap_dallas(experiment, supernodes, setting)
    dallas = swap_dallas_for_all(experiment, supernodes, setting)
    answered = [state for state, (_, right) in dallas.items() if right]
    print(f"Dallas' Texas swapped for each of {len(dallas)} states: {len(answered)} end in the new state's capital")

    unseen = sorted(city for city in experiment.state_of if city in experiment.held_out)
    tops = [int(experiment.local(city).logits().argmax()) for city in unseen]
    right = sum(top == experiment.token[experiment.state_of[city]] for top, city in zip(tops, unseen, strict=True))
    swaps = experiment.draw_swaps(unseen, training, arguments.targets, rng)
    print(f"unchanged, the model answers {right} of {len(unseen)} held-out cities; {len(swaps)} swaps of them:")
    choices = (
        of_the_state(supernodes, setting),
        at_random(graphs, supernodes, setting, rng),
        all_that_differ(graphs),
    )
    results = {}
    print(f"{'swapped':<22}{'new capital':>12}{'old capital':>13}{'neither':>9}")
    for kind, choose in zip(KINDS, choices, strict=True):
        results[kind] = result = experiment.run(swaps, choose, setting.factor)
        print(f"{kind:<22}{result.new:>12.1%}{result.old:>13.1%}{1 - result.new - result.old:>9.1%}")
    if arguments.output:
        plot(california, dallas, results, len(swaps), arguments.output)
        print(f"wrote {arguments.output}")


def plot(
    california: BeforeAfter, dallas: dict[str, tuple[float, bool]], results: dict[str, Result], n_swaps: int, path: Path
) -> None:
    """Texas → California, Dallas with each other state in Texas' place, the shares over all swaps."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.8), layout="constrained")
    one, each, all_swaps = figure.subplots(1, 3, width_ratios=(1, 2.4, 1))
    tokens = {change.string: change for change in (california.before[0], *california.after[:3])}
    rows = range(len(tokens))[::-1]
    for shift, label, color in ((0.2, "before", "tab:gray"), (-0.2, "after", "tab:blue")):
        values = [getattr(change, label) for change in tokens.values()]
        drawn = one.barh([row + shift for row in rows], values, 0.4, label=label, color=color)
        one.bar_label(drawn, [f"{value:.3f}" if value >= 0.0005 else "" for value in values], padding=2, fontsize=8)
    one.set_yticks(rows, tokens)
    one.set(xlim=(0, 1.3), xticks=(0, 0.5, 1), xlabel="probability")
    one.set_title("Texas → California at Dallas", fontsize=11)
    one.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2, fontsize=9)
    states = sorted(dallas, key=lambda state: -dallas[state][0])
    for right, label, color in ((True, "the answer", "tab:blue"), (False, "not the answer", "silver")):
        places = [i for i, state in enumerate(states) if dallas[state][1] == right]
        each.bar(places, [dallas[states[i]][0] for i in places], 0.8, label=label, color=color)
    each.set_xticks(range(len(states)), states, rotation=90, fontsize=8)
    each.set(xlim=(-0.7, len(states) - 0.3), ylim=(0, 1), ylabel="probability of its capital")
    each.set_title("The same with each other state", fontsize=11)
    if not all(right for _, right in dallas.values()):
        each.legend(frameon=False, title="its capital is", loc="upper right")
    kinds = list(results)[::-1]
    parts = (
        ("the new state's capital", [results[kind].new for kind in kinds], "tab:blue"),
        ("the old state's capital", [results[kind].old for kind in kinds], "tab:gray"),
        ("neither", [1 - results[kind].new - results[kind].old for kind in kinds], "whitesmoke"),
    )
    left = [0.0] * len(kinds)
    for label, shares, color in parts:
        drawn = all_swaps.barh(kinds, shares, 0.6, left=left, label=label, color=color, edgecolor="white")
        dark = color != "whitesmoke"
        texts = [f"{share:.0%}" if share >= 0.04 else "" for share in shares]
        all_swaps.bar_label(drawn, texts, label_type="center", color="white" if dark else "black")
        left = [start + share for start, share in zip(left, shares, strict=True)]
    all_swaps.set(xlabel="share of swaps", xlim=(0, 1))
    all_swaps.set_title(f"{n_swaps} swaps of held-out cities", fontsize=11)
    all_swaps.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=1, fontsize=9)
    for axes in (one, each, all_swaps):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150)
    write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    main()
