"""Contexts of features for those who make labels, and others for those who test them.

Makers of labels see a card's top contexts, and weaker ones from the sample by quantiles of the activation. Tests are on
held-out contexts: the sample's contexts fall into two halves by a hash of their number, one for makers, one for tests; and an
excerpt is left out of a test if what leads up to its peak was shown. A test has as many excerpts in which the feature fires,
spread over its quantiles, as in which it does not: half of these hard ones, in which one of the nearest features fires, half at
random. Nearest are the features of the layer that fire on the most similar tokens, by the cosine of the counts.

Letters: T tokens of the sample, F features of a layer, V' distinct tokens, n entries.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.tracer.samples.sample import CorpusSample

_Ranked = TypeVar("_Ranked")
Key = tuple[int, int]
"""(layer, feature)."""
BEFORE, AFTER = 16, 8
_LEADING = 8  # tokens up to the peak by which a wording is known
_NEAREST = 5
_QUANTILES = 4
_KEPT_LAYERS = 4


@dataclass(frozen=True)
class Excerpt:
    """A piece of a context.

    Attributes:
        tokens: Its tokens as text.
        activations: The feature's activation at each.
        peak: The token that the excerpt was cut around: of the feature's own where it fires, of a neighbour's where it is hard.
        kind: `active`, `hard` or `random`.
    """

    tokens: list[str]
    activations: list[float]
    peak: int
    kind: str

    @property
    def active(self) -> bool:
        """Whether the feature fires in it."""
        return self.kind == "active"

    @property
    def leading(self) -> tuple[str, ...]:
        """What leads up to the peak: by this a wording is known."""
        return tuple(self.tokens[max(self.peak - _LEADING, 0) : self.peak + 1])


class FeatureContexts:
    """Contexts of features from cards, and from a sample of the corpus where there is one."""

    def __init__(self, cards: FeatureCards, sample: CorpusSample | None, seed: int = 0) -> None:
        """
        Args:
            cards: The cards.
            sample: The sample beside them; without one nothing can be tested.
            seed: Of what is drawn.
        """
        self.cards, self.sample, self.seed = cards, sample, seed
        self._layer = lru_cache(maxsize=_KEPT_LAYERS)(self._read_layer)
        self._near = lru_cache(maxsize=_KEPT_LAYERS)(self._profiles)

    def shown(self, key: Key, top: int = 8) -> list[Excerpt]:
        """Return what a maker of labels sees: top contexts of the card, then one of each quantile from the sample.

        Raises:
            KeyError: The feature has no card.
        """
        excerpts = [
            Excerpt(context.tokens, context.activations, context.peak, "active")
            for context in self.cards.contexts(key)[:top]
        ]
        known = {excerpt.leading for excerpt in excerpts}
        for excerpt in self._active(key, held_out=False, most=_QUANTILES):
            if excerpt.leading not in known:
                known.add(excerpt.leading)
                excerpts.append(excerpt)
        return excerpts

    def test(self, key: Key, most: int = 10) -> list[Excerpt]:
        """Return held-out excerpts of a feature, as many in which it fires as in which it does not, in a drawn order.

        Args:
            key: The feature.
            most: How many of each at most.

        Returns:
            Fewer, down to none, where the sample has fewer.
        """
        if self.sample is None:
            return []
        shown = {excerpt.leading for excerpt in self.shown(key)}
        active = [one for one in self._active(key, held_out=True, most=8 * most) if one.leading not in shown]
        active = _spread(_distinct(active), most)
        hard = _distinct(self._hard(key, 4 * most))[: -(-len(active) // 2)]
        silent = _distinct([*hard, *self._random(key, 4 * most)])[: len(active)]
        count = min(len(active), len(silent))
        excerpts = [*_spread(active, count), *silent[:count]]
        order = self._rng(key, 1).permutation(len(excerpts))
        return [excerpts[i] for i in order]

    def _rng(self, key: Key, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key, purpose])

    def _held_out(self) -> NDArray[np.bool_]:
        """(C,) which of the sample's contexts are for tests."""
        assert self.sample is not None
        numbers = self.sample.numbers()
        return np.array([zlib.crc32(int(number).to_bytes(8, "little")) & 1 for number in numbers], dtype=np.bool_)

    def _read_layer(self, layer: int) -> scipy.sparse.csc_array:
        assert self.sample is not None
        return scipy.sparse.csc_array(self.sample.activations(layer))

    def _column(self, key: Key) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Where a feature fires among the sample's tokens, ascending, and how strongly."""
        matrix = self._layer(key[0])
        part = slice(matrix.indptr[key[1]], matrix.indptr[key[1] + 1])
        order = np.argsort(matrix.indices[part], kind="stable")
        return matrix.indices[part][order].astype(np.int64), matrix.data[part][order]

    def _profiles(self, layer: int) -> scipy.sparse.csr_array:
        """(F, V') unit rows: how often each feature fires on each token."""
        assert self.sample is not None
        tokens = self.sample.token_numbers()
        size = len(tokens), int(tokens.max(initial=0)) + 1
        one_hot = scipy.sparse.csr_array((np.ones(len(tokens)), tokens, np.arange(len(tokens) + 1)), shape=size)
        acts = self._layer(layer)
        fires = scipy.sparse.csc_array((np.ones_like(acts.data), acts.indices, acts.indptr), shape=acts.shape)
        counts = scipy.sparse.csr_array(fires.T @ one_hot)
        norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        return scipy.sparse.csr_array(scipy.sparse.diags_array(1 / np.maximum(norms, 1e-12)) @ counts)

    def nearest(self, key: Key, count: int = _NEAREST) -> list[Key]:
        """Return the features of the same layer that fire on the most similar tokens, nearest first."""
        if self.sample is None:
            return []
        profiles = self._near(key[0])
        cosine = (profiles @ profiles[[key[1]]].T).toarray()[:, 0]
        cosine[key[1]] = 0.0
        order = np.argsort(-cosine, kind="stable")[:count]
        return [(key[0], int(feature)) for feature in order if cosine[feature] > 0]

    def _excerpt(self, token: int, kind: str, column: tuple[NDArray[np.int64], NDArray[np.float64]]) -> Excerpt:
        assert self.sample is not None
        starts = self.sample.starts
        context = int(np.searchsorted(starts, token, side="right")) - 1
        begin, end = max(token - BEFORE, int(starts[context])), min(token + AFTER + 1, int(starts[context + 1]))
        activations = np.zeros(end - begin)
        inside = slice(*np.searchsorted(column[0], [begin, end]))
        activations[column[0][inside] - begin] = column[1][inside]
        return Excerpt(self.sample.token_texts(begin, end), activations.tolist(), token - begin, kind)

    def _context_of(self, tokens_n: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self.sample is not None
        return np.searchsorted(self.sample.starts, tokens_n, side="right") - 1

    def _active(self, key: Key, held_out: bool, most: int) -> list[Excerpt]:
        """Excerpts around a feature's peaks in contexts of one half, strongest first, spread over quantiles."""
        if self.sample is None:
            return []
        column = self._column(key)
        mine = self._held_out()[self._context_of(column[0])] == held_out
        tokens, values = column[0][mine], column[1][mine]
        peaks: dict[int, tuple[int, float]] = {}
        for token, value, context in zip(tokens.tolist(), values.tolist(), self._context_of(tokens), strict=True):
            if context not in peaks or value > peaks[context][1]:
                peaks[context] = (token, value)
        ranked = sorted(peaks.values(), key=lambda peak: (-peak[1], peak[0]))
        return [self._excerpt(token, "active", column) for token, _ in _spread(ranked, most)]

    def _hard(self, key: Key, most: int) -> list[Excerpt]:
        """Excerpts around peaks of the nearest features, in which the feature itself is silent; the nearest in turn."""
        queues = []
        for neighbour in self.nearest(key):
            tokens, values = self._column(neighbour)
            own = self._held_out()[self._context_of(tokens)]
            order = np.argsort(-values[own], kind="stable")
            queues.append(self._silent(key, tokens[own][order], most, "hard"))
        return [queue[turn] for turn in range(most) for queue in queues if turn < len(queue)][:most]

    def _random(self, key: Key, most: int) -> list[Excerpt]:
        assert self.sample is not None
        counted = np.flatnonzero(self.sample.counted)
        counted = counted[self._held_out()[self._context_of(counted)]]
        drawn = self._rng(key, 2).permutation(counted)[: 4 * most]
        return self._silent(key, drawn, most, "random")

    def _silent(self, key: Key, tokens_n: NDArray[np.int64], most: int, kind: str) -> list[Excerpt]:
        column = self._column(key)
        excerpts = []
        for token in tokens_n.tolist():
            excerpt = self._excerpt(token, kind, column)
            if not any(excerpt.activations):
                excerpts.append(excerpt)
            if len(excerpts) == most:
                break
        return excerpts


def _distinct(excerpts: Sequence[Excerpt]) -> list[Excerpt]:
    """The excerpts whose wording comes up for the first time."""
    return list({excerpt.leading: excerpt for excerpt in reversed(excerpts)}.values())[::-1]


def _spread(ranked: Sequence[_Ranked], count: int) -> list[_Ranked]:
    """Return `count` of a ranking, evenly spread from the first to the last."""
    if len(ranked) <= count:
        return list(ranked)
    return [ranked[round(place)] for place in np.linspace(0, len(ranked) - 1, count)]
