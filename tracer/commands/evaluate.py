"""`crosstrace evaluate`: how good a dictionary is, on texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import write_each
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import (
    BatchTokens,
    ContextLength,
    CorpusFiles,
    Debug,
    Device,
    DeviceMap,
    Dtype,
    ExcludeFirst,
    MemoryBudget,
    Model,
    Quiet,
    SaeOption,
    SkipBroken,
    TextField,
    TranscodersOption,
)


def evaluate(
    corpus: CorpusFiles,
    transcoders: TranscodersOption = None,
    sae: SaeOption = None,
    output: Annotated[
        list[Path] | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the report here (.json)."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Measure on N tokens, the first of the texts.")
    ] = defaults.EVALUATION_TOKENS,
    layer_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Replace single layers on N of them; that is a run for each layer. 0: leave it out.",
        ),
    ] = defaults.EVALUATION_LAYER_TOKENS,
    quiet: Quiet = False,
    debug: Debug = False,
    text_field: TextField = "text",
    skip_broken: SkipBroken = False,
    context_length: ContextLength = None,
    batch_tokens: BatchTokens = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    exclude_first: ExcludeFirst = None,
) -> None:
    """Measure transcoders or SAEs on texts that they were not trained on: FVU, L0, dead features, and what they cost the model.

    Example: crosstrace evaluate --transcoders FOLDER --model gemma-3-270m --corpus held-out.txt -o report.json
    """
    if transcoders and sae:
        raise typer.BadParameter("--transcoders and --sae exclude each other: one dictionary is measured at a time")
    from crosstrace.replacement_model.embedded import embedded_model

    own = embedded_model(model or "demo")
    if not transcoders and not sae and own is None:
        raise typer.BadParameter(
            "--model goes with --transcoders or --sae; without both, the demo's transcoders are used"
        )
    for path in output or ():
        if path.suffix.lower() != ".json":
            raise typer.BadParameter(f"{path}: reports are written as .json")
    with one_line_errors(debug):
        from crosstrace.graphs.files import check_writable
        from crosstrace.replacement_model import BaseModel, Corpus, open_transcoders
        from crosstrace.tracer.attribution.named_saes import open_named_sae
        from crosstrace.tracer.commands.model_choice import check_device, parse_dtype
        from crosstrace.tracer.evaluation.evaluate import evaluate as measure
        from crosstrace.tracer.evaluation.evaluate import in_use
        from crosstrace.tracer.evaluation.measured_l0 import MeasuredL0, far_l0
        from crosstrace.tracer.terminal.evaluation import show_evaluation

        for path in output or ():
            check_writable(path)
        texts = Corpus(corpus, text_field, skip_broken)
        used_dtype = parse_dtype(dtype)
        check_device(device)
        # The dictionary first: a wrong path should not cost the wait for a large model.
        if own is None or sae or transcoders:
            reader = open_named_sae(sae) if sae else open_transcoders(str(transcoders))
        else:
            reader = open_transcoders(own.transcoders)
            reader.name = own.transcoders_name
        base = BaseModel.from_pretrained(model or "demo", device, used_dtype, exclude_first, device_map)
        used = in_use(reader, base, used_dtype, memory_budget)
        report = measure(
            base,
            used,
            texts,
            tokens,
            layer_tokens=layer_tokens,
            context_length=context_length,
            batch_tokens=batch_tokens,
            progress=False if quiet else None,
        )
        delivery = write_each(output, report.write, debug)
        if not quiet:
            show_evaluation(report)
        if far := far_l0(MeasuredL0(layer.layer, layer.l0, layer.l0_config) for layer in report.layers):
            note(far)
        if report.tokens < tokens:
            note(f"the texts have only {report.tokens:,} tokens that count, not {tokens:,}")
        delivery.finish(quiet)
