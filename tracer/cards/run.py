"""The state of a run over a corpus and the folder that holds it, from which an interrupted run continues.

The folder holds the growing files of `log.py` and `state.safetensors`, which is replaced as a whole. Whatever ends the
run, the last saved state matches the files up to the lengths that it records.
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

from crosstrace.graphs.fingerprints import same_fingerprints
from crosstrace.graphs.tensor_file import TensorSource, map_tensors, write_tensors
from crosstrace.replacement_model.texts import Cursor
from crosstrace.tracer import defaults
from crosstrace.tracer.cards.log import CardLog
from crosstrace.tracer.cards.tops import LayerTops
from crosstrace.tracer.samples.taking import SampleTaker

_FORMAT = "crosstrace-cards-run/1"
_OURS = re.compile(
    r"(contexts|tokens|records|entries)\.bin|arrays|(sample|logits_\d+)\.safetensors|\.crosstrace-\w+\.part"
)


class CardsInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run whose state is kept; its text says how to continue."""


class CardRun:
    """What is known so far.

    Attributes:
        folder: Where the state is kept.
        identity: What the cards depend on, under the words that a message uses for it.
        layers: The state of every layer.
        log: Contexts and windows.
        cursor: How far the corpus has been read.
        positions: How many positions count, without padding and excluded ones.
        tokens: How many tokens have been run.
        finished: Whether the corpus has been read to its end.
        batch_tokens: Tokens run at a time; 0 while unknown.
        saved: Whether there is a state to continue from.
        sample: The sample that is taken in the same pass, or None.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        n_features: list[int],
        top: int,
        memory: int,
        resume: bool,
        sample_tokens: int = 0,
    ) -> None:
        """Open the folder of an interrupted run, or create one.

        Args:
            folder: Where the state is kept.
            identity: What the cards depend on.
            n_features: Features of each layer.
            top: Contexts kept for each feature.
            memory: Bytes that the layers' arrays may take; beyond that they are mapped files in the folder.
            resume: Continue an interrupted run.
            sample_tokens: The most tokens of a sample that is taken in the same pass; 0: none is taken.

        Raises:
            ValueError: The folder holds an interrupted run although `resume` is False, or a run of something else.
            OSError: The folder cannot be created or read.
        """
        self.folder, self.identity = folder, identity
        self.cursor, self.positions, self.tokens, self.finished = Cursor(), 0, 0, False
        self.batch_tokens = 0
        self.sample = SampleTaker(n_features, sample_tokens) if sample_tokens else None
        state = self._saved(resume)
        self.saved = state is not None
        if state is None and folder.exists():
            _check_ours(folder)
            shutil.rmtree(folder)  # started, but never saved
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
        if self.sample is not None:
            self.sample.restore(self._sample_path, self.log.n_contexts)

    @property
    def _sample_path(self) -> Path:
        return self.folder / "sample.safetensors"

    def _mapped(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Allocate zeros in a sparse file, of which only the touched pages take room."""
        if 0 in shape:  # a layer that the dictionary lacks; no file is mapped for nothing
            return np.zeros(shape, dtype)
        return np.memmap(self._scratch / f"{len(list(self._scratch.iterdir()))}.bin", dtype, "w+", shape=shape)

    def _saved(self, resume: bool) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return None
        if not resume:
            raise ValueError(
                f"{self.folder} holds an interrupted run; continue it with --resume (resume=True), or delete the folder"
            )
        metadata, tensors = map_tensors(path)
        try:
            header = json.loads(metadata[_FORMAT])
            before = header["identity"]
        except (KeyError, ValueError):
            raise ValueError(f"{path} is not the state of a run over a corpus; delete {self.folder}") from None
        for name, value in self.identity.items():
            if name == "fingerprints" and same_fingerprints(before.get(name) or {}, value):
                continue  # the state may be from before some of them existed
            if before.get(name) != value:
                if name == "fingerprints":
                    raise ValueError(
                        f"{self.folder} cannot be resumed: it was started with other weights under the same names; "
                        "run it with those, or delete the folder"
                    )
                raise ValueError(
                    f"{self.folder} cannot be resumed: it was started with different {name} ({before.get(name)}, now {value}); "
                    "run it as before, or delete the folder"
                )
        return header, tensors

    def save(self) -> None:
        """Save the state, so that a later run can continue from here."""
        began = time.monotonic()
        self.log.flush()
        if self.sample is not None:  # first: what it has beyond the state below is cut off when it is restored
            self.sample.save(self._sample_path)
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
        """Save if enough time has passed since the last save."""
        if time.monotonic() - self._saved_at > max(
            defaults.CARDS_SAVE_SECONDS, self._save_took / defaults.CARDS_SAVE_SHARE
        ):
            self.save()

    def interrupted(self) -> CardsInterrupted:
        """Save, and return the exception that says how to continue."""
        self.save()
        return CardsInterrupted(
            f"interrupted after {self.tokens:,} tokens; the state is kept in {self.folder}: "
            "continue with the same command and --resume (resume=True)"
        )

    def close(self, delete: bool = False) -> None:
        """Close the files.

        Args:
            delete: Delete the folder too, once the cards are written.
        """
        self.log.close()
        self.layers = []  # mapped arrays
        shutil.rmtree(self._scratch, ignore_errors=True)
        if delete:
            shutil.rmtree(self.folder, ignore_errors=True)


def _check_ours(folder: Path) -> None:
    """Check that a folder is one that a run created.

    Raises:
        ValueError: It is something else.
    """
    if not folder.is_dir() or any(not _OURS.fullmatch(path.name) for path in folder.iterdir()):
        raise ValueError(f"{folder} is where the state of the run belongs, but it holds something else; move it away")


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C has been pressed: the first lets a step finish, the second ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread receives signals
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
