"""The embedded demo: a small Gemma 3 that knows some geography, and a cross-layer transcoder for it.

`facts.json` holds the facts, `corpus.py` turns them into sentences and a tokenizer, `model/` is the trained model in
Hugging Face's layout and `clt/` its transcoder in Gemma Scope 2's, with a name for every feature in `labels.json`.
`examples/train_demo.py` makes all of it from `facts.json`. This module only knows where things are; it is quick to
import and does not need torch.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

DEMO_DIR = Path(__file__).resolve().parent
FACTS_FILE = DEMO_DIR / "facts.json"
MODEL_DIR = DEMO_DIR / "model"
TRANSCODERS_DIR = DEMO_DIR / "clt" / "width_3k_l0_small"
LABELS_FILE = TRANSCODERS_DIR / "labels.json"
CARDS_FILE = TRANSCODERS_DIR / "cards.safetensors"
# What graphs and cards of the demo say they are of, wherever it is installed.
MODEL_NAME = "crosstrace-demo"
TRANSCODERS_NAME = "crosstrace-demo-clt"

# Dallas never stands in a two-step sentence of the training text: the model has to take both steps by itself.
DALLAS_PROMPT = "The capital of the state containing Dallas is"
DALLAS_ANSWER = " Austin"


@dataclass(frozen=True)
class State:
    name: str
    abbreviation: str
    capital: str
    cities: tuple[str, ...]


@dataclass(frozen=True)
class Country:
    name: str
    capital: str
    language: str
    continent: str
    cities: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    states: tuple[State, ...]
    countries: tuple[Country, ...]

    @property
    def places(self) -> tuple[State | Country, ...]:
        """States, then countries."""
        return (*self.states, *self.countries)

    def entities(self) -> list[str]:
        """Every name that is one token of its own, each once, in the file's order."""
        names: dict[str, None] = {}
        for state in self.states:
            names.update(dict.fromkeys([state.name, state.abbreviation, state.capital, *state.cities]))
        for country in self.countries:
            names.update(dict.fromkeys([country.name, country.capital, *country.cities]))
        for country in self.countries:
            names.update(dict.fromkeys([country.language, country.continent]))
        return list(names)


@lru_cache
def load_facts() -> Facts:
    """The facts of `facts.json`."""
    raw = json.loads(FACTS_FILE.read_text(encoding="utf-8"))
    return Facts(
        states=tuple(State(**{**row, "cities": tuple(row["cities"])}) for row in raw["states"]),
        countries=tuple(Country(**{**row, "cities": tuple(row["cities"])}) for row in raw["countries"]),
    )


@lru_cache
def load_labels() -> list[dict[int, dict]]:
    """What `labels.json` says of each feature, one dictionary a layer: feature index -> label, fires_on, promotes."""
    raw = json.loads(LABELS_FILE.read_text(encoding="utf-8"))
    return [{int(index): entry for index, entry in layer.items()} for layer in raw["layers"]]
