"""Feature cards in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crosstrace.graphs.cards.feature_cards import FeatureCards, Key
from crosstrace.graphs.numbers import count, plain, share, signed
from crosstrace.graphs.text import distinct, short, visible
from crosstrace.tracer.terminal.tables import add_numbers, add_row, add_words, beside, plain_table

_BARS = " ▁▂▃▄▅▆▇█"
# From weak activations to the largest, readable on dark and on light backgrounds.
_COLD, _HOT = (64, 60, 48), (214, 110, 0)
_LEVELS = 5
_LINKS = 6


def show_card(
    cards: FeatureCards,
    key: Key,
    console: Console,
    label: str = "",
    contexts: int = 10,
    extra: Sequence[RenderableType] = (),
) -> None:
    """Print a feature's card.

    Args:
        cards: The cards.
        key: The feature, as (layer, feature).
        console: Where to print.
        label: Its name, if somebody gave it one; otherwise the automatic label is shown.
        contexts: How many of its top contexts to show.
        extra: Lines about it from elsewhere, shown before the contexts.

    Raises:
        ValueError: The feature does not exist, or did not fire in the cards' corpus.
    """
    check_feature(cards, key)
    card = cards[key]
    name = f"L{key[0]}/{key[1]}"
    title = Text.assemble((f" {name} ", "bold"), (f"{visible(label or card['label'])} ", "bold cyan"))
    parts: list[RenderableType] = [
        Text.assemble(
            "fires on ",
            (share(card["firing_rate"]), "bold"),
            f" of {cards.positions:,} tokens, at most ",
            (plain(card["max_activation"]), "bold"),
            *((f"   {short(card['label'], 60)}", "dim") for _ in range(1) if label),
        ),
        Text.assemble(
            "0 ", (_sparkline(card["histogram"]["counts"]), "cyan"), f" {plain(card['histogram']['edges'][-1])}"
        ),
        *_direct_effect(card["promoted"], card["suppressed"], within(console)),
        *_links(card, within(console)),
        *extra,
        Text(),
        _contexts(card["contexts"][:contexts], card["max_activation"], console.color_system is not None),
    ]
    console.print(Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, padding=(0, 1)))


def within(console: Console) -> int:
    """Return how wide what stands in a card's frame can be."""
    return console.width - 4


def check_feature(cards: FeatureCards, key: Key) -> None:
    """Check that a feature has a card.

    Args:
        cards: The cards.
        key: The feature, as (layer, feature).

    Raises:
        ValueError: The feature does not exist, or did not fire in the cards' corpus.
    """
    layer, feature = key
    if layer >= cards.n_layers or feature >= cards.n_features[layer]:
        wanted = f"layers 0 to {cards.n_layers - 1}"
        if layer < cards.n_layers:
            wanted = f"layer {layer} has features 0 to {cards.n_features[layer] - 1}"
        raise ValueError(f"there is no feature L{layer}/{feature} in {cards.path}: {wanted}")
    if key not in cards:
        names = ", ".join(cards.corpus["names"])
        raise ValueError(
            f"feature L{layer}/{feature} did not fire in the corpus of {cards.path} ({names}, {cards.positions:,} tokens)"
        )


