"""Windows of equal length, a few at a time, for fine-tuning end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.training.data.documents import Documents
from crosstrace.replacement_model.training.data.windows import Notice, Window, WindowReader
from crosstrace.replacement_model.training.settings import TrainingSettings

# Steps whose windows are sorted by length together, where documents are shorter than a window.
_POOL = 32


class WindowRows:
    """Windows of a corpus without end, `end_to_end_windows` of equal length at a time.

    Where no document is as long as a window, more of them are taken together, of similar length and cut to the shortest, so
    that a step has as many tokens.
    """

    def __init__(
        self, base: BaseModel, documents: Documents, settings: TrainingSettings, notice: Notice = lambda line: None
    ) -> None:
        """Prepare to read.

        Args:
            base: The base model.
            documents: The corpus.
            settings: What is trained.
            notice: Told, in a line, when the corpus starts again.
        """
        self._settings = settings
        self._length = min(settings.end_to_end_window_tokens, base.description.max_positions)
        self._tokens = settings.end_to_end_windows * self._length
        least = base.description.excluded_first + 1
        self._reader = self._open(base, documents, self._length, notice)
        try:
            self._reader.take_windows(1)
        except ValueError:
            self._reader = self._open(base, documents, least, notice)
        else:
            self._reader = self._open(base, documents, self._length, notice)
        self._before = self._reader.state()
        self._pool: list[Tensor] = []
        self._given = 0

    def _open(self, base: BaseModel, documents: Documents, shortest: int, notice: Notice) -> WindowReader:
        seed = self._settings.seed
        return WindowReader(documents, base.tokenizer, self._length, shortest, seed, "end to end", notice)

    def next(self) -> Tensor:
        """Return the next windows (W, P) int64.

        Raises:
            ValueError: The corpus has nothing to train on, or a line is broken.
        """
        if self._given == len(self._pool):
            self._before = self._reader.state()
            self._refill()
        self._given += 1
        return self._pool[self._given - 1]

    def state(self) -> dict[str, Any]:
        """Return where the reader is; small."""
        return {"windows": self._before, "given": self._given}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a reader of the same corpus and settings was."""
        self._reader.restore(state["windows"])
        self._before = self._reader.state()
        if state["given"]:
            self._refill()
        self._given = state["given"]

    def _refill(self) -> None:
        windows = sorted(self._reader.take(_POOL * self._tokens), key=len, reverse=True)
        groups: list[list[Window]] = [[]]
        for window in windows:
            if groups[-1] and len(groups[-1]) * len(groups[-1][-1]) >= self._tokens:
                groups.append([])
            groups[-1].append(window)
        random = np.random.default_rng([self._settings.seed, *b"rows", self._reader.epoch, self._reader.read])
        self._pool = [_together(groups[place]) for place in random.permutation(len(groups))]
        self._given = 0


def _together(windows: list[Window]) -> Tensor:
    shortest = min(map(len, windows))
    return torch.from_numpy(np.stack([window[:shortest] for window in windows]).astype(np.int64))
