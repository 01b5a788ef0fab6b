"""Files are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, before minutes are spent on its content.

    Raises:
        OSError: The folder does not exist or may not be written to, or the path is a folder; one line that says which.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        kind = "is not a folder" if target.parent.exists() else "does not exist"
        raise FileNotFoundError(f"cannot write {os.fspath(path)}: output folder {target.parent} {kind}")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {os.fspath(path)}: it is a folder")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {os.fspath(path)}: output folder {target.parent} may not be written to")


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write beside `path`, flush to disk, then rename: a reader sees the old file or the whole new one.

    Args:
        path: The file; an existing one is replaced, a symbolic link is followed.
        content: The bytes, or a function that writes them to the binary file it is given.

    Raises:
        OSError: The file cannot be written; one line that names it or its folder. Nothing is left behind.

    Example:
        >>> write_atomically("graph.json", b"{}")
    """
    # A rename would replace a symbolic link itself, so its target is what is written.
    target = Path(os.path.realpath(path))
    folder = target.parent
    check_writable(path)
    # Not `tempfile`: its files are readable by their owner alone; here the umask should decide, as for any other file.
    beside = folder / f".crosstrace-{secrets.token_hex(8)}.part"
    try:
        with open(beside, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException as problem:
        beside.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            reason = problem.strerror or str(problem)
            raise type(problem)(f"cannot write {os.fspath(path)}: {reason}") from problem
        raise
