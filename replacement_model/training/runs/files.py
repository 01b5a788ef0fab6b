"""Files of a run, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from crosstrace.replacement_model.memory import format_bytes


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside a file, flush to disk, then rename: whatever happens, the old file or the whole new one is there.

    Args:
        path: The file.
        write: Writes the content to the binary file that it is given.

    Raises:
        OSError: The file cannot be written; one line that names it. The old one is kept.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as problem:
        beside.unlink(missing_ok=True)
        full = room_left(path.parent) < (1 << 20)
        if isinstance(problem, OSError) or (
            isinstance(problem, RuntimeError) and full
        ):  # torch hides a full disk in one
            reason = "no space left on device" if full else getattr(problem, "strerror", None) or str(problem)
            raise OSError(f"cannot write {path}: {reason}") from problem
        raise


def check_room(folder: Path, wanted: int) -> None:
    """Check that a run's files will find room, before minutes are spent.

    Raises:
        OSError: They will not.
    """
    free = room_left(folder)
    if free < wanted:
        raise OSError(
            f"no room in {folder}: a checkpoint beside the one before it takes {format_bytes(wanted)}, "
            f"{format_bytes(free)} are free"
        )


def room_left(folder: Path) -> int:
    """Return how many bytes are free where a folder is."""
    return shutil.disk_usage(folder).free
