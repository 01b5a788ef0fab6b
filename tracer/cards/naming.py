"""Names for features that have none: a guess from what their decoders promote.

Guesses need the model, so they are made where one is at hand and kept in the graph: `settings["guesses"]`, by
"L3/417". Labels that were given, and automatic labels from cards, come before them; see `AttributionGraph.name_of`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from crosstrace.graphs import AttributionGraph, FeatureCards, prune
from crosstrace.graphs.analysis.influence import row_scale, spread, target_weights
from crosstrace.graphs.cards.labels import guessed_label
from crosstrace.replacement_model import LoadedModel, ReplacementModel, weight_fingerprints
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.model import dictionary_of
from crosstrace.replacement_model.prompts import token_strings
from crosstrace.replacement_model.readouts.direct_logits import coherence_by_chance, promoted_tokens
from crosstrace.tracer.cards.lookup import find_cards

_LOOKED_AT = 8  # strongest tokens, of which some may be shown alike
_DIRECTIONS = 64  # that tell what chance gives: fewer than for cards, as they take as long as that many guesses
_by_chance: WeakKeyDictionary[LoadedModel, float] = WeakKeyDictionary()

Key = tuple[int, int]
"""(layer, feature)."""


def guesses(model: LoadedModel, features: Sequence[Key], dictionary: DictionaryInUse | None = None) -> dict[Key, str]:
    """Guess at the meaning of features by what they promote.

    Args:
        model: The replacement model, or a base model.
        features: The features, as (layer, feature).
        dictionary: Whose features; None for the replacement model's transcoders.

    Returns:
        Guesses such as `→ AG, ag`, or `→? AG, ag` where the tokens are no more alike than chance makes them (see
        `graphs/cards/labels.py`). Features whose decoders are zero are not in it.

    Example:
        >>> guesses(model, [(3, 417)])
        {(3, 417): '→ Austin, Texas'}
    """
    features = list(dict.fromkeys(features))
    if not features:
        return {}
    found = promoted_tokens(model, features, _LOOKED_AT, dictionary)
    distinct, where = found.promoted.unique(return_inverse=True)
    texts = token_strings(distinct.tolist(), model.tokenizer)
    if model not in _by_chance:
        _by_chance[model] = coherence_by_chance(model, _DIRECTIONS)
    coherent = found.coherence > _by_chance[model]
    named = {}
    columns = (where, found.raised, found.spread, coherent)
    for key, tokens, logits, width, alike in zip(features, *(column.tolist() for column in columns), strict=True):
        promoted = [(texts[token], logit) for token, logit in zip(tokens, logits, strict=True)]
        if guess := guessed_label(promoted, width, model.description.vocab_size, alike):
            named[key] = guess
    return named


class FeatureNames:
    """What features of a model are called: by their label, the automatic one from cards, or else by a guess."""

    def __init__(
        self, model: LoadedModel, cards: FeatureCards | None = None, dictionary: DictionaryInUse | None = None
    ) -> None:
        """
        Args:
            model: The replacement model, or a base model.
            cards: The features' cards, if there are any.
            dictionary: Whose features; None for the replacement model's transcoders.
        """
        self._model, self._cards = model, cards
        self._dictionary = dictionary_of(model, dictionary)
        self._known: dict[Key, str] = {}

    def of(self, features: Iterable[Key]) -> dict[Key, str]:
        """Return the names of some features, "" where there is none."""
        wanted = list(dict.fromkeys(features))
        labels, cards = self._dictionary.labels, self._cards
        for key in wanted:
            if label := labels.get(key, "").strip():
                self._known[key] = label
            elif cards is not None and key in cards:
                self._known[key] = cards.label(key)
        if unnamed := [key for key in wanted if key not in self._known]:
            found = guesses(self._model, unnamed, self._dictionary)
            self._known |= {key: found.get(key, "") for key in unnamed}
        return {key: self._known[key] for key in wanted}


def names_by_own_cards(model: ReplacementModel) -> FeatureNames:
    """Return the names of a model's features, by the cards beside its transcoders if there are any."""
    cards = find_cards(model.name, model.transcoders.name, weight_fingerprints(model))
    return FeatureNames(model, cards)


def with_guesses(
    graph: AttributionGraph, model: ReplacementModel, beyond_kept: int = 0, named: Container[Key] = ()
) -> AttributionGraph:
    """Return the graph with guesses for the features that nobody has labelled.

    Args:
        graph: Raw or pruned. In a pruned graph only the features that pruning kept get a guess; in a raw one, those that
            it would keep with the default thresholds.
        model: The model that the graph was traced in.
        beyond_kept: How many of the other features get a guess too, the most influential first.
        named: Features that need no guess, such as those that cards name.

    Example:
        >>> pruned = with_guesses(prune(trace(model, prompt)), model)
    """
    wanted = dict.fromkeys(graph.feature_key(node) for node in _unlabelled(graph, beyond_kept))
    known: dict[str, str] = graph.settings.get("guesses", {})
    missing = [key for key in wanted if _written(key) not in known and key not in named]
    if not missing:
        return graph
    found = guesses(model, missing)
    # A decoder of zeros is kept too, as "": it need not be looked at again.
    added = {_written(key): found.get(key, "") for key in missing}
    return dataclasses.replace(graph, settings={**graph.settings, "guesses": {**known, **added}})


def _unlabelled(graph: AttributionGraph, beyond_kept: int) -> Iterable[int]:
    """Yield the features to name: those kept, then the most influential of the others."""
    pruned = graph if graph.node_mask is not None else prune(graph)
    assert pruned.node_mask is not None
    features = pruned.layout.features
    kept = pruned.node_mask[features].numpy()
    order = np.flatnonzero(kept)
    if beyond_kept:
        influence = spread(graph.edges, row_scale(graph.edges), target_weights(graph))[features]
        others = np.flatnonzero(~kept)
        order = np.concatenate([order, others[np.argsort(-influence[others], kind="stable")][:beyond_kept]])
    return (node for node in order.tolist() if not graph.feature_labels[node].strip())


def _written(key: Key) -> str:
    return f"L{key[0]}/{key[1]}"
