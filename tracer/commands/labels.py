"""`crosstrace labels …`: sets of labels: imported, tested by the letter, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer.commands.delivery import say_wrote
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import Debug, Quiet

labels = typer.Typer(
    name="labels",
    help="Sets of labels: bring them in from elsewhere, compare two.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@labels.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Neuronpedia's explanations (.jsonl, .jsonl.gz, a folder of them, or .json), or a labels.json.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write or extend this labels.json; labels that a person gave stay."
        ),
    ] = Path("labels.json"),
    cards: Annotated[
        Path | None,
        typer.Option(
            "--cards", metavar="FILE", help="Test the labels by the letter, on the sample beside these cards."
        ),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bring labels in by (layer, feature), with who made them.

    Example: crosstrace labels import explanations.jsonl -o clt/labels.json
    """
    with one_line_errors(debug):
        from crosstrace.graphs import FeatureCards
        from crosstrace.graphs.files import check_writable
        from crosstrace.tracer.labels.excerpts import FeatureContexts
        from crosstrace.tracer.labels.label_set import read_label_set, write_label_set
        from crosstrace.tracer.labels.labelling import LabelRun, literal_tests
        from crosstrace.tracer.samples.sample import sample_of_cards
        from crosstrace.tracer.terminal.features.labels import said_of

        check_writable(output)
        found = read_label_set(file)
        n_layers = 0
        if cards is not None:
            opened = FeatureCards(cards)
            n_layers = opened.n_layers
            if wrong := [key for key in found if key[0] >= n_layers or key[1] >= opened.n_features[key[0]]]:
                raise ValueError(
                    f"{file} names L{wrong[0][0]}/{wrong[0][1]}, which the transcoders of {cards} do not have"
                )
            sample = sample_of_cards(opened)
            if sample is None:
                note("there is no sample beside the cards, so that labels are not tested")
            else:
                found = literal_tests(FeatureContexts(opened, sample), found)
        kept = write_label_set(output, found, n_layers)
        if not quiet:
            typer.echo(said_of(LabelRun(found)) if cards is not None else f"{len(found):,} labels")
        if kept:
            note(f"{kept:,} features have a label that a person gave; it stays")
        say_wrote(output)


@labels.command("diff")
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A labels.json, its folder, or explanations.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Print N differences.")] = 40,
    debug: Debug = False,
) -> None:
    """Show what two sets of labels do not call the same.

    Example: crosstrace labels diff clt/labels.json new.json
    """
    with one_line_errors(debug):
        from crosstrace.tracer.labels.label_set import label_differences, read_label_set
        from crosstrace.tracer.terminal.features.labels import show_differences

        one, other = read_label_set(first), read_label_set(second)
        show_differences(label_differences(one, other), (str(first), str(second)), len(one.keys() & other.keys()), rows)
