"""`crosstrace train`: train transcoders, a cross-layer transcoder or SAEs on texts."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import say_wrote
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import (
    CorpusFiles,
    Debug,
    Device,
    Dtype,
    ExcludeFirst,
    Model,
    Quiet,
    Resume,
    SkipBroken,
    TextField,
)

if TYPE_CHECKING:
    from crosstrace.replacement_model.base_model import BaseModel
    from crosstrace.replacement_model.texts import Corpus
    from crosstrace.replacement_model.training.runs.record import TrainingRecord
    from crosstrace.replacement_model.training.settings import TrainingSettings

_RUN = "The run"
_WHAT = "What is trained"


class Kind(StrEnum):
    """What can be trained."""

    clt = "clt"
    transcoders = "transcoders"
    sae = "sae"


class SaeSite(StrEnum):
    """What SAEs can read and write."""

    resid_post = "resid_post"
    mlp_out = "mlp_out"
    attn_out = "attn_out"


def train(
    kind: Annotated[
        Kind, typer.Argument(metavar="KIND", help="clt (cross-layer), transcoders (one for each layer) or sae.")
    ],
    corpus: CorpusFiles,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the dictionary goes, and the run's state.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="laptop, gemma-scope-2, anthropic-2025, batch-topk, a TOML file, or a run's training.json.",
            show_default="laptop",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    features: Annotated[
        int | None,
        typer.Option(metavar="F", help="Features of each layer.", show_default="recipe", rich_help_panel=_WHAT),
    ] = None,
    l0: Annotated[
        float | None,
        typer.Option(
            "--l0",
            metavar="K",
            help="Active features for each token and layer.",
            show_default="recipe",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    skip: Annotated[
        bool, typer.Option("--skip", help="Give transcoders an affine skip connection.", rich_help_panel=_WHAT)
    ] = False,
    site: Annotated[
        SaeSite | None,
        typer.Option(
            "--site",
            metavar="SITE",
            help="What SAEs read: resid_post, mlp_out or attn_out.",
            show_default="recipe",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Layers, such as 4,9,15 or 0-5; not for a clt.",
            show_default="all",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    initialise_from: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Start a clt from these per-layer transcoders.", rich_help_panel=_WHAT),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train on N tokens.", show_default="recipe", rich_help_panel=_RUN),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="Train for M minutes, fine-tuning included, evaluation not.",
            show_default="recipe",
            rich_help_panel=_RUN,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="The seed of everything random.", show_default="recipe", rich_help_panel=_RUN),
    ] = None,
    resume: Resume = False,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for weights, Adam's moments and the activation buffer, such as 8GB.",
            show_default="80 % of what is free",
            rich_help_panel=_RUN,
        ),
    ] = None,
    spill: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep the activation buffer on disk, in this folder.", rich_help_panel=_RUN
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="CPU threads.", show_default="all cores", rich_help_panel=_RUN),
    ] = None,
    evaluation_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Evaluate on N tokens of held-out documents at the end; 0: leave it out.",
            rich_help_panel=_RUN,
        ),
    ] = 16384,
    text_field: TextField = "text",
    skip_broken: SkipBroken = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    exclude_first: ExcludeFirst = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a dictionary on texts, resumable at any moment; written as Gemma Scope 2's files are.

    Example: crosstrace train clt --model gemma-3-270m --corpus texts.jsonl -o my-clt --minutes 30

    Example: crosstrace train sae --site resid_post --layers 9 --model gemma-3-270m --corpus texts.txt -o my-sae
    """
    if tokens is not None and minutes is not None:
        raise typer.BadParameter("--tokens and --minutes exclude each other: one of them is the length of the run")
    given: dict[str, Any] = {
        "kind": kind.value,
        "features": features,
        "l0": l0,
        "skip": skip or None,
        "site": site.value if site else None,
        "layers": None if layers is None else _layers(layers),
        "initialise_from": initialise_from,
        "tokens": tokens,
        "minutes": minutes,
        "seed": seed,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    with one_line_errors(debug):
        import torch

        from crosstrace.replacement_model import BaseModel, Corpus
        from crosstrace.replacement_model.training.data.capture import to_fast_dtype
        from crosstrace.replacement_model.training.runs.run import recorded_threads
        from crosstrace.replacement_model.training.runs.run import train as run_training
        from crosstrace.tracer.cards.run import asked_to_stop
        from crosstrace.tracer.commands.model_choice import check_device, parse_dtype
        from crosstrace.tracer.terminal.training import show_training, training_progress

        settings = _settings(recipe, output, resume, changes)
        texts = Corpus(corpus, text_field, skip_broken)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # torchrun and accelerate launch set it
        silent = quiet or os.environ.get("RANK", "0") != "0"  # process 0 speaks
        if several and device is None and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        check_device(device)
        if (number := threads or (recorded_threads(output) if resume else None)) is not None:
            torch.set_num_threads(number)
        base = BaseModel.from_pretrained(model or "demo", device, parse_dtype(dtype), exclude_first)
        if dtype is None:
            to_fast_dtype(base)
        with (
            asked_to_stop() as asked,
            training_progress(asked, False if silent else None) as watcher,
        ):
            record = run_training(
                base,
                texts,
                output,
                settings,
                resume=resume,
                memory_budget=memory_budget,
                spill=spill,
                watcher=watcher,
            )
        if several and os.environ.get("RANK", "0") != "0":
            return
        if not quiet:
            show_training(record)
        _draw(record, output)
        if evaluation_tokens:
            _evaluate(base, texts, settings, output, evaluation_tokens, quiet)
        say_wrote(output)
        if not quiet:
            _say_next(kind, model, output, corpus)


def _settings(recipe: str | None, output: Path, resume: bool, changes: dict[str, Any]) -> TrainingSettings:
    """The recipe with what options change; a resumed run's own where no recipe is named."""
    from crosstrace.replacement_model.training.runs.record import FILE
    from crosstrace.replacement_model.training.settings import DEFAULT_RECIPE, load_recipe

    if recipe is None and resume and (output / FILE).is_file():
        return load_recipe(output / FILE, **changes)
    return load_recipe(recipe or DEFAULT_RECIPE, **changes)


def _layers(text: str) -> list[int]:
    """Layers as they are written: `4,9,15`, `0-5`, or both."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"--layers {text}: expected numbers and ranges, such as 4,9,15 or 0-5")
        found |= set(range(int(first), int(last or first) + 1))
    return sorted(found)


def _draw(record: TrainingRecord, folder: Path) -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        note("no curves.svg without matplotlib; pip install 'crosstrace[train]'")
        return
    from crosstrace.tracer.terminal.training_curves import draw_curves

    draw_curves(record.curves, folder / "curves.svg")


def _evaluate(
    base: BaseModel, texts: Corpus, settings: TrainingSettings, folder: Path, tokens: int, quiet: bool
) -> None:
    """Measure what was trained on the held-out documents, and write `report.json`."""
    from crosstrace.replacement_model import Texts, open_sae, open_transcoders
    from crosstrace.replacement_model.training.data.documents import Documents
    from crosstrace.tracer.evaluation.evaluate import evaluate
    from crosstrace.tracer.terminal.evaluation import show_evaluation

    # Each layer alone is a run of its own: on a quarter of few tokens it would still take most of the time.
    alone = min(defaults.EVALUATION_LAYER_TOKENS, tokens // 4)
    held_out = Documents(texts, settings.held_out_share).some_held_out(tokens)
    if not held_out:
        note("no document is held out, so nothing is evaluated; held_out_share in the recipe sets the share")
        return
    reader = open_sae(folder) if settings.kind == "sae" else open_transcoders(folder)
    show = False if quiet else None
    report = evaluate(base, reader, Texts(held_out, "held-out documents"), tokens, layer_tokens=alone, progress=show)
    report.write(folder / "report.json")
    if not quiet:
        show_evaluation(report)


def _say_next(kind: Kind, model: str | None, folder: Path, corpus: list[Path]) -> None:
    """Name the commands that come next, ready to be copied."""
    import shlex

    option = "--sae" if kind is Kind.sae else "--transcoders"
    chosen = shlex.join([*(["--model", model] if model else ["--model", "demo"]), option, str(folder)])
    typer.echo("next:")
    if kind is Kind.sae:
        typer.echo(f"  crosstrace evaluate {chosen} --corpus OTHER-TEXTS")
        return
    typer.echo(f"  crosstrace features {chosen} {shlex.join(['--corpus', *map(str, corpus[:1])])}")
    typer.echo(f"  crosstrace trace PROMPT {chosen} -o graph.html")
