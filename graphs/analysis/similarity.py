"""How alike two features are, between 0 and 1: half by what they mean, half by where they are in the graph.

- 0.50 · meaning: the largest of these, among those known for both features; left out where none is known.
    - labels: Jaccard overlap of their words. A feature with a label and one without share none.
    - promoted tokens: Jaccard overlap of their words.
    - contexts: cosine of tf-idf of the tokens in the top contexts (a token in all features' contexts counts nothing).
    - decoder directions, where they are given: cosine.
- 0.35 · neighbours: mean of the cosines of incoming and of outgoing edges in the raw graph.
- 0.15 · place: mean of "same position" and 1 / (1 + layers apart).

Negative cosines count as 0. The sum is divided by the weights that were used.

Letters: S features compared, n nodes.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from crosstrace.graphs.cards.labels import is_automatic
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.sparse_rows import Floats, Mask

Key = tuple[int, int]
Cards = Mapping[Key, Mapping[str, Any]]
Directions = Mapping[Key, Any]

MEANING, NEIGHBOURS, PLACE = 0.50, 0.35, 0.15
_FILLER = frozenset(
    re.findall(r"\w+", "a an and as at by for from in is of on or the to with feature features token tokens")
)


def similarity_of(
    graph: AttributionGraph, features: Sequence[int], cards: Cards | None = None, directions: Directions | None = None
) -> Floats:
    """Return (S, S) similarities, symmetric, ones on the diagonal, rounded so that no sum depends on its order.

    Args:
        graph: Raw or pruned; all its edges count, dropped ones too: pruning leaves many features a single edge, to the
            target that all of them share.
        features: Feature nodes.
        cards: For (layer, feature), what is known of it; `promoted` and `contexts` count.
        directions: For (layer, feature), what its decoder writes; vectors of one length.

    Raises:
        ValueError: The directions have different lengths, or hold NaN or infinity.
    """
    keys = [graph.feature_key(node) for node in features]
    known_cards = {key: cards[key] for key in keys if key in cards} if cards else {}
    # Automatic labels repeat what cards say.
    given = (graph.feature_labels[graph.layout.feature_of(node)] for node in features)
    labels = ["" if is_automatic(label) else label for label in given]
    kinds = [
        _labels(labels),
        _promoted(keys, known_cards),
        _contexts(keys, known_cards),
        _directions(keys, directions or {}),
    ]
    meaning = np.max([values * known for values, known in kinds], axis=0)
    means = np.any([known for _, known in kinds], axis=0)
    weights = MEANING * means + NEIGHBOURS + PLACE
    total = MEANING * means * meaning + NEIGHBOURS * _neighbours(graph, features) + PLACE * _place(graph, features)
    similarity = (total / weights).clip(0, 1).round(9)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def _directions(keys: list[Key], directions: Directions) -> tuple[Floats, Mask]:
    given = {key: np.asarray(directions[key], dtype=np.float64).ravel() for key in set(keys) if key in directions}
    lengths = {len(vector) for vector in given.values()}
    if len(lengths) > 1:
        raise ValueError(f"the directions have different lengths: {min(lengths)} and {max(lengths)}")
    if any(not np.isfinite(vector).all() for vector in given.values()):
        raise ValueError("a direction holds NaN or infinity")
    has = np.array([key in given for key in keys])
    rows = np.array([given.get(key, np.zeros(max(lengths, default=1))) for key in keys])
    return _cosine(scipy.sparse.csr_array(rows)), has[:, None] & has[None, :]


def _labels(labels: list[str]) -> tuple[Floats, Mask]:
    """A feature with words and one without share none; two without are compared by the rest alone."""
    values, count = _overlap([words_of([label]) for label in labels])
    return values, (count[:, None] > 0) | (count[None, :] > 0)


def _promoted(keys: list[Key], cards: Cards) -> tuple[Floats, Mask]:
    values, count = _overlap([words_of(promoted(cards.get(key, {}))) for key in keys])
    return values, (count[:, None] > 0) & (count[None, :] > 0)


def _overlap(words: list[frozenset[str]]) -> tuple[Floats, Floats]:
    """(S, S) shared words over all words, and (S,) how many each has."""
    has = _counts([dict.fromkeys(own, 1.0) for own in words])
    shared = (has @ has.T).toarray()
    count = np.array([len(own) for own in words], dtype=np.float64)
    return shared / np.maximum(count[:, None] + count[None, :] - shared, 1), count


def _neighbours(graph: AttributionGraph, features: Sequence[int]) -> Floats:
    rows = np.asarray(features)
    incoming, outgoing = graph.edges[rows], graph.edges[:, rows].T
    return (_cosine(scipy.sparse.csr_array(incoming)) + _cosine(scipy.sparse.csr_array(outgoing))) / 2


def _contexts(keys: list[Key], cards: Cards) -> tuple[Floats, Mask]:
    """Cosine of tf-idf: in how many of its contexts a token stands, times log(features with contexts / that have it)."""
    stands: list[dict[str, float]] = []
    for key in keys:
        own: dict[str, float] = defaultdict(float)
        for context in cards.get(key, {}).get("contexts") or ():
            for token in {str(token).strip().casefold() for token in context["tokens"]}:
                own[token] += 1.0
        stands.append(own)
    common = Counter(token for own in stands for token in own)
    n_known = sum(bool(own) for own in stands)
    telling = [{token: count * math.log(n_known / common[token]) for token, count in own.items()} for own in stands]
    has = np.array([any(own.values()) for own in telling])
    return _cosine(_counts(telling)), has[:, None] & has[None, :]


def _place(graph: AttributionGraph, features: Sequence[int]) -> Floats:
    places = np.array([graph.place_of(node) for node in features])
    same_position = places[:, None, 1] == places[None, :, 1]
    apart = np.abs(places[:, None, 0] - places[None, :, 0])
    return np.asarray((same_position + 1 / (1 + apart)) / 2)


def promoted(card: Mapping[str, Any]) -> list[str]:
    """Return the tokens that a card lists as promoted, whether given as strings or as [token, value]."""
    return [entry if isinstance(entry, str) else str(entry[0]) for entry in card.get("promoted") or ()]


def words_of(texts: Sequence[str]) -> frozenset[str]:
    """Return the words in some texts without filler; texts of filler alone ("the") keep it."""
    found = {word for text in texts for word in re.findall(r"\w+", text.casefold())}
    return frozenset(found - _FILLER or found)


def _counts(rows: list[dict[str, float]]) -> scipy.sparse.csr_array:
    """(S, number of strings) how much of each string a feature has."""
    column = {name: i for i, name in enumerate(sorted({name for row in rows for name in row}))}
    entries = [(i, column[name], value) for i, row in enumerate(rows) for name, value in row.items()]
    where = tuple(np.array([entry[axis] for entry in entries], dtype=np.int64) for axis in (0, 1))
    values = np.array([value for *_, value in entries], dtype=np.float64)
    return scipy.sparse.csr_array((values, where), shape=(len(rows), max(len(column), 1)))


def _cosine(rows: scipy.sparse.csr_array) -> Floats:
    """(S, S) cosine between rows, negative ones as 0; an empty row resembles no other."""
    length = np.sqrt(rows.astype(np.float64).power(2).sum(axis=1))
    with np.errstate(divide="ignore"):
        scale = np.where(length > 0, 1 / length, 0.0)
    unit = scipy.sparse.csr_array(rows.astype(np.float64).multiply(scale[:, None]))
    return (unit @ unit.T).toarray().clip(0, 1)
