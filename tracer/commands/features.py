"""`crosstrace features`: make feature cards from a corpus, and look them up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.graphs.numbers import count
from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import say_wrote
from crosstrace.tracer.commands.dictionaries import open_to_read
from crosstrace.tracer.commands.messages import one_line_errors
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
    Quiet,
    Resume,
    Saes,
    TranscodersOption,
)
from crosstrace.tracer.commands.prompt_choice import ChatTemplate

if TYPE_CHECKING:
    from rich.console import Console

    from crosstrace.graphs.cards.feature_cards import FeatureCards, Key
    from crosstrace.replacement_model import LoadedModel
    from crosstrace.replacement_model.conversations import Record
    from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
    from crosstrace.replacement_model.texts import Corpus, Texts

_FOUND = 20
_MAKING = "Making cards"


def features(
    feature: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FEATURE", help="Cards to show: L3/417, or a word in labels, promoted tokens or contexts."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep, or show, N contexts of each feature.")
    ] = defaults.CARD_CONTEXTS,
    cards: CardsOption = None,
    export_json: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write the cards as JSON for public viewers: all of them, or those of each FEATURE."
        ),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            "-c",
            "--corpus",
            metavar="FILE",
            help="Make cards from these texts: .txt, .jsonl or .parquet. Repeatable.",
            rich_help_panel=_MAKING,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the cards here.",
            show_default="beside the transcoders",
            rich_help_panel=_MAKING,
        ),
    ] = None,
    text_field: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Key or column that holds the text in .jsonl and .parquet.", rich_help_panel=_MAKING
        ),
    ] = "text",
    skip_broken: Annotated[
        bool,
        typer.Option("--skip-broken", help="Leave broken lines out instead of stopping.", rich_help_panel=_MAKING),
    ] = False,
    context_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of a context, <bos> included.",
            show_default=str(defaults.CONTEXT_LENGTH),
            rich_help_panel=_MAKING,
        ),
    ] = None,
    logits: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Keep N promoted and N suppressed tokens.", rich_help_panel=_MAKING),
    ] = defaults.CARD_LOGITS,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Run N tokens at a time.",
            show_default="1024; on a GPU 32768",
            rich_help_panel=_MAKING,
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Keep up to N tokens of the texts with all that fires in them, beside the cards, for weights and label.",
            show_default="none",
            rich_help_panel=_MAKING,
        ),
    ] = 0,
    resume: Resume = False,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            metavar="FILE",
            help="In place of --corpus: conversations (.jsonl, one a line), as the chat template writes them.",
            rich_help_panel=_MAKING,
        ),
    ] = None,
    chat_template: ChatTemplate = None,
    model: Model = None,
    transcoders: TranscodersOption = None,
    sae: Saes = None,
    device: Device = None,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
    device_map: DeviceMap = None,
    exclude_first: ExcludeFirst = None,
) -> None:
    """Make feature cards of transcoders or SAEs from your own texts (--corpus), or look cards up.

    Example: crosstrace features --corpus texts.jsonl -o cards.safetensors

    Example: crosstrace features --model demo-chat --messages conversations.jsonl -o cards.safetensors

    Example: crosstrace features L3/417

    Example: crosstrace features resid_post/3/417 --sae FOLDER
    """
    if sae and transcoders:
        raise typer.BadParameter("--sae and --transcoders exclude each other: cards are of one dictionary")
    if sae and len(sae) > 1:
        raise typer.BadParameter("--sae is given several times; cards are made of one SAE or one family at a time")
    if corpus and messages:
        raise typer.BadParameter(
            "--corpus and --messages exclude each other: cards are made from texts or conversations"
        )
    making = bool(corpus) or messages is not None
    if making and cards is not None:
        raise typer.BadParameter("--cards names cards to look up; where they are made, -o says where they are written")
    for name, value in (
        ("--model", model),
        ("-o", output),
        ("--context-length", context_length),
        ("--batch-tokens", batch_tokens),
        ("--skip-broken", skip_broken),
        ("--sample", sample),
        ("--resume", resume),
    ):
        if value and not making:
            raise typer.BadParameter(
                f"{name} goes with --corpus or --messages; cards are looked up with --transcoders or --cards"
            )
    if exclude_first is not None and not making:
        raise typer.BadParameter(
            "--exclude-first goes with --corpus or --messages; cards say what was excluded when they were made"
        )
    chosen = (
        ModelChoice(model, transcoders, device, dtype, memory_budget, device_map, exclude_first, chat_template)
        if making and not sae
        else None
    )
    with one_line_errors(debug):
        if making:
            from crosstrace.replacement_model.conversations import read_conversations
            from crosstrace.replacement_model.texts import Corpus, Texts
            from crosstrace.tracer.cards.build import build_cards

            # The texts first: a wrong path should not cost the wait for a large model.
            conversations = read_conversations(messages) if messages else []
            source: Corpus | Texts = Corpus(corpus, text_field, skip_broken) if corpus else Texts([])
            base: LoadedModel
            dictionary: DictionaryInUse | None = None
            if chosen is None:
                base, [dictionary] = open_to_read(
                    model, sae, None, device, dtype, memory_budget, device_map, exclude_first, chat_template
                )
            else:
                base = chosen.load()
            if messages:
                source = _as_texts(conversations, messages.name, base)
            found = build_cards(
                base,
                source,
                output,
                context_length=context_length,
                top=top,
                logits=logits,
                batch_tokens=batch_tokens,
                resume=resume,
                progress=False if quiet else None,
                dictionary=dictionary,
                sample_tokens=sample,
            )
            _say_left_out(source)
            say_wrote(found.path)
            if not _used_by_itself(found):
                typer.echo(
                    f"to use these cards, give --cards {found.path}; without it, those beside the transcoders are used"
                )
        else:
            found = _open(cards, sae[0] if sae else transcoders)
        keys = _look_up(found, feature or [], top, quiet)
        if export_json is not None:
            from crosstrace.graphs.cards.neuronpedia import export_cards

            say_wrote(f"{export_cards(found, export_json, keys if feature else None):,} features to {export_json}")


def _as_texts(conversations: Sequence[Record], name: str, base: LoadedModel) -> Texts:
    """Write conversations out as the chat template does.

    Raises:
        ValueError: There is no template, or it refuses one, which is named.
    """
    from crosstrace.replacement_model.conversations import conversation_text
    from crosstrace.replacement_model.texts import Texts

    texts = []
    for one in conversations:
        try:
            texts.append(conversation_text(one.messages, base.tokenizer, base.name))
        except ValueError as problem:
            raise ValueError(f"{one.place}: {problem}") from None
    return Texts(texts, name)


def _used_by_itself(cards: FeatureCards) -> bool:
    """Whether verbs find these cards on their own: they lie where those of their transcoders are looked for."""
    from crosstrace.replacement_model.dictionaries.readers.card_places import cards_path

    try:
        return cards_path(cards.transcoders_name).resolve() == cards.path.resolve()
    except OSError:
        return False


def _say_left_out(corpus: Corpus | Texts) -> None:
    if corpus.empty or corpus.broken:
        examples = "; ".join(corpus.left_out)
        more = "; …" if corpus.empty + corpus.broken > len(corpus.left_out) else ""
        typer.echo(f"left out {corpus.empty:,} empty and {corpus.broken:,} broken texts ({examples}{more})", err=True)


def _open(cards: Path | None, transcoders: str | None) -> FeatureCards:
    """Open the cards that the options name.

    Raises:
        OSError: There are none; the message says how to make them.
    """
    from crosstrace.graphs.cards.feature_cards import FeatureCards
    from crosstrace.replacement_model import demo, demo_chat
    from crosstrace.replacement_model.dictionaries.readers.card_places import cards_path

    shipped = {"demo": demo.SAES_NAME, "demo-chat": demo_chat.TRANSCODERS_NAME}
    named = shipped.get(transcoders or "", transcoders)
    path = cards or cards_path(named or demo.TRANSCODERS_NAME)
    if cards is None and not path.is_file():
        raise FileNotFoundError(
            f"there are no cards in {path.parent}: make them with crosstrace features --corpus FILE"
        )
    return FeatureCards(path)


def _look_up(cards: FeatureCards, wanted: Sequence[str], top: int, quiet: bool) -> list[Key]:
    """Print the wanted cards, or an overview if none is named; return the (layer, feature) pairs."""
    from rich.console import Console

    from crosstrace.replacement_model.dictionaries.base import read_labels
    from crosstrace.replacement_model.dictionaries.latents import parse_latent
    from crosstrace.replacement_model.interventions.references import parse_feature
    from crosstrace.tracer.terminal.features.card import check_feature, overview, show_card

    labels = read_labels(cards.path.parent)
    console = Console(quiet=quiet)
    chosen: list[Key] = []
    for text in wanted:
        latent = parse_latent(text)
        if feature := parse_feature(text if latent is None else f"L{latent.layer}/{latent.feature}", labels.values()):
            key = (feature.layer, feature.feature)
            check_feature(cards, key)
            show_card(cards, key, console, labels.get(key, ""), top)
            chosen.append(key)
        else:
            chosen += _search(cards, text, labels, console)
    if not wanted:
        console.print(overview(cards))
    return chosen


def _search(cards: FeatureCards, text: str, labels: dict[Key, str], console: Console) -> list[Key]:
    """Print and return the features with a text in their label, promoted tokens or contexts; given labels come first.

    Raises:
        ValueError: There are none.
    """
    from crosstrace.tracer.terminal.features.card import feature_table

    wanted = text.casefold()
    found = {key: "label" for key, label in sorted(labels.items()) if wanted in label.casefold() and key in cards}
    found |= {key: where for key, where in cards.find(text).items() if key not in found}
    if not found:
        raise ValueError(f"no feature has {text!r} in its label, among the tokens it promotes, or in its contexts")
    keys = list(found)[:_FOUND]
    title = f"{count(len(found), 'feature')} with {text!r}" + (f", the first {_FOUND}" if len(found) > _FOUND else "")
    console.print(feature_table(cards, keys, labels, title, found))
    return keys
