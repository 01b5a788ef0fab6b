"""Tests of labels on held-out excerpts: detection and fuzzing, by a model or by the letter.

Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large Language Models": *detection* shows excerpts and
asks in which the feature fires; *fuzzing* shows excerpts with some tokens marked and asks where the marks are right: half are
on the tokens where the feature fires, half on as many others of the same excerpt. Deviations: negatives are hard ones
(`excerpts.py`), and the score is the balanced accuracy, the mean of the share of right answers among positives and among
negatives: 0.5 by chance, 1 at best. A label's score is the mean of both. The same excerpts with the label of another feature
give the score that a label gets for the excerpts alone; labels that are not better than that say nothing of their feature.

The *literal* test needs no model. It reads a label as a list of words: before an arrow those that the feature fires on, after
it those that it promotes. The feature should fire in an excerpt if any of them is a token of it; marks are right if a marked
token is one of the former, or the token after a marked one is one of the latter. This knows no synonyms: it says how good a
label is that names tokens, as automatic ones do, and little of a label in a person's words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crosstrace.tracer.labels.excerpts import Excerpt, Key

LITERAL = "literal"
FEWEST = 3
"""Excerpts of each kind that a test has at least; on fewer it would say nothing."""


@dataclass(frozen=True)
class Marked:
    """An excerpt with some tokens marked.

    Attributes:
        tokens: Its tokens as text.
        marked: Whether each is marked.
        right: Whether the marks are where the feature fires.
    """

    tokens: list[str]
    marked: list[bool]
    right: bool


def fuzzed(excerpts: Sequence[Excerpt], key: Key, seed: int = 0) -> list[Marked]:
    """Return the active ones of some excerpts with marks, every other one's on tokens where the feature is silent.

    Args:
        excerpts: Of a feature, in a drawn order.
        key: The feature, which with the seed says what is drawn.
        seed: Of what is drawn.
    """
    rng = np.random.default_rng([seed, *key, 3])
    items = []
    active = [excerpt for excerpt in excerpts if excerpt.active]
    for i, excerpt in enumerate(active):
        fires = np.array(excerpt.activations) > 0
        silent = np.flatnonzero(~fires)
        if i % 2 and len(silent):
            marks = np.zeros_like(fires)
            marks[rng.permutation(silent)[: int(fires.sum())]] = True
            items.append(Marked(excerpt.tokens, marks.tolist(), False))
        else:
            items.append(Marked(excerpt.tokens, fires.tolist(), True))
    return items


def balanced_accuracy(said: Sequence[bool], truth: Sequence[bool]) -> float | None:
    """Return the mean of the shares of right answers among positives and among negatives; None if there are too few.

    Example:
        >>> balanced_accuracy([True, True, True, True, False, False], [True, True, True, False, False, False])
        0.8333333333333333
    """
    if not enough(truth):
        return None
    sides = [[says == so for says, so in zip(said, truth, strict=True) if so == side] for side in (True, False)]
    return sum(sum(side) / len(side) for side in sides) / 2


def enough(truth: Sequence[bool]) -> bool:
    """Say whether there are `FEWEST` of each kind."""
    return min(sum(truth), len(truth) - sum(truth)) >= FEWEST


def combined(detection: float | None, fuzzing: float | None) -> float | None:
    """Return the score of a label from its two tests: their mean, or the one that could be made."""
    made = [score for score in (detection, fuzzing) if score is not None]
    return sum(made) / len(made) if made else None


@dataclass(frozen=True)
class Words:
    """A label read by the letter.

    Attributes:
        fires_on: Its words before an arrow, folded.
        promotes: Its words after it.
    """

    fires_on: frozenset[str]
    promotes: frozenset[str]

    @staticmethod
    def of(label: str) -> Words:
        """Read a label.

        Example:
            >>> sorted(Words.of("~ Dallas, Houston → Austin").fires_on)
            ['dallas', 'houston']
        """
        before, _, after = label.removeprefix("~").removeprefix(" token:").partition("→")
        return Words(_words(before), _words(after))

    def detect(self, excerpt: Excerpt) -> bool:
        """Say whether a feature with this label should fire in an excerpt."""
        tokens = {_folded(token) for token in excerpt.tokens}
        return bool(tokens & (self.fires_on | self.promotes))

    def judge(self, item: Marked) -> bool:
        """Say whether the marks are where a feature with this label should fire."""
        places = [i for i, marked in enumerate(item.marked) if marked]
        on = {_folded(item.tokens[i]) for i in places}
        following = {_folded(item.tokens[i + 1]) for i in places if i + 1 < len(item.tokens)}
        return bool(on & self.fires_on) or bool(following & self.promotes)


def literal_scores(
    label: str, excerpts: Sequence[Excerpt], items: Sequence[Marked]
) -> tuple[float | None, float | None]:
    """Return detection and fuzzing of a label read by the letter."""
    words = Words.of(label)
    return (
        balanced_accuracy([words.detect(excerpt) for excerpt in excerpts], [excerpt.active for excerpt in excerpts]),
        balanced_accuracy([words.judge(item) for item in items], [item.right for item in items]),
    )


def shuffled_partner(keys: Sequence[Key], seed: int = 0) -> dict[Key, Key]:
    """Return for each feature another one, whose label is tried on its excerpts; none where there is only one feature."""
    if len(keys) < 2:
        return {}
    order = [keys[i] for i in np.random.default_rng([seed, 4]).permutation(len(keys))]
    return {key: order[(i + 1) % len(order)] for i, key in enumerate(order)}


def _words(text: str) -> frozenset[str]:
    """The words of a part of a label: its comma-separated entries, and the single words of each."""
    found = set()
    for entry in re.split(r"[,…]", text):
        entry = entry.strip().strip("'\"").strip()
        found |= {_folded(entry), *(_folded(word) for word in entry.split())}
    return frozenset(found - {""})


def _folded(token: str) -> str:
    return token.replace("▁", " ").strip().casefold()
