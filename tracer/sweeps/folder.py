"""The folder of a sweep: a graph file a prompt, a manifest a shard, tables.

    FOLDER/manifest.json                  settings, weights, and every prompt with its state (`manifest-2-of-3.json`: a shard)
    FOLDER/graphs/000001.safetensors      the graph of the first prompt of the file, whatever the shard
    FOLDER/graphs.parquet, nodes.parquet, edges.parquet

A graph file is written whole or not at all, so that it is there says that its prompt is done: whatever kills a sweep, it
loses the prompts in flight alone. The manifest is written whole every few seconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosstrace.graphs.files import write_atomically
from crosstrace.tracer.sweeps.prompts import SweepPrompt

FORMAT, VERSION = "crosstrace-sweep", 1
WAITING, DONE, FAILED = "waiting", "done", "failed"
TABLES = ("graphs", "nodes", "edges")
_OPTIONS = {"targets": "target", "shards": "shard i/n of n ="}
_SECONDS = 5.0
_WEIGHTS, _PROMPTS = "weights", "prompts"


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt.

    Attributes:
        number: Of the prompt, from 1.
        error: Why it failed, in one line; "" if its graph is written.
        notes: What is probably not meant in it.
        seconds: How long it took.
    """

    number: int
    error: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Shard:
    """Every n-th prompt of a file.

    Attributes:
        number: Which one, from 1.
        of: n.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(f"shard {self.number}/{self.of}: expected i/n with i from 1 to n")

    @staticmethod
    def parse(text: str) -> Shard:
        """Read `2/3`.

        Raises:
            ValueError: It is not a shard.
        """
        number, slash, of = text.partition("/")
        if not slash or not number.strip().isdecimal() or not of.strip().isdecimal():
            raise ValueError(f"shard {text!r}: expected i/n, such as 2/3")
        return Shard(int(number), int(of))

    @property
    def suffix(self) -> str:
        """What its files end in: "" where there are no others."""
        return "" if self.of == 1 else f"-{self.number}-of-{self.of}"

    def numbers(self, n_prompts: int) -> range:
        """Return the numbers of its prompts, from 1."""
        return range(self.number, n_prompts + 1, self.of)


def graph_path(folder: Path, number: int) -> Path:
    """Return the file of a prompt's graph."""
    return folder / "graphs" / f"{number:06d}.safetensors"


def part_path(folder: Path, number: int, table: str) -> Path:
    """Return the file that holds a prompt's rows of a table until the table is written."""
    return folder / "graphs" / f"{number:06d}.{table}.parquet"


def table_path(folder: Path, table: str, shard: Shard) -> Path:
    """Return the file of a table."""
    return folder / f"{table}{shard.suffix}.parquet"


