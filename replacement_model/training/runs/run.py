"""A training run: a dictionary trained on a corpus, in stages, resumable at any moment.

The stages are training on activations of the base model, then, for transcoders, fine-tuning end to end. Either the tokens or
the clock decide how long a stage is.

What a resumed run promises: where the tokens decide, a run that was killed and resumed writes the same weights to the bit on
a CPU, given the same number of threads and the same versions, which `training.json` names. Where the clock decides, it goes
on from the same state with the time it had left at its last checkpoint, but how many steps fit into that depends on the
machine, as it does for two runs that are not interrupted.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.hooks import without_probabilities
from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.fingerprints import model_fingerprint
from crosstrace.replacement_model.memory import format_bytes, is_out_of_memory, parse_bytes, usable_bytes
from crosstrace.replacement_model.texts import Corpus, Texts, as_texts
from crosstrace.replacement_model.training.core import Trainer
from crosstrace.replacement_model.training.data.documents import Documents
from crosstrace.replacement_model.training.data.rows import WindowRows
from crosstrace.replacement_model.training.data.streams import ActivationStream, bytes_a_token
from crosstrace.replacement_model.training.data.team import Team
from crosstrace.replacement_model.training.end_to_end import fine_tune_step
from crosstrace.replacement_model.training.export import export
from crosstrace.replacement_model.training.parameters import DictionaryShape
from crosstrace.replacement_model.training.runs import checkpoint
from crosstrace.replacement_model.training.runs.curves import Curves
from crosstrace.replacement_model.training.runs.files import check_room
from crosstrace.replacement_model.training.runs.record import FILE, TrainingRecord, machine_now
from crosstrace.replacement_model.training.runs.watching import Progress, Watcher
from crosstrace.replacement_model.training.settings import TrainingSettings

TRAINING, END_TO_END = "training", "end to end"
# The share of a memory budget that a pass of the base model and a step may take beside weights, moments and buffer.
_WORK_SHARE = 0.2


class DivergedError(ValueError):
    """The loss is not a number any more."""


class TrainingInterrupted(KeyboardInterrupt):
    """The run was asked to stop; its text says how to continue."""


def train(
    base: BaseModel,
    corpus: Corpus | Texts | str | os.PathLike[str] | Sequence[str],
    folder: str | os.PathLike[str],
    settings: TrainingSettings,
    *,
    resume: bool = False,
    memory_budget: int | str | None = None,
    spill: str | os.PathLike[str] | None = None,
    watcher: Watcher | None = None,
) -> TrainingRecord:
    """Train a dictionary and write it, in Gemma Scope 2's layout, with `training.json` beside it.

    Args:
        base: The base model.
        corpus: A `Corpus`, the path of one file, or texts.
        folder: Where the dictionary goes; made if it is missing. During the run it holds the checkpoint.
        settings: What is trained, and how; see `load_recipe`.
        resume: Continue an interrupted run; one that has no checkpoint yet begins anew, a finished one is left as it is.
        memory_budget: Bytes, or text such as `"8GB"`, for weights, Adam's moments and the activation buffer; None: 80 % of
            what is free.
        spill: A folder for the activation buffer, which is then on disk rather than in memory.
        watcher: Hears what the run tells.

    Returns:
        The record, as `training.json` has it.

    Raises:
        ValueError: A setting does not fit the model, the corpus has nothing to train on, the folder holds another run, or
            the loss is not a number any more; the last good checkpoint is kept.
        OSError: Something cannot be read or written; the last checkpoint is kept.
        MemoryError: The budget is too small.
        TrainingInterrupted: The watcher asked for it; the state is kept.

    Example:
        >>> base = BaseModel.from_pretrained("demo")
        >>> record = train(base, texts, "my-clt", load_recipe("laptop", features=256, tokens=20_000))
        >>> record.finished
        True
    """
    if base.tokenizer is None:
        raise ValueError(f"model {base.name} has no tokenizer, so it cannot read a corpus")
    corpus = as_texts(corpus)
    team = Team.joined(base.device)
    watcher = watcher if watcher is not None and team.rank == 0 else Watcher()
    run = _Run(base, Documents(corpus, settings.held_out_share), Path(folder), settings, watcher, team)
    if run.open_together(resume, memory_budget):
        return run.record
    with without_probabilities(base.sites.text_model):
        try:
            run.train(None if spill is None else Path(spill))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise MemoryError(
                    f"not enough memory: give a smaller --memory-budget or fewer --features ({' '.join(str(error).split())})"
                ) from error
            raise
    return run.record


class _Run:
    """One run of `train`."""

    def __init__(
        self,
        base: BaseModel,
        documents: Documents,
        folder: Path,
        settings: TrainingSettings,
        watcher: Watcher,
        team: Team,
    ) -> None:
        self.team = team
        self.base, self.documents, self.folder, self.settings, self.watcher = base, documents, folder, settings, watcher
        self.shape = DictionaryShape.of(settings, base.description)
        self.where: dict[str, Any] = {"stage": TRAINING, "seconds": 0.0, "stage_began": 0.0, "tokens": 0, "steps": 0}
        self.state: dict[str, Tensor] | None = None
        self.record: TrainingRecord

    # Opening

    def open_together(self, resume: bool, memory_budget: int | str | None) -> bool:
        """Let process 0 open the folder, and tell the others what it found; return whether the run is finished."""
        found: Any = None
        if self.team.rank == 0:
            try:
                found = (self.open(resume, memory_budget), self.record, self.where, self.state is not None)
            except (ValueError, OSError, MemoryError) as problem:
                if self.team.size == 1:
                    raise
                found = problem
        found = self.team.told(found)
        if isinstance(found, Exception):
            raise found
        finished, record, where, continued = found
        if self.team.rank:
            self.record, self.where = record, where
            if continued:
                _, self.state = checkpoint.read_checkpoint(self.folder)
        return finished

    def open(self, resume: bool, memory_budget: int | str | None) -> bool:
        """Find out what the folder holds; return whether the run is finished already."""
        weight = self.base.sites.embedding.get_parameter("weight")
        model = {
            "name": self.base.name,
            "fingerprint": model_fingerprint(self.base.sites),
            "dtype": str(weight.dtype).removeprefix("torch."),
        }
        before = TrainingRecord.read(self.folder) if self.folder.is_dir() else None
        if before is not None and not before.finished and not (self.folder / checkpoint.FILE).is_file():
            before = None  # begun, but never saved
            (self.folder / FILE).unlink()
        if before is None and self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} holds something else; name a folder of its own for the run")
        if before is not None and not resume:
            what = (
                "a finished run" if before.finished else "an interrupted run; continue it with --resume (resume=True)"
            )
            raise ValueError(f"{self.folder} holds {what}, or name another folder")
        digests = self.documents.digests()
        machine = machine_now(torch.get_num_threads(), str(self.base.device)) | {"processes": self.team.size}
        if before is not None:
            before.check_same(self.folder, self.settings, model, digests)
            self.record = before
            if before.finished:
                return True
            self._note_machine(machine)
            self.where, self.state = checkpoint.read_checkpoint(self.folder)
            self.record.curves = Curves.of(self.where["curves"])
            self.record.notices = self.where["notices"]
            self._begin(self.record)
            return False
        self.record = TrainingRecord(self.settings, model, digests, machine)
        self.record.run = {"buffer_tokens": self._affordable_buffer(memory_budget)}
        self.folder.mkdir(parents=True, exist_ok=True)
        check_room(self.folder, 2 * self._weight_bytes())
        self.record.write(self.folder)
        self._begin(self.record)
        return False

    def _begin(self, record: TrainingRecord) -> None:
        self.watcher.began(record, self.where["tokens"] if self.state is not None else None)

    def _note_machine(self, machine: dict[str, Any]) -> None:
        before = self.record.machine
        changed = [
            f"{name} {machine['versions'].get(name)} instead of {version}"
            for name, version in before["versions"].items()
            if machine["versions"].get(name) != version
        ]
        changed += [
            f"{name} {machine[name]} instead of {before[name]}"
            for name in ("threads", "device", "processor")
            if machine[name] != before[name]
        ]
        if changed:
            self._notice(f"resumed with {', '.join(changed)}: weights may differ in their last bits")

    def _notice(self, line: str) -> None:
        self.record.notices.append(line)
        self.watcher.notice(line)

    def _weight_bytes(self) -> int:
        """Bytes of weights and Adam's moments."""
        s, shape = self.settings, self.shape
        written = sum(shape.n_written(layer) for layer in range(shape.n_layers))
        rows = shape.n_features * (shape.n_layers * shape.d_in + written * shape.d_out)
        skip = shape.n_layers * shape.d_in * shape.d_out if s.skip else 0
        return rows * (4 + 2 * getattr(torch, s.moments).itemsize) + skip * 12

    def _affordable_buffer(self, memory_budget: int | str | None) -> int:
        """How many positions the buffer may hold.

        Raises:
            MemoryError: The budget is too small for a batch.
        """
        budget = usable_bytes(torch.device("cpu")) if memory_budget is None else parse_bytes(memory_budget)
        each = bytes_a_token(self.base, self.settings)
        room = int((budget * (1 - _WORK_SHARE) - self._weight_bytes()) / each)
        wanted = self._wanted_buffer()
        least = self.settings.batch_tokens + self.settings.context_tokens
        if room < least:
            needed = (self._weight_bytes() + least * each) / (1 - _WORK_SHARE)
            raise MemoryError(
                f"a memory budget of {format_bytes(budget)} is too small: weights and moments take "
                f"{format_bytes(self._weight_bytes())}, with the smallest activation buffer {format_bytes(needed)}"
            )
        return min(wanted, room)

    def _wanted_buffer(self) -> int:
        """How many positions the buffer should hold: no more than a short run will use."""
        s = self.settings
        if s.tokens is None:
            return s.buffer_tokens
        return min(s.buffer_tokens, max(s.tokens, s.statistics_tokens) + s.batch_tokens + s.context_tokens)

    # The stages

    def train(self, spill: Path | None) -> None:
        self._began = time.monotonic()
        self._seconds_before = self.where["seconds"]
        self._saved_at = self._began
        self._saved_share: float | None = None
        buffer_tokens = self.record.run["buffer_tokens"]
        if buffer_tokens < self._wanted_buffer() and self.state is None:
            self._notice(f"the activation buffer holds {buffer_tokens:,} tokens, for want of memory")
        trainer = None
        if self.where["stage"] == TRAINING:
            stream = ActivationStream(
                self.base,
                self.documents,
                self.settings,
                buffer_tokens,
                spill,
                self._notice,
                self.watcher.filling,
                self.team,
            )
            if self.state is not None:
                stream.restore(self.where["stream"])
            trainer = self._trainer(stream)
            self._train_on_activations(trainer, stream)
            del stream
            self.where |= {"stage": END_TO_END, "stage_began": self._seconds(), "tokens": 0, "steps": 0}
            self.where.pop("stream", None)
        if self.settings.end_to_end:
            rows = WindowRows(self.base, self.documents, self.settings, self._notice)
            trainer = trainer or self._trainer(None)
            if "rows" in self.where:
                rows.restore(self.where["rows"])
            self._fine_tune(trainer, rows)
        self._finish(trainer or self._trainer(None))

    def _trainer(self, stream: ActivationStream | None) -> Trainer:
        if self.state is None:
            assert stream is not None
            return Trainer(self.settings, self.shape, stream.sample(self.settings.statistics_tokens), self.base.device)
        trainer = Trainer(self.settings, self.shape, None, self.base.device)
        trainer.restore(self.state)
        self.state = None
        return trainer

    def _train_on_activations(self, trainer: Trainer, stream: ActivationStream) -> None:
        s = self.settings
        seconds = None if s.minutes is None else 60 * s.minutes * (1 - (s.end_to_end_share if s.end_to_end else 0))
        # At least a step: a short run's clock may be up once the first activations are there.
        while (share := self._share(stream.tokens, s.tokens, seconds)) < 1 or not self.where["steps"]:
            seen = trainer.step(*stream.next_batch(), min(share, 1.0))
            self.where |= {"tokens": stream.tokens, "steps": self.where["steps"] + 1}
            self._after_step(
                trainer,
                lambda: {"stream": stream.state()},
                (s.tokens, seconds),
                loss=seen.loss,
                fvu=float(seen.fvu_l.mean()),
                fvu_weighted=float(seen.fvu_weighted_l.mean()),
                l0=float(seen.l0_l.mean()),
                dead=float(seen.dead_l.mean()),
                learning_rate=seen.learning_rate,
                resets=seen.resets,
            )
            self.record.run["training"] = {
                "tokens": stream.tokens,
                "steps": self.where["steps"],
                "fvu": seen.fvu_l.tolist(),
                "fvu_weighted": seen.fvu_weighted_l.tolist(),
                "l0": seen.l0_l.tolist(),
                "dead": seen.dead_l.tolist(),
            }

    def _fine_tune(self, trainer: Trainer, rows: WindowRows) -> None:
        s = self.settings
        tokens = s.end_to_end_tokens if s.minutes is None else None
        seconds = None if s.minutes is None else max(60 * s.minutes - self.where["stage_began"], 1.0)
        while (share := self._share(self.where["tokens"], tokens, seconds)) < 1 or not self.where["steps"]:
            tokens_wp = rows.next()
            seen = fine_tune_step(trainer, self.base.sites, tokens_wp, min(share, 1.0))
            self.where |= {"tokens": self.where["tokens"] + tokens_wp.numel(), "steps": self.where["steps"] + 1}
            self._after_step(
                trainer,
                lambda: {"rows": rows.state()},
                (tokens, seconds),
                loss=seen.loss,
                l0=float(seen.l0_l.mean()),
                dead=float(seen.dead_l.mean()),
                learning_rate=seen.learning_rate,
                final=seen.final,
            )
            self.record.run["end to end"] = {
                "tokens": self.where["tokens"],
                "steps": self.where["steps"],
                "l0": seen.l0_l.tolist(),
                "dead": seen.dead_l.tolist(),
            }

    # Between steps

    def _seconds(self) -> float:
        """Seconds of the run, those before it was resumed included."""
        return self._seconds_before + time.monotonic() - self._began

    def _share(self, tokens: int, wanted: int | None, seconds: float | None) -> float:
        """How much of the stage is done."""
        if wanted is not None:
            return tokens / wanted
        assert seconds is not None
        return self.team.told((self._seconds() - self.where["stage_began"]) / seconds)

    def _after_step(self, trainer: Trainer, place: Any, length: tuple[int | None, float | None], **seen: float) -> None:
        wanted, seconds = length
        now = self._seconds()
        if not math.isfinite(seen["loss"]):
            raise self._diverged(seen["loss"])
        share = min(self._share(self.where["tokens"], wanted, seconds), 1.0)
        if self._saved_share is None or self._saved_share > share:  # a stage begins, or is gone on with
            self._saved_share, self._share_at = share, now
        done = share - self._saved_share
        left: float | None
        if self.settings.minutes is not None:
            left = max(60 * self.settings.minutes - now, 0.0)
        else:
            left = (now - self._share_at) * (1 - share) / done if done > 0 else None
        point = {name: self.where[name] for name in ("stage", "tokens")} | {
            "step": self.where["steps"],
            "seconds": round(now, 3),
            **seen,
        }
        self.record.curves.add(point)
        self.watcher.stepped(
            Progress(
                self.where["stage"],
                share,
                self.where["steps"],
                self.where["tokens"],
                wanted,
                now,
                left,
                seen["loss"],
                seen.get("fvu"),
                seen.get("fvu_weighted"),
                seen.get("l0"),
                seen.get("dead"),
            )
        )
        due = time.monotonic() - self._saved_at >= 60 * self.settings.checkpoint_minutes
        stop, due = self.team.told((self.watcher.stop_asked(), due))
        if stop:
            self._save(trainer, place())
            raise TrainingInterrupted(
                f"interrupted after {self.where['tokens']:,} tokens; the state is kept in {self.folder}: "
                "continue with the same command and --resume (resume=True)"
            )
        if due:
            self._save(trainer, place())

    def _diverged(self, loss: float) -> DivergedError:
        found = (self.folder / checkpoint.FILE).is_file()
        kept = f"the checkpoint before it is kept in {self.folder}" if found else "there is no checkpoint before it"
        return DivergedError(
            f"the loss is {loss} at step {self.where['steps']:,} of {self.where['stage']}: the run has diverged; {kept}. "
            "A lower learning_rate in the recipe may help"
        )

    def _save(self, trainer: Trainer, place: dict[str, Any]) -> None:
        state = trainer.state()
        if not checkpoint.is_finite(state):
            raise self._diverged(math.nan)
        self.where["seconds"] = self._seconds()
        self._saved_at = time.monotonic()
        if self.team.rank:
            return
        where = {**self.where, **place, "curves": self.record.curves.to_dict(), "notices": self.record.notices}
        checkpoint.write_checkpoint(self.folder, where, state)
        self.record.write(self.folder)
        self._saved_at = time.monotonic()
        self.watcher.saved(self.folder / checkpoint.FILE)

    def _finish(self, trainer: Trainer) -> None:
        """Write the dictionary, then say so in the record; the checkpoint goes last."""
        if not checkpoint.is_finite(trainer.state()):
            raise self._diverged(math.nan)
        self.record.run["seconds"] = round(self._seconds(), 3)
        self.record.finished = True
        if self.team.rank == 0:
            export(trainer, self.folder, self.base.name)
            self.record.write(self.folder)
            (self.folder / checkpoint.FILE).unlink(missing_ok=True)
        self.team.told(None)  # the others return once the files are there


def recorded_settings(folder: str | os.PathLike[str]) -> TrainingSettings | None:
    """Return the settings of the run that a folder holds; None if it holds none.

    Raises:
        ValueError: Its `training.json` is damaged.
    """
    record = TrainingRecord.read(Path(folder))
    return None if record is None else record.settings


def recorded_threads(folder: str | os.PathLike[str]) -> int | None:
    """Return the number of threads of the run that a folder holds; None if it holds none."""
    record = TrainingRecord.read(Path(folder))
    return None if record is None else record.machine["threads"]


__all__ = ["FILE", "DivergedError", "TrainingInterrupted", "recorded_settings", "recorded_threads", "train"]
