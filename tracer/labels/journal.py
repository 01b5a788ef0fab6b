"""What a run has been told so far, one line an answer: whatever ends the run, what was paid for is kept.

The file `LABELS.partial.jsonl` stands beside the labels. Its first line is what the run depends on; a run with other settings
is refused. A last line that was cut off is left out.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from crosstrace.graphs.files import check_writable


class Journal:
    """The answers of a run, by a name.

    Attributes:
        path: The file.
        known: The answers so far.
    """

    def __init__(self, path: Path, identity: dict[str, Any], resume: bool) -> None:
        """Open the journal of an interrupted run, or begin one.

        Args:
            path: The file.
            identity: What answers depend on, under the words that a message uses for it.
            resume: Continue an interrupted run.

        Raises:
            ValueError: There is a journal although `resume` is False, or it is of a run with other settings.
            OSError: It cannot be read or written.
        """
        self.path, self.known = path, {}  # type: tuple[Path, dict[str, Any]]
        self._lock = threading.Lock()
        check_writable(path)
        whole = 0
        if path.is_file():
            if not resume:
                raise ValueError(f"{path} holds an interrupted run; continue it with --resume, or delete it")
            whole = self._read(identity)
        self._file = path.open("r+b" if whole else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write({"identity": identity})

    def _read(self, identity: dict[str, Any]) -> int:
        """Read the whole lines; return where they end."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        try:
            rows = [json.loads(line) for line in lines]
            before = rows[0]["identity"] if rows else identity
            self.known = {row["name"]: row["answer"] for row in rows[1:]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path} is not the journal of a run; delete it") from None
        for name, value in identity.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{self.path} cannot be resumed: it was started with different {name} ({before.get(name)}, now {value}); "
                    "run it as before, or delete the file"
                )
        return whole

    def add(self, name: str, answer: Any) -> None:
        """Keep an answer."""
        with self._lock:
            self.known[name] = answer
            self._write({"name": name, "answer": answer})

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, delete: bool = False) -> None:
        """Close the file.

        Args:
            delete: Delete it, once the labels are written.
        """
        self._file.close()
        if delete:
            self.path.unlink(missing_ok=True)