def overview(cards: FeatureCards) -> RenderableType:
    """Describe what a file of cards holds: its corpus, and a table of its layers."""
    corpus, settings = cards.corpus, cards.settings
    names = short(", ".join(corpus["names"]), 60)
    lines = Text.assemble(
        (f"{visible(cards.model_name)}  ·  {visible(cards.transcoders_name)}\n", "bold"),
        f"{names}: {corpus['texts']:,} texts, {corpus['contexts']:,} contexts of up to {settings['context_length']} tokens, "
        f"{corpus['tokens']:,} tokens; the first {settings['excluded_first']} of each context excluded\n",
        f"{len(cards):,} of {sum(cards.n_features):,} features fired; up to {settings['contexts']} contexts each",
    )
    table = plain_table("")
    add_numbers(table, "layer", "features", "fired", "never\nfired", "fires on\n(median)", "active\nper token")
    for layer, (features, rates) in enumerate(zip(cards.n_features, cards.firing_rates(), strict=True)):
        if not features:  # a layer that the dictionary lacks
            continue
        median = share(sorted(rates)[len(rates) // 2]) if len(rates) else ""
        cells = (count(features), count(len(rates)), share(1 - len(rates) / max(features, 1)), median)
        add_row(table, str(layer), *cells, plain(sum(rates)))
    return Group(lines, table)


def feature_table(
    cards: FeatureCards,
    keys: Sequence[Key],
    labels: Mapping[Key, str],
    title: str,
    found: Mapping[Key, str] | None = None,
) -> Table:
    """Make a table of some features, one line each.

    Args:
        cards: The cards.
        keys: The features, as (layer, feature).
        labels: Names that somebody gave to features; the others get the automatic label.
        title: The title of the table.
        found: Where in each card a text was found, in a column of its own.
    """
    table = plain_table(title)
    table.add_column("feature", style="bold", no_wrap=True)
    add_words(table, "label")
    if found is not None:
        add_words(table, "found in")
    add_numbers(table, "fires on")
    add_words(table, "promotes")
    add_words(table, "strongest context")
    for key in keys:
        card = cards[key]
        context = card["contexts"][0]
        low = max(context["peak"] - 8, 0)
        tokens, acts = context["tokens"][low : context["peak"] + 4], context["activations"][low : context["peak"] + 4]
        promoted = ", ".join(distinct([token for token, _ in card["promoted"][:3]], limit=14))
        words = marked(tokens, acts, context["peak"] - low, card["max_activation"], False)
        label = short(labels.get(key) or card["label"], 32)
        where = [found[key].removeprefix("automatic ")] if found is not None else []  # those begin with a mark
        add_row(table, f"L{key[0]}/{key[1]}", label, *where, share(card["firing_rate"]), promoted, words)
    return table


def _sparkline(counts: Sequence[int]) -> str:
    """Draw bars as high as the logarithm of the counts: high activations are rare, but they are the ones that matter."""
    most = max(count.bit_length() for count in counts)
    return "".join(_BARS[-(-count.bit_length() * (len(_BARS) - 1) // most)] for count in counts)


def _direct_effect(
    promoted: Sequence[tuple[str, float]], suppressed: Sequence[tuple[str, float]], width: int
) -> list[RenderableType]:
    if not promoted:
        return [Text("the tokens it promotes have nothing in common: later layers read what it writes", style="dim")]
    return [
        beside("promotes   ", _tokens(promoted, "green"), width),
        beside("suppresses ", _tokens(suppressed, "red"), width),
    ]


def _links(card: Mapping[str, Any], width: int) -> Iterator[RenderableType]:
    """What feeds the feature and what it feeds whatever the prompt, where global weights are beside the cards."""
    for title, side in (("fed by     ", "inputs"), ("feeds      ", "outputs")):
        links = [link for link in card.get(side, ()) if not link.get("interference")][:_LINKS]
        if links:
            yield beside(title, (_link(link) for link in links), width)


def _link(link: Mapping[str, Any]) -> Text:
    through = f" via {link['head']}" if "head" in link else ""
    name = visible(short(link["label"], 24)) or link["feature"]
    return Text.assemble((name, "cyan"), (f"{through} {signed(link['weight'])}", "dim"))


def _tokens(pairs: Sequence[tuple[str, float]], style: str) -> Iterator[Text]:
    names = distinct([token for token, _ in pairs], limit=20)
    for token, (_, logit) in zip(names, pairs, strict=True):
        yield Text.assemble((token, style), (f" {signed(logit)}", "dim"))


def _contexts(contexts: Sequence[Mapping[str, Any]], most: float, colors: bool) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column()
    for context in contexts:
        peak = context["peak"]
        words = marked(context["tokens"], context["activations"], peak, most, colors)
        table.add_row(plain(context["activations"][peak]), words)
    return table


def marked(tokens: Sequence[str], activations: Sequence[float], peak: int, most: float, colors: bool) -> Text:
    """Show tokens with their activations as shades of the background, or in brackets without colours; the peak stands out.

    Args:
        tokens: The tokens of a context.
        activations: One activation for each.
        peak: The index of the largest.
        most: The activation that gets the strongest shade.
        colors: Whether the terminal has colours.
    """
    # Tokens of whole words do not hold the spaces between them.
    apart = " " if len(tokens) > 1 and not any(token[:1].isspace() or token[-1:].isspace() for token in tokens) else ""
    line = Text()
    for i, (token, activation) in enumerate(zip(tokens, activations, strict=True)):
        shown = visible(token)
        if i:
            line.append(apart)
        if activation <= 0:
            line.append(shown)
        elif colors:
            level = -(-_LEVELS * activation // most) / _LEVELS
            shade = ",".join(str(round(cold + (hot - cold) * level)) for cold, hot in zip(_COLD, _HOT, strict=True))
            line.append(shown, style=f"{'bold underline ' if i == peak else ''}white on rgb({shade})")
        else:
            line.append(f"[[{shown}]]" if i == peak else f"[{shown}]", style="bold" if i == peak else "")
    return line
