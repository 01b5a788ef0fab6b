"""Prompts to sweep: `python examples/sweep_prompts.py FOLDER` writes three files.

- `cities.jsonl`: the capital of the state of every city that the demo knows, a question of two steps.
- `families.jsonl`: four families of questions that the demo answers, two of one step and two of two, as many of each.
- `acronyms.jsonl`: 48 made-up bodies whose acronym is begun, such as "The National Digital Analytics Group (ND": Gemma 3 270M
  completes most of them.

Keys beside `prompt` are metadata: `crosstrace aggregate` finds features and answers that are named after them.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

from crosstrace.replacement_model.demo import load_facts

_EACH = 48
_WORDS = (
    "National International Global American European Federal Central Western Northern Southern Eastern Pacific Royal United "
    "Universal",
    "Digital Medical Nuclear Economic Biological Historical Financial Technical Cultural Agricultural Industrial Maritime "
    "Political Religious Scientific",
    "Analytics Research Energy Science Policy Heritage Safety Training Language Trade Development Transport Information "
    "Education Health",
    "Group Institute Agency Council Board Union Network Foundation Office Laboratory Society Centre",
)


def cities() -> list[dict[str, str]]:
    """Every city with its state and its capital."""
    return [
        {
            "prompt": f"The capital of the state containing {city} is",
            "city": city,
            "state": state.name,
            "capital": state.capital,
        }
        for state in load_facts().states
        for city in state.cities
    ]


def families() -> list[dict[str, str]]:
    """As many questions of each of four families: of one step and of two, about states and about countries."""
    facts, draw = load_facts(), random.Random(0)
    questions = [
        [("The capital of {place} is", state.name, state.name, state.capital) for state in facts.states],
        [
            ("The capital of the state containing {place} is", city, state.name, state.capital)
            for state in facts.states
            for city in state.cities
        ],
        [("The capital of {place} is", country.name, country.name, country.capital) for country in facts.countries],
        [
            ("The capital of the country containing {place} is", city, country.name, country.capital)
            for country in facts.countries
            for city in country.cities
        ],
    ]
    rows = []
    for i, family in enumerate(questions):
        for pattern, place, region, capital in draw.sample(family, _EACH):
            family_name = f"{('state', 'country')[i // 2]}, {('one step', 'two steps')[i % 2]}"
            known = {"region": region, "capital": capital, **({"city": place} if i % 2 else {})}
            rows.append({"prompt": pattern.format(place=place), "family": family_name, **known})
    return rows


def acronyms() -> list[dict[str, str]]:
    """Bodies of four words, with the first two letters of their acronym."""
    draw = random.Random(0)
    columns = [words.split() for words in _WORDS]
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < _EACH:
        first, second, third, fourth = (draw.choice(words) for words in columns)
        begun = first[0] + second[0]
        prompt = f"The {first} {second} {third} {fourth} ({begun}"
        words = {"first": first, "second": second, "third": third, "fourth": fourth}
        rows[prompt] = {"prompt": prompt, **words, "begun": begun, "answer": third[0] + fourth[0]}
    return list(rows.values())


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("cities", cities()), ("families", families()), ("acronyms", acronyms())):
        write(folder / f"{name}.jsonl", rows)
