"""What the interactive page holds, in one place: `viewer/src/data.ts` declares the same and reads it.

Letters: n nodes, E edges.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
import scipy.sparse

from crosstrace.graphs.cards.labels import GUESS_LEGEND, is_weak_guess
from crosstrace.graphs.page.attention import PageAttention
from crosstrace.graphs.text import short

FORMAT: Literal["crosstrace-page"] = "crosstrace-page"
VERSION = 1

Key = tuple[int, int]
"""(layer, feature)."""
Card = Mapping[str, Any]
"""What is known of a feature, as `write_html` describes it."""


class NodeColumns(TypedDict):
    """The nodes, column by column; n entries each."""

    id: list[str]
    kind: str
    """One letter a node: f, e, t or l."""
    layer: list[int]
    """-1 for tokens, L for targets."""
    position: list[int]
    feature: list[int]
    """-1 for what is not a feature."""
    label: list[str]
    """Of tokens and targets, what to show for them; of errors, ""."""
    activation: list[float | None]
    """None for what is not a feature."""
    probability: list[float]
    """Weight of a target in influence; 0 for what is not a target."""
    chance: list[float]
    """The model's probability of a target that is a token; 0 for what is not a target."""


class Edges(TypedDict):
    """Sparse rows, base64 of little-endian numbers: those of row i are entries starts[i] to starts[i + 1]."""

    starts: str
    """(n + 1,) uint32."""
    sources: str
    """(E,) uint32."""
    weights: str
    """(E,) float32."""


class Start(TypedDict):
    """Where the sliders stand when the page opens."""

    node: float
    edge: float
    nodeLimit: float
    """Up to this node threshold the page prunes as the whole graph would be pruned."""


class WholeGraph(TypedDict):
    """The size of the graph of which the page may hold a part."""

    nodes: int
    edges: int
    untraced: int
    """Active features that got no row: the scores count them as errors."""


class Scores(TypedDict):
    """Of the whole graph; None where there is nothing to explain."""

    replacement: float | None
    completeness: float | None


class PageStoryNode(TypedDict):
    """A node of a story; see `crosstrace.graphs.StoryNode`."""

    kind: str
    name: str
    ids: list[str]
    """Of its members that the page holds."""
    position: int
    layers: list[int]
    """First and last."""
    layer: float
    influence: float


class PageStory(TypedDict):
    """Where one target comes from; see `crosstrace.graphs.Story`."""

    target: str
    """Its id."""
    nodes: list[PageStoryNode]
    edges: list[list[float]]
    """Numbers of source and target in `nodes`, weight, share of the target's input; weakest first."""
    entering: list[float]
    """P shares of the influence that enter at the tokens."""
    lost: list[float]
    """P shares that end in errors at the positions."""
    unexplained: float
    moves: list[list[float]]
    """Position of the source, of the reader, share, first and last layer of the readers; largest first."""
    covered: float
    leftOut: int
    cutEdges: int


class PageData(TypedDict):
    """The JSON value inside a page."""

    format: Literal["crosstrace-page"]
    version: int
    slug: str
    """Names the files that the page saves."""
    prompt: str
    model: str
    transcoders: str
    fingerprints: dict[str, str]
    """Of the weights of model and transcoders; a saved state keeps them."""
    tokens: list[str]
    names: list[str]
    """What to show for each token where it stands alone: no two different ones are shown alike."""
    layers: int
    nodes: NodeColumns
    edges: Edges
    omitted: str
    """(n,) float32 in base64: what features that were not selected add to each row, as absolute values."""
    influence: str | None
    """(n,) float64 in base64: influence in the whole graph; None to compute it from the edges."""
    influenceTotal: float
    whole: WholeGraph
    scores: Scores | None
    """None where they are not known."""
    onlyKept: bool
    """Whether it holds what pruning kept alone, so that shares in its stories are of that."""
    start: Start
    template: list[int] | None
    """Positions of a chat template's tokens; None: guessed from the tokens."""
    hideTemplate: bool
    """Whether the page begins without what stands there."""
    answer: list[str]
    """Ids of the answer's tokens among the targets, in order; none where the graph is not of an answer."""
    notTokens: list[int]
    """Targets that are not a token: their `probability` is only a weight."""
    notes: list[str]
    """Sentences that the page shows."""
    fires: dict[str, list[list[float]]]
    """By "layer/feature": [position, activation] wherever in the prompt it is active."""
    cards: dict[str, Card]
    """By "layer/feature"."""
    suggested: list[list[str]]
    """Supernodes: a name and node ids each."""
    stories: list[PageStory]
    """One a target; none where a JSON file holds more than a graph can express."""
    attention: PageAttention | None
    """None where the graph keeps none."""
    qParams: dict[str, Any]
    """What is pinned and grouped when the page opens."""


@dataclass
class PageNode:
    """A node on a page."""

    id: str
    kind: str
    layer: int
    position: int
    feature: int = -1
    label: str = ""
    activation: float | None = None
    probability: float = 0.0
    """Weight in influence."""
    chance: float | None = None
    """The model's probability; None where it is the weight."""
    is_token: bool = True
    """False for a target that is not a token."""


