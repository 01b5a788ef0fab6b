"""The prompts of a sweep, from `.txt` (a prompt a line), `.jsonl` (an object a line) or `.parquet` (a row each).

Of an object or a row, `prompt` (a text) or `messages` (a conversation) is what is traced, and `targets`, where it is
there, what to explain. All other keys are metadata: they go along to the tables and to `crosstrace aggregate`. What is not
a prompt is one that fails: it costs the sweep nothing but its own graph.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.conversations import Message, check_messages, plain_conversation
from crosstrace.replacement_model.prompts import Prompt
from crosstrace.replacement_model.texts import SUFFIXES, pyarrow_for
from crosstrace.tracer.chat.passes import with_generated_answer

_KEYS = ("prompt", "messages", "targets")


@dataclass(frozen=True)
class SweepPrompt:
    """One prompt of a sweep.

    Attributes:
        place: Where it stands, for messages: the file, and its line or row.
        prompt: A text; None for a conversation.
        messages: A conversation; None for a text.
        targets: What to explain, in place of the sweep's own targets; none for those.
        metadata: What else is known of it, by key; JSON-able.
        problem: Why it is no prompt; "" if it is one.
    """

    place: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    targets: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def length(self) -> int:
        """Its length in characters: long prompts are traced first."""
        return len(self.prompt or "") + sum(len(message["content"]) for message in self.messages or ())

    def of(self, model: ReplacementModel, generate: int = 0) -> Prompt:
        """Return the prompt for a model.

        Args:
            model: The model.
            generate: The most tokens of an answer that the model gives first; 0 for none.

        Raises:
            ValueError: It is not a prompt, or the model cannot read it.
        """
        if self.problem:
            raise ValueError(self.problem)
        if self.messages is not None:
            conversation = model.conversation(self.messages)
        else:
            assert self.prompt is not None
            if not generate:
                return self.prompt
            ids = model.tokenize(self.prompt).tolist()
            conversation = plain_conversation(ids, None, model.tokenizer, model.name, model.description.max_positions)
        return with_generated_answer(model, conversation, generate) if generate else conversation

    def as_dict(self) -> dict[str, Any]:
        """Return it as a manifest keeps it."""
        what: dict[str, Any] = {} if self.problem else {"prompt": self.prompt}
        if self.messages is not None:
            what = {"messages": [dict(message) for message in self.messages]}
        if self.targets:
            what["targets"] = list(self.targets)
        return {"place": self.place, **what, "metadata": dict(self.metadata)}


def read_prompts(path: str | Path) -> list[SweepPrompt]:
    """Read a file of prompts; blank lines are left out.

    Args:
        path: `.txt`, `.jsonl` or `.parquet`.

    Raises:
        OSError: It cannot be read.
        ValueError: It has another suffix or no prompts, or `.parquet` is read without pyarrow. What single lines have wrong
            is their own `problem`.

    Example:
        >>> read_prompts("cities.jsonl")[0].metadata["state"]
        'Texas'
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        found = f"not {suffix}" if suffix else "and this file has no suffix"
        raise ValueError(f"{file}: prompts are read from {', '.join(SUFFIXES)}, {found}")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: {'is a folder' if file.is_dir() else 'no such file'}")
    prompts = list(_rows(file) if suffix == ".parquet" else _lines(file, suffix == ".jsonl"))
    if not prompts:
        raise ValueError(f"{file}: has no prompts")
    return prompts


def _lines(file: Path, is_json: bool) -> Iterator[SweepPrompt]:
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        place = f"{file.name}, line {number}"
        try:
            text = line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as problem:
            yield SweepPrompt(place, problem=f"{place}: not UTF-8 (byte {problem.start + 1} of the line)")
            continue
        if not text.strip():
            continue
        if not is_json:
            yield SweepPrompt(place, text)
            continue
        try:
            value = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as broken:
            yield SweepPrompt(place, problem=f"{place}: not JSON: {' '.join(str(broken).split())}")
            continue
        yield _prompt(place, value)


def _rows(file: Path) -> Iterator[SweepPrompt]:
    pyarrow = pyarrow_for(f"{file}: reading Parquet")
    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as problem:
        raise ValueError(f"{file}: not a whole Parquet file ({' '.join(str(problem).split())})") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield _prompt(f"{file.name}, row {number}", {key: _plain(value) for key, value in row.items()})


def _prompt(place: str, value: object) -> SweepPrompt:
    try:
        if not isinstance(value, dict):
            raise ValueError('expected an object with "prompt" or "messages"')
        given = {key: value[key] for key in _KEYS if value.get(key) is not None}
        if ("prompt" in given) == ("messages" in given):
            keys = ", ".join(map(repr, list(value)[:8])) or "none"
            raise ValueError(f'expected "prompt" or "messages", one of them (keys: {keys})')
        text = given.get("prompt")
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise ValueError('its "prompt" is empty' if isinstance(text, str) else 'its "prompt" is not text')
        messages = tuple(check_messages(given["messages"])) if "messages" in given else None
        targets = given.get("targets", [])
        targets = [targets] if isinstance(targets, str) else targets
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise ValueError('its "targets" are not a list of texts')
        metadata = {key: one for key, one in value.items() if key not in _KEYS}
        return SweepPrompt(place, text, messages, tuple(targets), metadata)
    except ValueError as problem:
        return SweepPrompt(place, problem=f"{place}: {problem}")


def _plain(value: object) -> object:
    """A value of a Parquet row as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not a number that JSON knows")
