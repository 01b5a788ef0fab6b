"""Sets of labels by (layer, feature): `labels.json`, Neuronpedia's explanation exports, and what two sets do not agree on.

An entry of `labels.json` needs `label`. What a program made has `source`; what was tested has `score` and the parts of it. A
label without a source is a person's: nothing here overwrites it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from crosstrace.graphs.files import write_atomically
from crosstrace.replacement_model.dictionaries.base import shown_label

FORMAT = "crosstrace-labels/1"
Key = tuple[int, int]
"""(layer, feature)."""
_SCORES = ("score", "detection", "fuzzing", "shuffled")
_LINES = (".jsonl", ".jsonl.gz")
_LONGEST_REASON = 200


@dataclass(frozen=True)
class Label:
    """What a feature is called.

    Attributes:
        text: The label.
        source: Who made it: the name of a model, `automatic`, `neuronpedia: …`; "" for a person.
        score: How well it tells contexts in which the feature fires from others, 0.5 by chance to 1; None if not tested.
        detection: The part of it for whole contexts; see `scoring.py`.
        fuzzing: The part of it for marked tokens.
        shuffled: The score of another feature's label on the same contexts.
        scorer: What tested it: the name of a model, or `literal`.
    """

    text: str
    source: str = ""
    score: float | None = None
    detection: float | None = None
    fuzzing: float | None = None
    shuffled: float | None = None
    scorer: str = ""

    @property
    def shown(self) -> str:
        """How tables, graphs and pages show it, such as `~ Texas 0.93`."""
        return shown_label(self.entry)

    @property
    def entry(self) -> dict[str, Any]:
        """The entry in `labels.json`."""
        entry: dict[str, Any] = {"label": self.text}
        for name in ("source", "scorer"):
            if getattr(self, name):
                entry[name] = getattr(self, name)
        for name in _SCORES:
            if getattr(self, name) is not None:
                entry[name] = round(getattr(self, name), 4)
        return entry

    @staticmethod
    def of(entry: Mapping[str, Any]) -> Label:
        """Read an entry.

        Raises:
            ValueError: It is not one.
        """
        text = entry.get("label") if isinstance(entry, Mapping) else None
        if not isinstance(text, str):
            raise ValueError(f"an entry has no text as its label: {entry!r}")
        scores = {name: entry.get(name) for name in _SCORES}
        if wrong := [name for name, score in scores.items() if not isinstance(score, int | float | None)]:
            raise ValueError(f"{wrong[0]} is {scores[wrong[0]]!r}; expected a number")
        return Label(text, str(entry.get("source", "")), **scores, scorer=str(entry.get("scorer", "")))


def read_label_set(path: str | os.PathLike[str]) -> dict[Key, Label]:
    """Read labels by (layer, feature).

    Args:
        path: A `labels.json`, or an export of Neuronpedia's explanations: a file with one object a line (`.jsonl`,
            `.jsonl.gz`) or with an array of them (`.json`), each with `layer` (a number, or a name that begins with one),
            `index` and `description`. Or a folder that holds a `labels.json`, or such files, as their batches are when they
            are fetched: of a folder with other data beside them, those in folders named `explanations`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is neither; one line that names the file and the line.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "labels.json").is_file():
            return _labels_of(chain.from_iterable(map(_lines, _batches_in(path))))
        path /= "labels.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.name.endswith(_LINES):
        return _labels_of(_lines(path))
    try:
        content = _json(path)
    except ValueError as problem:
        raise _not_labels(path, problem) from None
    if isinstance(content, list) and content:
        return _labels_of((f"{path}, entry {number}", row) for number, row in enumerate(content, 1))
    return _own_labels(path, content)


def write_label_set(path: str | os.PathLike[str], labels: Mapping[Key, Label], n_layers: int = 0) -> int:
    """Write labels into a `labels.json`; what else the file holds stays, and so do labels that a person gave.

    Args:
        path: The file; made if it does not exist.
        labels: By (layer, feature).
        n_layers: The number of layers; more if the labels or the file have more.

    Returns:
        How many labels were left out because a person's stands there.

    Raises:
        OSError: The file cannot be read or written.
        ValueError: The file that exists is not a label file.
    """
    path = Path(path)
    content: dict[str, Any] = {"format": FORMAT, "layers": []}
    if path.exists():
        content = _json_of_labels(path)
    layers = content["layers"]
    layers += [{} for _ in range(max([n_layers, *(layer + 1 for layer, _ in labels)]) - len(layers))]
    kept = 0
    for (layer, feature), label in sorted(labels.items()):
        there = layers[layer].get(str(feature))
        if there is not None and not there.get("source") and (label.source or label.text != there["label"]):
            kept += 1
            continue
        others = {name: value for name, value in (there or {}).items() if name not in ("source", "scorer", *_SCORES)}
        layers[layer][str(feature)] = {**others, **label.entry}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair, which tokens can hold, has no UTF-8.
    write_atomically(path, re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text).encode())
    return kept


