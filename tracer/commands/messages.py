"""What a verb says on standard error, and how it ends when something goes wrong."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

USER_ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
"""What a user can get wrong, or a machine can run out of; anything else is a fault of the program."""


def note(line: str) -> None:
    """Print one line on standard error about something that is not as it may seem."""
    typer.echo(f"note: {line}", err=True)


def say_error(error: BaseException, debug: bool) -> None:
    """Print an error on standard error: as one line, or with its stack trace."""
    if debug:
        typer.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    else:
        typer.echo(f"error: {one_line(error)}", err=True)


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Turn what a user can get wrong into one line on standard error and exit code 1.

    Args:
        debug: Let errors through, for their stack trace.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(f"error: {interrupt or 'interrupted'}", err=True)
        raise typer.Exit(1) from None
    except USER_ERRORS as error:
        if debug or isinstance(error, typer.Exit):  # typer's own way out is a RuntimeError
            raise
        say_error(error, debug=False)
        raise typer.Exit(1) from None
