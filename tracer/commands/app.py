"""The `crosstrace` command: one file for each verb. Heavy imports wait until a verb runs, so that help appears at once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer
from typer.core import TyperCommand

from crosstrace.tracer.commands.chat import chat
from crosstrace.tracer.commands.labels import labels

VERBS = (
    "trace",
    "sweep",
    "aggregate",
    "show",
    "view",
    "prune",
    "compare",
    "features",
    "read",
    "probe",
    "intervene",
    "validate",
    "attention",
    "weights",
    "label",
    "train",
    "evaluate",
    "serve",
)
"""The verbs in the order of the help: each is the function of that name in the module of that name beside this one."""

_OBJECTS_AT_START = 700_000

_SPECIAL: dict[str, type[TyperCommand]] = {}

app = typer.Typer(
    name="crosstrace",
    help="Open up Gemma 3: trace a prompt into an attribution graph of transcoder features.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; the exit code is 0 when done, 1 when it failed, 2 for wrong usage."""
    _collect_later()
    try:
        app()
    finally:
        gc.freeze()  # the process ends: looking through all objects once more would take it another second


def _collect_later() -> None:
    """Let the first garbage collection wait until more objects are there than imports and a model make.

    Imports make half a million objects and next to no garbage. Looking for it 675 times takes 0.8 s of the 5 to 6 s of
    processor time that a trace of the demo takes. After the first collection everything is as usual.
    """
    usual = gc.get_threshold()

    def as_usual(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            gc.set_threshold(*usual)
            gc.callbacks.remove(as_usual)

    gc.callbacks.append(as_usual)
    gc.set_threshold(_OBJECTS_AT_START, *usual[1:])


def add_verb(verb: Callable[..., None]) -> None:
    """Add a function to the command line under its own name; its docstring is the help text."""
    app.command(cls=_SPECIAL.get(verb.__name__))(verb)


for name in VERBS:
    module = import_module(f"crosstrace.tracer.commands.{name}")
    if name == "attention":
        _SPECIAL[name] = module.PairedEdges
    add_verb(getattr(module, name))


app.add_typer(chat)
app.add_typer(labels)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib import metadata

        typer.echo(f"crosstrace {metadata.version('crosstrace')}")
        raise typer.Exit