@dataclass(frozen=True)
class PageSource:
    """What a page is made of: a graph's, or that in a JSON file."""

    prompt: str
    model: str
    transcoders: str
    tokens: list[str]
    names: list[str]
    """What to show for each token."""
    n_layers: int
    nodes: Sequence[PageNode]
    """In node order: every source stands before its targets."""
    edges: scipy.sparse.csr_array
    """(n, n)."""
    influence: np.ndarray | None
    """(n,) float64."""
    influence_total: float
    whole: WholeGraph
    start: Start
    fires: Mapping[Key, list[list[float]]]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of the weights; empty if unknown."""
    slug: str = ""
    """From the prompt if empty."""
    omitted: np.ndarray | None = None
    """(n,); None for zeros."""
    scores: Scores | None = None
    only_kept: bool = False
    notes: list[str] = field(default_factory=list)
    cards: Mapping[Key, Card] = field(default_factory=dict)
    suggested: list[list[str]] = field(default_factory=list)
    stories: list[PageStory] = field(default_factory=list)
    template: Sequence[int] | None = None
    """Positions of a chat template's tokens; None where the page has to guess them from the tokens."""
    hide_template: bool = False
    """Whether the page begins without what stands there."""
    answer: Sequence[str] = ()
    """Ids of the answer's tokens among the targets, in order."""
    attention: PageAttention | None = None
    """Which heads carried edges, and why they looked there."""
    q_params: Mapping[str, Any] = field(default_factory=dict)


def page_contents(source: PageSource) -> PageData:
    """Return the JSON-able value of a page."""
    nodes = source.nodes
    weak_guesses = any(node.kind == "f" and is_weak_guess(node.label) for node in nodes)
    omitted = np.zeros(len(nodes)) if source.omitted is None else source.omitted
    return {
        "format": FORMAT,
        "version": VERSION,
        "slug": _slug(source.slug or source.prompt),
        "prompt": source.prompt,
        "model": source.model,
        "transcoders": source.transcoders,
        "fingerprints": dict(source.fingerprints),
        "tokens": source.tokens,
        "names": source.names,
        "layers": source.n_layers,
        "nodes": {
            "id": [node.id for node in nodes],
            "kind": "".join(node.kind for node in nodes),
            "layer": [node.layer for node in nodes],
            "position": [node.position for node in nodes],
            "feature": [node.feature for node in nodes],
            "label": [node.label for node in nodes],
            "activation": [node.activation for node in nodes],
            "probability": [node.probability for node in nodes],
            "chance": [node.probability if node.chance is None else node.chance for node in nodes],
        },
        "edges": {
            "starts": _base64_of(source.edges.indptr, "<u4"),
            "sources": _base64_of(source.edges.indices, "<u4"),
            "weights": _base64_of(source.edges.data, "<f4"),
        },
        "omitted": _base64_of(omitted, "<f4"),
        "influence": None if source.influence is None else _base64_of(source.influence, "<f8"),
        "influenceTotal": source.influence_total,
        "whole": source.whole,
        "scores": source.scores,
        "onlyKept": source.only_kept,
        "start": source.start,
        "template": None if source.template is None else list(source.template),
        "hideTemplate": source.hide_template,
        "answer": list(source.answer),
        "notTokens": [i for i, node in enumerate(nodes) if not node.is_token],
        "notes": [*source.notes, *([GUESS_LEGEND] if weak_guesses else [])],
        "fires": {f"{layer}/{feature}": places for (layer, feature), places in source.fires.items()},
        "cards": cards_as_json(source.cards),
        "suggested": source.suggested,
        "stories": source.stories,
        "attention": source.attention,
        "qParams": dict(source.q_params),
    }


def page_label(text: str, name: str) -> str:
    """Return the label of a token or target: its text, or what tells it from another that the page would show alike."""
    return text if short(text) == name else name


def features_of(data: PageData) -> set[Key]:
    """Return the features on a page."""
    nodes = data["nodes"]
    rows = zip(nodes["kind"], nodes["layer"], nodes["feature"], strict=True)
    return {(layer, feature) for kind, layer, feature in rows if kind == "f"}


def cards_as_json(cards: Mapping[Key, Card]) -> dict[str, Card]:
    """Return cards by the names under which the page looks features up."""
    return {f"{layer}/{feature}": card for (layer, feature), card in cards.items()}


def firing_places(rows: Iterable[tuple[int, int, int]], activations: Iterable[float]) -> dict[Key, list[list[float]]]:
    """Return [position, activation] of (layer, position, feature) rows, by (layer, feature)."""
    found: dict[Key, list[list[float]]] = defaultdict(list)
    for (layer, position, feature), activation in zip(rows, activations, strict=True):
        found[layer, feature].append([position, activation])
    return dict(found)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:60].strip("-") or "graph"


def _base64_of(values: Any, dtype: str) -> str:
    """Little-endian numbers: exact, and a third of the size of decimal text."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
