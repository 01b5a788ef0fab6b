"""The state of a run over a corpus, and the folder it is kept in: what an interrupted run goes on from.

The folder holds the growing files of `card_log.py` and `state.safetensors`, which is replaced as a whole: whatever ends
the run, the last saved state and the files up to the lengths in it fit together.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosstrace.graphs.tensor_file import TensorSource, map_tensors, write_tensors
from crosstrace.replacement_model.texts import Cursor
from crosstrace.tracer.cards.log import CardLog
from crosstrace.tracer.cards.tops import LayerTops

_FORMAT = "crosstrace-cards-run/1"
_OURS = re.compile(r"(contexts|tokens|records|entries)\.bin|arrays|logits_\d+\.safetensors|\.crosstrace-\w+\.part")
_SAVE_SECONDS = 60.0
# Saving may take so much of the time at most.
_SAVE_SHARE = 0.05


class CardsInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run whose state is kept; its text says how to go on."""


class CardRun:
    """What is known so far.

    Attributes:
        identity: what the cards depend on, by the words a message calls it.
        layers: the state of every layer. log: contexts and windows.
        cursor: how far the corpus has been read. positions, tokens: how many counted, and how many run.
        finished: the corpus has been read to its end.
        batch_tokens: tokens run at a time, 0 while unknown. saved: there is a state to go on from.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], n_features: list[int], top: int, memory: int, resume: bool
    ) -> None:
        """
        Args:
            memory: bytes that the layers' arrays may take; beyond that they are mapped files in the folder.

        Raises:
            ValueError: the folder holds an interrupted run that is not to be gone on with, or one of something else.
            OSError: the folder cannot be made or read.
        """
        self.folder, self.identity = folder, identity
        self.cursor, self.positions, self.tokens, self.finished = Cursor(), 0, 0, False
        self.batch_tokens = 0
        state = self._saved(resume)
        self.saved = state is not None
        if state is None and folder.exists():
            _check_ours(folder)
            shutil.rmtree(folder)  # begun and never saved
        folder.mkdir(exist_ok=True)
        self._scratch = folder / "arrays"
        shutil.rmtree(self._scratch, ignore_errors=True)
        allocate: Any = np.zeros
        if sum(n_features) * LayerTops.bytes_a_feature(top) > memory:
            self._scratch.mkdir()
            allocate = self._mapped
        self.layers = [LayerTops(count, top, allocate) for count in n_features]
        self._saved_at, self._save_took = time.monotonic(), 0.0
        if state is None:
            self.log = CardLog(folder)
            return
        header, tensors = state
        self.cursor = Cursor(**header["cursor"])
        self.positions, self.tokens, self.finished = header["positions"], header["tokens"], header["finished"]
        self.batch_tokens = header["batch_tokens"]
        self.log = CardLog(folder, header["lengths"])
        for number, layer in enumerate(self.layers):
            layer.restore({name: tensors[f"{number}.{name}"] for name in LayerTops.ARRAYS})

    def _mapped(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Zeros in a sparse file: of it, too, only what is touched takes room."""
        return np.memmap(self._scratch / f"{len(list(self._scratch.iterdir()))}.bin", dtype, "w+", shape=shape)

    def _saved(self, resume: bool) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return None
        if not resume:
            raise ValueError(
                f"{self.folder} holds an interrupted run; go on from it with --resume (resume=True), or delete it"
            )
        metadata, tensors = map_tensors(path)
        try:
            header = json.loads(metadata[_FORMAT])
            before = header["identity"]
        except (KeyError, ValueError):
            raise ValueError(f"{path} is not the state of a run over a corpus; delete {self.folder}") from None
        for name, value in self.identity.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{self.folder} cannot be resumed: it was begun with another {name} ({before.get(name)}, now {value}); "
                    "go on as before, or delete it"
                )
        return header, tensors

    def save(self) -> None:
        """Put the state down, so that a later run can go on from here."""
        began = time.monotonic()
        self.log.flush()
        header = {
            "identity": self.identity,
            "cursor": asdict(self.cursor),
            "positions": self.positions,
            "tokens": self.tokens,
            "finished": self.finished,
            "batch_tokens": self.batch_tokens,
            "lengths": self.log.lengths,
        }
        tensors = [
            TensorSource.of(f"{number}.{name}", array)
            for number, layer in enumerate(self.layers)
            for name, array in layer.arrays()
        ]
        write_tensors(self.folder / "state.safetensors", (_FORMAT, json.dumps(header)), tensors)
        self.saved = True
        self._saved_at = time.monotonic()
        self._save_took = self._saved_at - began

    def save_now_and_then(self) -> None:
        """Save if the last time is long enough ago."""
        if time.monotonic() - self._saved_at > max(_SAVE_SECONDS, self._save_took / _SAVE_SHARE):
            self.save()

    def interrupted(self) -> CardsInterrupted:
        """Save, and say how to go on."""
        self.save()
        return CardsInterrupted(
            f"interrupted after {self.tokens:,} tokens; the state is kept in {self.folder}: "
            "go on with the same command and --resume (resume=True)"
        )

    def close(self, delete: bool = False) -> None:
        """``delete``: the cards are written, and the folder not needed any more."""
        self.log.close()
        self.layers = []  # mapped arrays
        shutil.rmtree(self._scratch, ignore_errors=True)
        if delete:
            shutil.rmtree(self.folder, ignore_errors=True)


def _check_ours(folder: Path) -> None:
    """
    Raises:
        ValueError: it is no folder that a run has begun.
    """
    if not folder.is_dir() or any(not _OURS.fullmatch(path.name) for path in folder.iterdir()):
        raise ValueError(f"{folder}, where the state of the run goes, is something else; move it away")


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C has been pressed: the first one lets a step finish, a second one ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread can hear it
        return

    def hear(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
