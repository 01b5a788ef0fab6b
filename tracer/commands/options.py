"""What the verbs of the command line share: options, errors in one line, and the model they run on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from crosstrace.replacement_model import ReplacementModel

Model = Annotated[
    str | None, typer.Option("-m", "--model", help="Folder or hub name of a Gemma 3; default the embedded demo.")
]
TranscodersOption = Annotated[
    str | None, typer.Option("-t", "--transcoders", help="Folder or hub reference org/repo/sub/folder\\[@revision].")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …", show_default="a GPU if there is one")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 weights.", show_default="as stored")]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for transcoder weights and rows, such as 8GB.",
        show_default="80 % of what is free",
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="Spread the model's layers over devices, as accelerate does: auto, balanced, sequential."),
]
CardsOption = Annotated[
    Path | None,
    typer.Option("--cards", metavar="FILE", help="Feature cards to use.", show_default="those beside the transcoders"),
]
OpenIt = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No table, no progress bar.")]

PAGES = (".html", ".htm")


def open_page(path: Path) -> None:
    """Show an HTML file in the browser."""
    import webbrowser

    webbrowser.open(path.resolve().as_uri())


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Turn what a user can get wrong into one line on standard error and exit code 1 (a stack trace with ``--debug``)."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(f"error: {interrupt or 'interrupted'}", err=True)
        raise typer.Exit(1) from None
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if debug or isinstance(error, typer.Exit):  # typer's own way out is a RuntimeError
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"error: {line}", err=True)
        raise typer.Exit(1) from None


def load_model(  # type: ignore[no-untyped-def]  # the return type is a heavy import
    model: str | None,
    transcoders: str | None,
    device: str | None,
    dtype: str | None,
    quiet: bool,
    memory_budget: str | None = None,
    device_map: str | None = None,
):
    """The replacement model a verb asks for; the embedded demo without a name."""
    import torch

    from crosstrace.replacement_model import ReplacementModel

    weights_dtype = parse_dtype(dtype)
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    settings = {"dtype": weights_dtype, "memory_budget": memory_budget, "device_map": device_map}
    if model is None or transcoders is None:
        return ReplacementModel.demo(device, **settings)
    return ReplacementModel.from_pretrained(model, transcoders, device, **settings)


def read_prompt(prompt: str) -> str:
    """The text that a verb is about; ``-`` reads it from standard input.

    Raises:
        ValueError: it is empty, the name of a file, or no text.
    """
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    if not text.strip():
        raise ValueError("the prompt is empty")
    if os.path.splitext(text)[1] and os.path.isfile(text):
        raise ValueError(f"{text} is a file; give the text of a prompt, or its text on standard input (-)")
    from crosstrace.replacement_model.prompts import check_text

    check_text(text)
    return text


def note_unknown_words(model: ReplacementModel, text: str, limit: int = 5) -> None:
    """Say which words of a prompt the model has no token for: its answer is about something else then."""
    from crosstrace.replacement_model.demo import MODEL_NAME

    if words := model.unknown_words(text):
        more = f" and {len(words) - limit} more" if len(words) > limit else ""
        demo = "; the demo knows the words of its sentences alone, exactly as they are spelled there"
        is_demo = model.name == MODEL_NAME
        shown = (word + "".join(f" ({close}?)" for close in model.close_tokens(word, n=1)) for word in words[:limit])
        note(f"not in the vocabulary, read as unknown: {', '.join(shown)}{more}{demo if is_demo else ''}")


def note(line: str) -> None:
    """One line on standard error about what is not as it may seem."""
    typer.echo(f"note: {line}", err=True)


def parse_dtype(dtype: str | None):  # type: ignore[no-untyped-def]
    """The torch dtype that an option names.

    Raises:
        ValueError: none of those that weights can be used in.
    """
    import torch

    dtypes = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    if dtype is not None and dtype not in dtypes:
        raise ValueError(f"unknown dtype {dtype!r}: known are {', '.join(dtypes)}")
    return None if dtype is None else dtypes[dtype]