class Manifest:
    """What a shard of a sweep is about, and how far it is.

    Attributes:
        path: Its file.
        settings: By name, with the fingerprints of the weights.
        prompts: Every prompt of the shard: number, place, what is traced, metadata, state, error, notes, seconds.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], prompts: Sequence[dict[str, Any]]) -> None:
        self.path, self.settings, self.prompts = path, dict(settings), list(prompts)
        self._rows = {row["number"]: row for row in self.prompts}
        self._written, self._took = time.monotonic(), 0.0

    @staticmethod
    def read(path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not one, or is of a newer version.
        """
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["format"] != FORMAT:
                raise ValueError
            if kept["version"] > VERSION:
                raise ValueError(f"{path}: written by a newer crosstrace")
            return Manifest(path, kept["settings"], kept["prompts"])
        except (ValueError, TypeError, KeyError) as problem:
            if "newer" in str(problem):
                raise
            raise ValueError(f"{path}: not the manifest of a sweep") from None

    @property
    def waiting(self) -> list[int]:
        """The numbers of the prompts that have no graph, failed ones included."""
        return [row["number"] for row in self.prompts if row["state"] != DONE]

    @property
    def done(self) -> list[int]:
        """The numbers of the prompts that have a graph."""
        return [row["number"] for row in self.prompts if row["state"] == DONE]

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The prompts that failed."""
        return [row for row in self.prompts if row["state"] == FAILED]

    @property
    def noted(self) -> list[dict[str, Any]]:
        """The prompts in which something is probably not meant."""
        return [row for row in self.prompts if row.get("notes")]

    def row(self, number: int) -> dict[str, Any]:
        """Return what is kept of a prompt."""
        return self._rows[number]

    def record(self, outcome: Outcome) -> None:
        """Take down what became of a prompt; the file is written if the last time is a while ago."""
        row = self._rows[outcome.number]
        row["state"] = FAILED if outcome.error else DONE
        row["error"] = outcome.error or None
        row["notes"] = list(outcome.notes)
        row["seconds"] = round(outcome.seconds, 3)
        if time.monotonic() - self._written > max(_SECONDS, 20 * self._took):
            self.write()

    def write(self) -> None:
        """Write the file.

        Raises:
            OSError: It cannot be written; the file is as it was.
        """
        began = time.monotonic()
        content = {"format": FORMAT, "version": VERSION, "settings": self.settings, "prompts": self.prompts}
        write_atomically(self.path, json.dumps(content, indent=1).encode())
        self._written = time.monotonic()
        self._took = self._written - began


def open_manifest(
    folder: Path, shard: Shard, settings: Mapping[str, Any], prompts: Sequence[SweepPrompt], resume: bool
) -> Manifest:
    """Begin a shard of a sweep, or continue it.

    Args:
        folder: The folder.
        shard: Which prompts.
        settings: By name, with `weights`: what graphs depend on.
        prompts: All prompts of the file.
        resume: Continue what is there, if anything is.

    Raises:
        ValueError: There is a sweep already and it is not to be continued, or it is of other settings, weights or prompts;
            one line that names what is different.
        OSError: A file cannot be read or written.
    """
    path = folder / f"manifest{shard.suffix}.json"
    everything = json.dumps([prompt.as_dict() for prompt in prompts], sort_keys=True)
    settings = {**settings, "shards": shard.of, _PROMPTS: hashlib.sha256(everything.encode()).hexdigest()[:16]}
    fresh = [
        {"number": number, **prompts[number - 1].as_dict(), "state": WAITING, "error": None}
        for number in shard.numbers(len(prompts))
    ]
    manifest = Manifest(path, settings, json.loads(json.dumps(fresh)))
    if path.is_file() and not resume:
        raise ValueError(f"{folder} holds a sweep already; --resume finishes it")
    for other in sorted(folder.glob("manifest*.json")):
        known = Manifest.read(other)
        _check_settings(folder, known.settings, manifest.settings)
        if other == path:
            _check_prompts(folder, known, manifest)
            for row in manifest.prompts:
                row |= {key: value for key, value in known.row(row["number"]).items() if key not in ("state", "error")}
        elif known.settings.get(_PROMPTS) != manifest.settings[_PROMPTS]:
            raise ValueError(f"{folder} is a sweep of other prompts: {other.name} is of another file")
    for row in manifest.prompts:
        if graph_path(folder, row["number"]).is_file():
            row["state"] = DONE
    return manifest


def sweep_graphs(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield the graphs of a sweep by prompt: name, file, and what the manifest keeps of the prompt; all shards together.

    Raises:
        OSError: The folder has no manifest, or one cannot be read.
        ValueError: A manifest is not one, or shards are of different sweeps.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}")
    manifests = [Manifest.read(path) for path in sorted(folder.glob("manifest*.json"))]
    if not manifests:
        raise FileNotFoundError(f"{folder}: not the folder of a sweep (no manifest.json)")
    for manifest in manifests[1:]:
        _check_settings(folder, manifests[0].settings, manifest.settings)
    rows = {row["number"]: row for manifest in manifests for row in manifest.prompts}
    for number, row in sorted(rows.items()):
        path = graph_path(folder, number)
        if path.is_file():
            yield path.stem, path, row


def _check_settings(folder: Path, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in json.loads(json.dumps(dict(given))).items():
        old = known.get(name)
        if name == _WEIGHTS and isinstance(old, dict):
            different = [part for part in value if part in old and old[part] != value[part]]
            parts = dict.fromkeys(part.partition("/")[0].replace("exact", "dtype of the weights") for part in different)
            if different:
                named = [part for part in parts if part in ("model", "transcoders")] or [*parts]
                raise ValueError(f"{folder} is a sweep with other weights: the {' and the '.join(named)} changed")
        elif old != value and name != _PROMPTS:
            option = "--" + _OPTIONS.get(name, name).replace("_", "-")
            raise ValueError(f"{folder} is a sweep with {option} {_said(old)}; this one has {_said(value)}")


def _check_prompts(folder: Path, known: Manifest, given: Manifest) -> None:
    if len(known.prompts) != len(given.prompts):
        raise ValueError(f"{folder} is a sweep of {len(known.prompts):,} prompts; there are {len(given.prompts):,} now")
    for old, new in zip(known.prompts, given.prompts, strict=True):
        for key in ("number", "prompt", "messages", "targets", "metadata"):
            if old.get(key) != new.get(key):
                raise ValueError(f"{folder} is a sweep of other prompts: {new['place']} has changed ({key})")


def _said(value: Any) -> str:
    return "none" if value is None or value == [] else str(value).lower() if isinstance(value, bool) else str(value)
