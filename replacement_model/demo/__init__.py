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
from typing import Any

DEMO_DIR = Path(__file__).resolve().parent
FACTS_FILE = DEMO_DIR / "facts.json"
MODEL_DIR = DEMO_DIR / "model"
TRANSCODERS_DIR = DEMO_DIR / "clt" / "width_3k_l0_small"
LABELS_FILE = TRANSCODERS_DIR / "labels.json"
CARDS_FILE = TRANSCODERS_DIR / "cards.safetensors"
# SAEs of the residual stream after some layers: the path that names their family.
SAES_DIR = DEMO_DIR / "resid_post_all" / "width_512_l0_8"
# What graphs and cards of the demo name as their model and transcoders, wherever it is installed.
MODEL_NAME = "crosstrace-demo"
TRANSCODERS_NAME = "crosstrace-demo-clt"
SAES_NAME = "crosstrace-demo-sae"

# Dallas is in no two-step sentence of the training text: the model has to take both steps by itself.
DALLAS_PROMPT = "The capital of the state containing Dallas is"
DALLAS_ANSWER = " Austin"


@dataclass(frozen=True)
class State:
    """A US state, with cities other than its capital."""

    name: str
    abbreviation: str
    capital: str
    cities: tuple[str, ...]


@dataclass(frozen=True)
class Country:
    """A country, with cities other than its capital."""

    name: str
    capital: str
    language: str
    continent: str
    cities: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What the demo's model knows."""

    states: tuple[State, ...]
    countries: tuple[Country, ...]

    @property
    def places(self) -> tuple[State | Country, ...]:
        """The states, then the countries."""
        return (*self.states, *self.countries)

    def entities(self) -> list[str]:
        """Return every name that is a single token, each once, in the order of the file."""
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
    """Read the facts of `facts.json`."""
    raw = json.loads(FACTS_FILE.read_text(encoding="utf-8"))
    return Facts(
        states=tuple(State(**{**row, "cities": tuple(row["cities"])}) for row in raw["states"]),
        countries=tuple(Country(**{**row, "cities": tuple(row["cities"])}) for row in raw["countries"]),
    )


@lru_cache
def load_labels() -> list[dict[int, dict[str, Any]]]:
    """Read what `labels.json` says about each feature.

    Returns:
        One dictionary per layer, from the feature to its `label`, `fires_on` and `promotes`.
    """
    raw = json.loads(LABELS_FILE.read_text(encoding="utf-8"))
    return [{int(index): entry for index, entry in layer.items()} for layer in raw["layers"]]