@dataclass(frozen=True)
class LabelDifference:
    """A feature that two sets do not call the same.

    Attributes:
        feature: (layer, feature).
        first: Its label in the first set; None if it has none there.
        second: Its label in the second.
    """

    feature: Key
    first: Label | None
    second: Label | None


def label_differences(first: Mapping[Key, Label], second: Mapping[Key, Label]) -> list[LabelDifference]:
    """Return what two sets do not call the same, by feature; case and blanks do not count.

    Example:
        >>> label_differences({(0, 1): Label("Texas")}, {(0, 1): Label("texas ")})
        []
    """
    differences = []
    for key in sorted({*first, *second}):
        one, other = first.get(key), second.get(key)
        if one is None or other is None or _folded(one.text) != _folded(other.text):
            differences.append(LabelDifference(key, one, other))
    return differences


def _folded(text: str) -> str:
    return " ".join(text.removeprefix("~").split()).casefold()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))


def _json_of_labels(path: Path) -> dict[str, Any]:
    """The content of a `labels.json` whose every label can be read."""
    try:
        content = _json(path)
    except ValueError as problem:
        raise _not_labels(path, problem) from None
    _own_labels(path, content)
    return dict(content)


def _own_labels(path: Path, content: Any) -> dict[Key, Label]:
    try:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format') if isinstance(content, dict) else content!r}")
        return {
            (layer, int(feature)): Label.of(entry)
            for layer, entries in enumerate(content["layers"])
            for feature, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise _not_labels(path, problem) from None


def _not_labels(path: Path, problem: Exception) -> ValueError:
    reason = " ".join(str(problem).split())[:_LONGEST_REASON]
    return ValueError(f"{path}: not a label file (expected format {FORMAT}, or Neuronpedia's explanations): {reason}")


def _batches_in(folder: Path) -> list[Path]:
    """The files of an export below a folder, by name, numbers in their order."""
    files = [path for path in folder.rglob("*.jsonl*") if path.name.endswith(_LINES)]
    named = [path for path in files if "explanations" in path.relative_to(folder).parts[:-1]]
    if not files:
        raise FileNotFoundError(f"{folder}: neither labels.json nor files of explanations ({', '.join(_LINES)}) in it")
    return sorted(named or files, key=_with_numbers)


def _with_numbers(path: Path) -> list[str | int]:
    """A path cut at its numbers: texts and numbers in turns, so that batch 9 comes before batch 10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", path.as_posix()))]


def _labels_of(rows: Iterable[tuple[str, Any]]) -> dict[Key, Label]:
    """The labels of an export: of several for a feature, the first that is not empty.

    Args:
        rows: Each with the words that say where it is.
    """
    labels: dict[Key, Label] = {}
    for place, row in rows:
        try:
            key = _key_of(row)
            text = row["description"]
            if not isinstance(text, str):
                raise ValueError(f"description is {text!r}; expected a text")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise _no_explanation(place, problem) from None
        if text.strip() and key not in labels:
            maker = row.get("explanationModelName")
            # Its scores are of other tests, and are not shown as if they were ours.
            labels[key] = Label(" ".join(text.split()), f"neuronpedia: {maker}" if maker else "neuronpedia")
    return labels


def _no_explanation(place: str, problem: Exception) -> ValueError:
    said = f"{problem.args[0]!r} is missing" if isinstance(problem, KeyError) else str(problem)
    return ValueError(f"{place}: not an explanation of Neuronpedia: {said}")


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The objects of a file that has one on each line."""
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(_texts(lines, path), 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as problem:
                raise _no_explanation(place, problem) from None
            yield place, row


def _texts(lines: Any, path: Path) -> Iterator[str]:
    try:
        yield from lines
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as problem:
        raise ValueError(f"{path}: damaged: {problem}") from None


def _key_of(row: Mapping[str, Any]) -> Key:
    layer, index = row["layer"], int(row["index"])
    if isinstance(layer, str):
        number = re.match(r"\d+", layer)
        if number is None:
            raise ValueError(f"layer {layer!r} does not begin with a number")
        layer = int(number[0])
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 or index < 0:
        raise ValueError(f"layer {layer!r} and index {index} are not those of a feature")
    return layer, index
