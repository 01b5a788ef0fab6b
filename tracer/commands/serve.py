"""`crosstrace serve`: a page and an API around one model, on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.tracer import defaults
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.model_choice import ModelChoice
from crosstrace.tracer.commands.options import (
    CardsOption,
    Debug,
    Device,
    DeviceMap,
    Dtype,
    ExcludeFirst,
    MemoryBudget,
    Model,
    OpenIt,
    Quiet,
    TranscodersOption,
)
from crosstrace.tracer.commands.prompt_choice import ChatTemplate

if TYPE_CHECKING:
    from crosstrace.tracer.server.core.models import Served

_SAFETY = "Who may use it"
_LIMITS = "Limits"


def serve(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="P", help="Listen on this port; 0 for a free one.")
    ] = defaults.SERVE_PORT,
    host: Annotated[
        str,
        typer.Option(
            metavar="H",
            help="Listen on this address; any but this machine's own needs --secret.",
            rich_help_panel=_SAFETY,
        ),
    ] = "127.0.0.1",
    secret: Annotated[
        str | None,
        typer.Option(
            "--secret",
            metavar="S",
            envvar="CROSSTRACE_SECRET",
            help="Ask everybody for it: programs in the header x-secret-key, people on the page.",
            rich_help_panel=_SAFETY,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A further name that this server is reached by. Repeatable.", rich_help_panel=_SAFETY
        ),
    ] = None,
    allow_uploads: Annotated[
        bool,
        typer.Option("--allow-uploads", help="Let /generate-graph send graphs to https URLs.", rich_help_panel=_SAFETY),
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep the graphs here.", show_default="crosstrace in the user's data folder"
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Keep graphs up to this size; the oldest go first.", rich_help_panel=_LIMITS),
    ] = defaults.SERVE_KEPT,
    max_tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="Take prompts of at most N tokens.", rich_help_panel=_LIMITS)
    ] = defaults.SERVE_PROMPT_TOKENS,
    max_feature_nodes: Annotated[
        int, typer.Option(min=0, metavar="N", help="Trace at most N features for a request.", rich_help_panel=_LIMITS)
    ] = defaults.SERVE_FEATURE_NODES,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Generate at most N tokens for a request.", rich_help_panel=_LIMITS)
    ] = defaults.SERVE_NEW_TOKENS,
    queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Let at most N requests wait.", rich_help_panel=_LIMITS)
    ] = defaults.SERVE_QUEUE,
    open_it: OpenIt = False,
    quiet: Quiet = False,
    debug: Debug = False,
    cards: CardsOption = None,
    model: Model = None,
    transcoders: TranscodersOption = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    exclude_first: ExcludeFirst = None,
    chat_template: ChatTemplate = None,
) -> None:
    """Serve a page to trace and steer on, and the API of Neuronpedia's graph server.

    Without --model it serves both embedded demos.

    Example: crosstrace serve --open
    """
    with one_line_errors(debug):
        _check_installed()
        from crosstrace.replacement_model.memory import parse_bytes
        from crosstrace.tracer.server.core.settings import Limits, ServeSettings
        from crosstrace.tracer.server.listening import bound, listen

        settings = ServeSettings(
            folder or data_folder(),
            host,
            secret,
            tuple(allow_host or ()),
            parse_bytes(keep),
            allow_uploads,
            cards,
            Limits(max_tokens, max_feature_nodes, max_new_tokens, queue),
        )
        names = [model] if model is not None or transcoders is not None else ["demo", "demo-chat"]
        choices = [
            ModelChoice(name, transcoders, device, dtype, memory_budget, device_map, exclude_first, chat_template)
            for name in names
        ]
        with bound(host, port) as listening:
            served = [_served(choice, cards) for choice in choices]
            listen(listening, served, settings, quiet, open_it)


def _served(choice: ModelChoice, cards: Path | None) -> Served:
    from crosstrace.tracer.server.core.models import Served

    return Served.of(choice.load(), choice.model or "demo", cards, note)


def data_folder() -> Path:
    """Return where graphs are kept unless a folder is named: `$XDG_DATA_HOME/crosstrace`, or `~/.local/share/crosstrace`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "crosstrace"


def _check_installed() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f'serve needs {" and ".join(missing)}; install with: pip install "crosstrace[serve]"')
