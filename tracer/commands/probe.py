"""`crosstrace probe`: fit a sparse read-out on latents, and test it beside what could do as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.tracer.commands.delivery import say_wrote
from crosstrace.tracer.commands.dictionaries import cards_of_dictionaries, open_to_read
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import (
    Debug,
    Device,
    DeviceMap,
    Dtype,
    ExcludeFirst,
    MemoryBudget,
    Model,
    Quiet,
    Saes,
    TextField,
    TranscodersOption,
)

if TYPE_CHECKING:
    from crosstrace.tracer.cards.naming import FeatureNames
    from crosstrace.tracer.probes.probe import Probe


def probe(
    positive: Annotated[
        Path, typer.Option("--positive", metavar="FILE", help="Texts that have the property: .txt or .jsonl.")
    ],
    negative: Annotated[Path, typer.Option("--negative", metavar="FILE", help="Texts that lack it: .txt or .jsonl.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Write the probe here (.safetensors).")
    ],
    sae: Saes = None,
    transcoders: TranscodersOption = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Pool a text's tokens by their mean; so it is unless said.")
    ] = False,
    last: Annotated[bool, typer.Option("--last", help="Read the text's last token alone.")] = False,
    largest: Annotated[bool, typer.Option("--max", help="Pool by each latent's largest activation.")] = False,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What it is a probe of.", show_default="the output's name")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the split, the folds and the bootstrap.")] = 0,
    text_field: TextField = "text",
    group_field: Annotated[
        str,
        typer.Option(
            "--group",
            metavar="NAME",
            help="Key of .jsonl that says which texts belong together, such as paraphrases; none of a group is both trained "
            "and tested on.",
        ),
    ] = "group",
    quiet: Quiet = False,
    debug: Debug = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    exclude_first: ExcludeFirst = None,
) -> None:
    """Fit a sparse logistic read-out on latents of SAEs or transcoders, and test it on texts of other groups.

    Example: crosstrace probe --positive texas.txt --negative elsewhere.txt --last -o texas.safetensors
    """
    if sum((mean, last, largest)) > 1:
        raise typer.BadParameter("--mean, --last and --max exclude each other")
    if output.suffix.lower() != ".safetensors":
        raise typer.BadParameter(f"{output}: probes are written as .safetensors")
    with one_line_errors(debug):
        from crosstrace.graphs.files import check_writable
        from crosstrace.tracer.cards.naming import FeatureNames
        from crosstrace.tracer.evaluation.measured_l0 import far_l0
        from crosstrace.tracer.probes.examples import read_examples
        from crosstrace.tracer.probes.fit import scikit_learn
        from crosstrace.tracer.probes.pooled import Pooling
        from crosstrace.tracer.probes.probe import fit_probe
        from crosstrace.tracer.reading.read import read
        from crosstrace.tracer.terminal.probe import show_probe

        check_writable(output)
        scikit_learn()
        having, lacking = (read_examples(path, text_field, group_field) for path in (positive, negative))
        base, used = open_to_read(model, sae, transcoders, device, dtype, memory_budget, device_map, exclude_first)
        for dictionary in read(base, having[0].text, used, top=1).dictionaries:
            if line := far_l0(dictionary.layers):
                note(f"{dictionary.name}: {line}")
        pooling = Pooling.LAST if last else Pooling.MAX if largest else Pooling.MEAN
        found = fit_probe(
            base, having, lacking, used, pooling, name=name or output.stem, seed=seed, progress=False if quiet else None
        )
        cards = cards_of_dictionaries(base, used)
        found = _named(found, [FeatureNames(base, cards.get(i), dictionary) for i, dictionary in enumerate(used)])
        found.save(output)
        if not quiet:
            show_probe(found)
            say_wrote(output)


def _named(probe: Probe, names: Sequence[FeatureNames]) -> Probe:
    """Return the probe with the names of its latents."""
    labels: dict[tuple[int, int, int], str] = {}
    for number, known in enumerate(names):
        keys = [(latent.layer, latent.feature) for latent in probe.latents if latent.dictionary == number]
        labels |= {(number, *key): label for key, label in known.of(keys).items()}
    latents = [
        dataclasses.replace(latent, label=labels[latent.dictionary, latent.layer, latent.feature])
        for latent in probe.latents
    ]
    return dataclasses.replace(probe, latents=latents)
