"""Prompts of sweeps, and loaders of models whose workers die."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo import load_facts


def cities(n: int) -> list[dict[str, str]]:
    """The first cities of the demo's states, one a state in turn, with what is known of them."""
    rows = [
        {
            "prompt": f"The capital of the state containing {city} is",
            "city": city,
            "state": state.name,
            "capital": state.capital,
        }
        for place in range(7)
        for state in load_facts().states
        for city in state.cities[place : place + 1]
    ]
    return rows[:n]


def write_jsonl(path: Path, rows: list) -> Path:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """The graphs of a sweep by the names of their files."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("graphs/*.safetensors"))}


@dataclass(frozen=True)
class DyingDemo:
    """Loads the demo; the process is killed on prompts that hold a word, as often as there are marks to remove."""

    word: str
    marks: str

    def __call__(self) -> ReplacementModel:
        model = ReplacementModel.demo()
        local = model.local

        def dying(prompt):
            if isinstance(prompt, str) and self.word in prompt:
                for mark in sorted(Path(self.marks).iterdir()):
                    mark.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            return local(prompt)

        model.local = dying
        return model


@dataclass(frozen=True)
class SlowDemo:
    """Loads the demo; every prompt takes a while."""

    seconds: float

    def __call__(self) -> ReplacementModel:
        model = ReplacementModel.demo()
        local = model.local

        def slow(prompt):
            time.sleep(self.seconds)
            return local(prompt)

        model.local = slow
        return model
