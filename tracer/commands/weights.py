"""`crosstrace weights`: what features do to each other whatever the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import write_each
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.model_choice import ModelChoice
from crosstrace.tracer.commands.options import (
    CardsOption,
    ContextLength,
    Debug,
    Device,
    Dtype,
    MemoryBudget,
    Model,
    Quiet,
    SkipBroken,
    TextField,
    TranscodersOption,
)

if TYPE_CHECKING:
    from crosstrace.graphs import FeatureCards
    from crosstrace.replacement_model import Corpus, ReplacementModel
    from crosstrace.tracer.samples.sample import CorpusSample
    from crosstrace.tracer.virtual_weights.compute import Key
    from crosstrace.tracer.virtual_weights.paths import Head

_ALL_HEADS = "all"


def weights(
    feature: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FEATURE", help="Features: L3/417, or a label such as Texas.", show_default="all, to a file"
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep N inputs and N outputs of each feature.")
    ] = defaults.STRONGEST_WEIGHTS,
    show: Annotated[int, typer.Option(min=1, metavar="N", help="Print N of them.")] = 10,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="RANKING",
            help="virtual: by the virtual weight; expected: by its expectation over the sample (TWERA).",
        ),
    ] = "virtual",
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER.HEAD",
            help="Paths through this head, such as 2.3, or all, in place of the residual stream alone. Repeatable.",
        ),
    ] = None,
    export: Annotated[
        list[Path] | None,
        typer.Option(
            "--export",
            metavar="FILE",
            help="Write the links as a sparse matrix: .npz for scipy, or .safetensors; as cards.weights.safetensors beside "
            "cards.safetensors, cards and pages show them. Repeatable.",
        ),
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The sample of a corpus (features --sample).", show_default="the one beside the cards"
        ),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option("-c", "--corpus", metavar="FILE", help="Take a sample of these texts instead. Repeatable."),
    ] = None,
    sample_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep at most N tokens of the texts.")
    ] = defaults.SAMPLE_TOKENS,
    text_field: TextField = "text",
    skip_broken: SkipBroken = False,
    context_length: ContextLength = None,
    cards: CardsOption = None,
    quiet: Quiet = False,
    debug: Debug = False,
    model: Model = None,
    transcoders: TranscodersOption = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
) -> None:
    """Show what feeds features and what they feed, whatever the prompt: virtual weights, and their expectation over texts.

    Example: crosstrace weights Texas --by expected

    Example: crosstrace weights L3/417 --head 4.2

    Example: crosstrace weights --export cards.weights.safetensors
    """
    from crosstrace.tracer.virtual_weights.rankings import RANKINGS

    if by not in RANKINGS:
        raise typer.BadParameter(f"--by {by} is not known; it is {' or '.join(RANKINGS)}")
    if not feature and not export:
        raise typer.BadParameter("name features, such as L3/417, or a file for all of them with --export")
    if sample and corpus:
        raise typer.BadParameter("--sample and --corpus exclude each other")
    if head and by != "virtual":
        raise typer.BadParameter("--head goes with --by virtual: the expectation is of paths at one position")
    choice = ModelChoice(model, transcoders, device, dtype, memory_budget)
    with one_line_errors(debug):
        from crosstrace.graphs.files import check_writable
        from crosstrace.replacement_model import Corpus, weight_fingerprints
        from crosstrace.tracer.cards.lookup import find_cards
        from crosstrace.tracer.cards.naming import FeatureNames
        from crosstrace.tracer.terminal.features.weights import said_of, show_weights
        from crosstrace.tracer.virtual_weights.compute import global_weights
        from crosstrace.tracer.virtual_weights.files import check_weights_suffix, write_weights

        for path in export or ():
            check_weights_suffix(path)
            check_writable(path)
        texts = Corpus(corpus, text_field, skip_broken) if corpus else None
        loaded = choice.load()
        fingerprints = weight_fingerprints(loaded)
        found_cards = find_cards(loaded.name, loaded.transcoders.name, fingerprints, given=cards, note=note)
        chosen = _chosen(loaded, feature or [])
        drawn = _sample(loaded, found_cards, sample, texts, sample_tokens, context_length, quiet)
        heads = _heads(loaded, head or [])
        found = global_weights(loaded, chosen or None, sample=drawn, top=top, by=by, heads=heads)
        labels = loaded.transcoders.labels
        delivery = write_each(
            export,
            lambda path: write_weights(found, path, fingerprints, labels),
            debug,
        )
        if not quiet and feature:
            listed = found.first(show)
            show_weights(listed, FeatureNames(loaded, found_cards).of(listed.named()))
        elif not quiet:
            typer.echo(said_of(found))
        delivery.finish(quiet)


def _chosen(model: ReplacementModel, wanted: list[str]) -> list[Key]:
    """Return the features that are named, by number or by label.

    Raises:
        ValueError: A name is not known.
    """
    from crosstrace.replacement_model import FeatureAt
    from crosstrace.replacement_model.interventions.references import find_features

    chosen: list[Key] = []
    for text in wanted:
        found = find_features(text, model.transcoders.labels)
        members = [found] if isinstance(found, FeatureAt) else found.members
        chosen += [(member.layer, member.feature) for member in members if isinstance(member, FeatureAt)]
    return list(dict.fromkeys(chosen))


def _heads(model: ReplacementModel, wanted: list[str]) -> list[Head]:
    from crosstrace.tracer.attention.references import parse_head

    size = model.description
    if _ALL_HEADS in wanted:
        return [(layer, head) for layer in range(size.n_layers) for head in range(size.n_heads)]
    return [parse_head(text) for text in wanted]


def _sample(
    model: ReplacementModel,
    cards: FeatureCards | None,
    given: Path | None,
    texts: Corpus | None,
    tokens: int,
    context_length: int | None,
    quiet: bool,
) -> CorpusSample:
    """Return the sample that the options name, the one beside the cards, or one of an embedded demo's own sentences.

    Raises:
        ValueError: There is none; the message says how to make one.
    """
    from crosstrace.tracer.samples.build import build_sample
    from crosstrace.tracer.samples.embedded import embedded_corpus
    from crosstrace.tracer.samples.sample import CorpusSample, sample_of_cards

    if given is not None:
        return CorpusSample(given)
    if texts is None:
        if cards is not None and (beside := sample_of_cards(cards)) is not None:
            return beside
        own = embedded_corpus(model)
        if own is None:
            raise ValueError(
                "virtual weights need the typical sizes of the norms: give texts with --corpus, or take a sample while making "
                "cards (crosstrace features --corpus FILE --sample 50000)"
            )
        return build_sample(model, own, tokens=tokens, progress=False)
    return build_sample(model, texts, tokens=tokens, context_length=context_length, progress=False if quiet else None)
