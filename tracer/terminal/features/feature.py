"""One feature of a graph in the terminal: where in the prompt it fires, its strongest edges there, and its card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.analysis.pruning import unpruned
from crosstrace.graphs.cards.feature_cards import FeatureCards, Key, with_card_labels
from crosstrace.graphs.cards.labels import is_automatic
from crosstrace.graphs.numbers import plain, signed
from crosstrace.graphs.text import visible
from crosstrace.replacement_model.interventions.references import parse_feature
from crosstrace.tracer.terminal.features.card import marked, show_card, within
from crosstrace.tracer.terminal.tables import at, beside, coloured

_EDGES = 4


def show_features(graph: AttributionGraph, texts: Sequence[str], cards: FeatureCards | None) -> None:
    """Print some features of a graph.

    Args:
        graph: Raw or pruned.
        texts: The features, each as `L3/417` or by label.
        cards: Their feature cards, if there are any.

    Raises:
        ValueError: One is not in the graph.
    """
    labelled = with_card_labels(unpruned(graph), cards)  # edges come from features that pruning dropped, too
    for key in find_in_graph(labelled, texts):
        show_feature(labelled, key, cards, Console())


def find_in_graph(graph: AttributionGraph, texts: Sequence[str]) -> list[Key]:
    """Find features of a graph.

    Args:
        graph: Raw or pruned.
        texts: The features, each as `L3/417` or by label.

    Returns:
        Distinct (layer, feature) pairs.

    Raises:
        ValueError: A feature is not active in the prompt, or no feature has the label.
    """
    active = {(layer, feature) for layer, _, feature in graph.active_features.tolist()}
    found: list[Key] = []
    names = [graph.name_of(node) for node in range(*graph.layout.features.indices(graph.n))]
    for text in texts:
        if feature := parse_feature(text, names):
            key = (feature.layer, feature.feature)
            if key[0] >= graph.n_layers:
                raise ValueError(f"feature L{key[0]}/{key[1]}: the graph's model has layers 0 to {graph.n_layers - 1}")
            if key not in active:
                raise ValueError(
                    f"feature L{key[0]}/{key[1]} is not active in the graph's prompt {visible(graph.prompt)!r}"
                )
            found.append(key)
            continue
        label = text.strip().strip('"')
        keys = [graph.feature_key(node) for node, name in enumerate(names) if name == label]
        if not keys:
            raise ValueError(f"no feature of the graph has the label {label!r}; write features as L3/417")
        found += keys
    return list(dict.fromkeys(found))


def show_feature(graph: AttributionGraph, key: Key, cards: FeatureCards | None, console: Console) -> None:
    """Print a feature of a graph: where it fires, its strongest edges there, and its card.

    Args:
        graph: Raw or pruned, with labels.
        key: The feature, as (layer, feature).
        cards: Feature cards, if there are any.
        console: Where to print.
    """
    rows = [i for i, row in enumerate(graph.active_features.tolist()) if (row[0], row[2]) == key]
    nodes = {int(row): node for node, row in enumerate(graph.selected_features.tolist())}
    activations = np.zeros(len(graph.tokens))
    for row in rows:
        activations[int(graph.active_features[row, 1])] = float(graph.activations[row])
    peak = int(activations.argmax())
    lines: list[RenderableType] = [
        Text("in this prompt", style="dim"),
        marked(graph.token_strings, activations.tolist(), peak, activations.max(), console.color_system is not None),
    ]
    for row in rows:
        position = int(graph.active_features[row, 1])
        place = f"{at(graph.token_name(position), position)}: {plain(float(graph.activations[row]))}"
        if row not in nodes:
            lines.append(Text(f"  at {place}, not traced", style="dim"))
            continue
        node = nodes[row]
        lines.append(Text.assemble("  at ", (place, "bold")))
        for heading, edges in (
            ("from", graph.edges[[node]].toarray()[0]),
            ("to  ", graph.edges[:, [node]].toarray()[:, 0]),
        ):
            lines.append(beside(f"    {heading} ", _edges(graph, edges), within(console)))
    label = next((name for row in rows if row in nodes and (name := graph.name_of(nodes[row]))), "")
    if cards is not None and key in cards:
        given = "" if is_automatic(label) else label  # the card has its own
        show_card(cards, key, console, given, extra=[Text(), *lines])
        return
    why = "there are no feature cards of these transcoders" if cards is None else "it did not fire in the cards' corpus"
    title = Text.assemble((f" L{key[0]}/{key[1]} ", "bold"), (f"{visible(label)} ", "bold cyan"))
    footer = Text(f"\nno card: {why}; crosstrace features --corpus FILE makes them", style="dim")
    console.print(Panel(Group(*lines, footer), title=title, title_align="left", box=box.ROUNDED, padding=(0, 1)))


def _edges(graph: AttributionGraph, weights: np.ndarray) -> Iterator[Text]:
    """The strongest edges at one end of a node."""
    for node in np.argsort(-np.abs(weights), kind="stable")[:_EDGES].tolist():
        if weights[node]:
            weight = float(weights[node])
            yield Text.assemble(graph.describe(node), " ", coloured(signed(weight), weight))
