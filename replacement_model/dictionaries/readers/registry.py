"""The file formats that are known."""

from __future__ import annotations

from pathlib import Path

from crosstrace.replacement_model.dictionaries.readers import circuit_tracer, gemma_scope, saelens
from crosstrace.replacement_model.dictionaries.readers.base import FileFormat

_FORMATS: list[FileFormat] = []


def register_reader(file_format: FileFormat) -> None:
    """Read another file format; the formats that were registered first are asked first.

    Raises:
        ValueError: A format of this name is registered already.

    Example:
        >>> register_reader(FileFormat("mine", "mine.json", lambda path: (path / "mine.json").is_file(), open_mine))
    """
    if any(file_format.name == known.name for known in _FORMATS):
        raise ValueError(f"file format {file_format.name} is registered already")
    _FORMATS.append(file_format)


def known_formats() -> tuple[FileFormat, ...]:
    """Return the file formats that are known, in the order in which they are asked."""
    return tuple(_FORMATS)


def format_of(path: Path) -> FileFormat | None:
    """Return the format of the files that a path names, or None."""
    return next((file_format for file_format in _FORMATS if file_format.matches(path)), None)


for _format in (
    circuit_tracer.FORMAT,
    gemma_scope.CROSS_LAYER,
    gemma_scope.PER_LAYER,
    gemma_scope.ONE_LAYER,
    saelens.FORMAT,
):
    register_reader(_format)
