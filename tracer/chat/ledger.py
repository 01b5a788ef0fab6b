"""What a long run has found so far, kept beside its report so that an interruption costs one step at most."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crosstrace.graphs import write_atomically

_SECONDS = 5.0


class Ledger:
    """Steps by name, each with a JSON-able result."""

    def __init__(self, path: Path | None, identity: Any, resume: bool) -> None:
        """Open it.

        Args:
            path: The file; None keeps nothing.
            identity: JSON-able: what the results depend on.
            resume: Take over what the file holds, if it exists.

        Raises:
            ValueError: The file is of other settings, or damaged.
        """
        self.path, self._steps = path, {}
        self._identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._written = time.monotonic()
        if path is None or not resume or not path.is_file():
            return
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            identity, steps = kept["identity"], dict(kept["steps"])
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}: not the state of an interrupted run; delete it, or leave out --resume") from None
        if identity != self._identity:
            raise ValueError(f"{path} is of a run with other settings or files; delete it, or leave out --resume")
        self._steps = steps

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a step's result: what is kept, or what `compute` returns, which is kept then."""
        if name not in self._steps:
            try:
                found = compute()
            except BaseException:  # an interruption costs this step alone
                self.keep()
                raise
            self._steps[name] = json.loads(json.dumps(found))  # the same whether it is kept or not
            if time.monotonic() - self._written > _SECONDS:
                self.keep()
        return self._steps[name]

    def keep(self) -> None:
        """Write the file.

        Raises:
            OSError: It cannot be written.
        """
        self._written = time.monotonic()
        if self.path is not None:
            content = json.dumps({"identity": self._identity, "steps": self._steps}, allow_nan=False)
            write_atomically(self.path, content.encode())
