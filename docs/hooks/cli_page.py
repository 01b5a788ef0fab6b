"""The command line reference, `cli.md`, made from the commands themselves whenever the site is built."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGE = "cli.md"
_INTRODUCTION = """# Command line

Made from the code when this site is built; `crosstrace VERB --help` shows the same in the terminal. `crosstrace --version`
prints the version.

Exit codes: 0 done, 1 it failed, 2 wrong usage. An error is one line on standard error that names what was wrong and what
would be right; `--debug` shows the stack trace. Files are written whole or not at all.
"""
_METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}


class _Parameter(NamedTuple):
    """An argument or option of a verb, as the table shows it."""

    is_option: bool
    names: str
    usage: str
    default: str
    help: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, PAGE, content=command_line_page()))
    return files


def command_line_page() -> str:
    """Describe every verb with its arguments, options and defaults, in Markdown."""
    from crosstrace.tracer.commands.app import app

    groups = [
        ("", app),
        *((f"{group.typer_instance.info.name} ", group.typer_instance) for group in app.registered_groups),
    ]
    verbs = [
        _verb(command.callback, f"{before}{command.name or command.callback.__name__}")
        for before, group in groups
        for command in group.registered_commands
        if command.callback is not None
    ]
    return "\n".join([_INTRODUCTION, *verbs])


def parameters_of(verb: Callable[..., Any]) -> list[_Parameter]:
    """List what a verb takes, in the order of its signature."""
    hints = typing.get_type_hints(verb, include_extras=True)
    return [_parameter(name, hints[name], given.default) for name, given in inspect.signature(verb).parameters.items()]


def _verb(verb: Callable[..., Any], name: str) -> str:
    parameters = parameters_of(verb)
    usage = " ".join(parameter.usage for parameter in parameters if not parameter.is_option)
    lines = [
        f"## {name}",
        "",
        _help(inspect.getdoc(verb)),
        "",
        "```text",
        f"crosstrace {name} [OPTIONS] {usage}",
        "```",
        "",
    ]
    for title, is_option in (("Argument", False), ("Option", True)):
        rows = [
            f"| {_cell(parameter.names)} | {_cell(parameter.default)} | {_cell(parameter.help)} |"
            for parameter in parameters
            if parameter.is_option == is_option
        ]
        if rows:
            lines += [f"| {title} | Default | What it does |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _parameter(name: str, hint: Any, default: Any) -> _Parameter:
    kind, info = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, typer.Option())
    kind, repeatable = _plain(kind)
    values = "|".join(str(value.value) for value in kind) if issubclass(kind, Enum) else _METAVARS.get(kind, "TEXT")
    metavar = info.metavar or values
    required = default is inspect.Parameter.empty
    shown = info.show_default if isinstance(info.show_default, str) else _shown(default)
    if isinstance(info, typer.models.ArgumentInfo):
        metavar = info.metavar or name.upper()
        usage = f"{metavar}{'...' if repeatable else ''}"
        return _Parameter(False, f"`{metavar}`", usage if required else f"[{usage}]", shown, info.help or "")
    declared = (info.default, *(info.param_decls or ()))  # inside of Annotated the first flag takes the default's place
    flags = [flag for flag in declared if isinstance(flag, str) and flag.startswith("-")]
    flags = flags or [f"--{name.replace('_', '-')}"]
    flags[-1] += "" if kind is bool else f" {metavar}"
    return _Parameter(
        True, ", ".join(f"`{flag}`" for flag in flags), "", "required" if required else shown, info.help or ""
    )


def _plain(kind: Any) -> tuple[type, bool]:
    """A parameter's type without `None` and `list`, and whether it may be given several times."""
    if get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is list:
        return get_args(kind)[0], True
    return kind, False


def _shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or default is False:
        return ""
    return f"`{getattr(default, 'value', default)}`"


def _help(text: str | None) -> str:
    """The docstring as Markdown: what follows `Example:` as a code block."""
    prose, *examples = re.split(r"\n?Examples?:\s*", text or "")
    block = "\n".join(line for example in examples for line in re.split(r";\s+|\n\s*and\s+", example.strip()))
    return prose.strip() + (f"\n\n```sh\n{block}\n```" if block else "")


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|")
    if text.startswith("`"):  # code
        return " ".join(escaped.replace("\\[", "[").split())
    # An escaped bracket stays so: two pairs of them would be a reference.
    return " ".join(escaped.replace("<", "&lt;").replace("*", "\\*").split())
