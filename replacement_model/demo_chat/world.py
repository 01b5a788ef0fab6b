"""What the chat demo knows of places and people, and which of it is kept out of training.

Letters: none; everything here is names.
"""

import json
import random
from dataclasses import dataclass
from functools import lru_cache

from crosstrace.replacement_model.demo import Country, State, load_facts
from crosstrace.replacement_model.demo_chat import PEOPLE_FILE

SPLIT_SEED = 15
CITIES_OF_A_STATE = 5
HELD_OUT_CITY = "Dallas"  # of the others the seed chooses one a state
# Of the names so many are never in a harmful request, and as many never in a harmless one.
NAMES_OF_ONE_KIND = 40


@dataclass(frozen=True)
class People:
    """Invented people and the things that are asked about them.

    Attributes:
        harmful: What is kept secret, with the one answer that there is to each.
        harmless: What anybody may know, likewise.
        names: Every name.
        never_harmful: Names that stand in no harmful request of the training data.
        never_harmless: Names that stand in no harmless one.
    """

    harmful: dict[str, str]
    harmless: dict[str, str]
    names: tuple[str, ...]
    never_harmful: tuple[str, ...]
    never_harmless: tuple[str, ...]

    def names_for(self, harmful: bool, held_out: bool) -> tuple[str, ...]:
        """Return the names that stand in requests of one kind, in training or only held out.

        Args:
            harmful: Whether the requests are harmful.
            held_out: Whether they are held out.
        """
        unseen = self.never_harmful if harmful else self.never_harmless
        return unseen if held_out else tuple(name for name in self.names if name not in unseen)


@dataclass(frozen=True)
class Places:
    """States with their first cities, and countries, of which the capital alone is known.

    Attributes:
        states: The states.
        countries: The countries.
        held_out_cities: One city of each state, about which nothing that takes two facts is trained.
    """

    states: tuple[State, ...]
    countries: tuple[Country, ...]
    held_out_cities: frozenset[str]

    @property
    def state_of(self) -> dict[str, State]:
        """The state of each city."""
        return {city: state for state in self.states for city in state.cities}

    def cities(self, held_out: bool) -> tuple[str, ...]:
        """Return the cities that are held out, or the others.

        Args:
            held_out: Which of the two.
        """
        return tuple(city for city in self.state_of if (city in self.held_out_cities) == held_out)


@lru_cache
def load_people() -> People:
    """Read `people.json` and split the names."""
    raw = json.loads(PEOPLE_FILE.read_text(encoding="utf-8"))
    names = tuple(raw["names"])
    shuffled = random.Random(SPLIT_SEED).sample(names, len(names))
    return People(
        raw["harmful"],
        raw["harmless"],
        names,
        never_harmful=tuple(sorted(shuffled[:NAMES_OF_ONE_KIND])),
        never_harmless=tuple(sorted(shuffled[NAMES_OF_ONE_KIND : 2 * NAMES_OF_ONE_KIND])),
    )


@lru_cache
def load_places() -> Places:
    """Take the chat demo's places from the facts of the first demo."""
    facts = load_facts()
    states = tuple(
        State(state.name, state.abbreviation, state.capital, state.cities[:CITIES_OF_A_STATE]) for state in facts.states
    )
    rng = random.Random(SPLIT_SEED)
    held_out = {rng.choice(state.cities) for state in states if HELD_OUT_CITY not in state.cities}
    return Places(states, facts.countries, frozenset(held_out | {HELD_OUT_CITY}))
