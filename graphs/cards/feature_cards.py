"""Feature cards: what a corpus showed about each feature of a transcoder, in one file that is read in place.

The file is `.safetensors`; `crosstrace features` writes it. One header entry, `crosstrace-cards`, is JSON: the version,
what the cards belong to (model, transcoders, corpus), and how they were made. The tensors of every layer l:

| tensor | shape | |
| --- | --- | --- |
| `l.features` | (S,) | the features that fired, ascending |
| `l.fired` | (S,) | at how many positions each fired |
| `l.exponent`, `l.histogram` | (S,), (S, bins) | bin i counts activations from i to i + 1 times 2^exponent / bins |
| `l.spread` | (S,) | standard deviation of the direct logits over the vocabulary |
| `l.promoted`, `l.suppressed` | (S, T) | tokens at both ends of the direct logits, strongest first |
| `l.raised`, `l.lowered` | (S, T) | float16: these tokens' logits, in units of the spread |
| `l.coherence` | (S,) | float16: how alike the promoted tokens are (files of older versions lack it) |
| `l.offsets` | (S + 1,) | the contexts of feature i are rows offsets[i] to offsets[i + 1], strongest first |
| `l.context`, `l.peak` | (R,) | which context, and where in it the activation is largest |
| `l.windows` | (R + 1,) | the activations of row r are entries windows[r] to windows[r + 1] |
| `l.position`, `l.activation` | (E,) | where in the context, and how strongly; all others in the window are 0 |

For all layers together: `starts` (C + 1,), where each context starts in `tokens`; `token_ids` (V',), the tokens that occur,
to which all token numbers in the file refer; `strings` and `string_starts`, these tokens' text in UTF-8.

Letters: S features that fired, T tokens at each end, R rows, E entries, C contexts, V' tokens that occur.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crosstrace.graphs.cards.labels import OWN_TOKEN, PROMOTED_IN_LABELS, automatic_label, is_late, stands_out_at
from crosstrace.graphs.cards.weights import FeatureWeights, links_as_json, weights_path
from crosstrace.graphs.fingerprints import same_weights
from crosstrace.graphs.notebook import note, table, text
from crosstrace.graphs.numbers import count, plain, share, signed
from crosstrace.graphs.tensor_file import map_tensors
from crosstrace.graphs.text import distinct

if TYPE_CHECKING:
    from crosstrace.graphs.graph import AttributionGraph

FORMAT, VERSION = "crosstrace-cards", 1
_SHOWN_CARDS, _SHOWN_CONTEXTS, _SHOWN_LINKS = 20, 5, 12
_FOUND_IN = ("automatic label", "promoted", "fires on", "context")
_SHARED = ("starts", "tokens", "token_ids", "strings", "string_starts")
_OF_A_LAYER = (
    *("features", "fired", "exponent", "histogram"),
    *("promoted", "raised", "suppressed", "lowered", "spread"),
    *("offsets", "context", "peak", "windows", "position", "activation"),
)
Key = tuple[int, int]
"""(layer, feature)."""


@dataclass(frozen=True)
class TopContext:
    """A piece of the corpus on which a feature fires strongly."""

    tokens: list[str]
    """The window's tokens as text."""
    activations: list[float]
    """The feature's activation on each of them."""
    peak: int
    """Index of the token with the largest activation."""
    number: int
    """Which context of the file it is from."""
    start: int
    """Where in that context the window begins."""


class FeatureCard(dict[str, Any]):
    """What pages show of a feature; in a notebook it shows itself.

    Keys: `label` (see `cards/labels.py`), `promoted` and `suppressed` ([token, logit] pairs; none where they say nothing,
    see `FeatureCards.says_something`), `contexts` (each with `tokens`, `activations`, `peak`), `histogram` (`counts`,
    `edges`), `firing_rate` (0 to 1), `max_activation`. Where global weights are beside the cards (`cards/weights.py`), also
    `inputs` and `outputs`: the strongest links, each with `feature`, `label`, `weight`, and where known `head`, `expected`
    and `interference`.
    """

    def _repr_html_(self) -> str:
        """Label, promoted and suppressed tokens, and the top contexts, for notebooks."""
        tops = [
            f"<p>{_context_html(context['tokens'], context['activations'], self['max_activation'])}</p>"
            for context in self["contexts"][:_SHOWN_CONTEXTS]
        ]
        pairs = [(_pairs(self["promoted"]), _pairs(self["suppressed"]))]
        logits = table("", ("promotes", "suppresses"), pairs) if self["promoted"] else ""
        rate = f"fires on {share(self['firing_rate'])} of tokens, at most {plain(self['max_activation'])}"
        return f"<p><strong>{text(self['label'])}</strong></p>{note(rate)}{logits}{''.join(tops)}"


class FeatureCards(Mapping[Key, FeatureCard]):
    """The cards in a file, by (layer, feature); only features that fired have one. Nothing is read before it is used.

    Attributes:
        path: The file.
        model_name: The model that the cards were made with.
        transcoders_name: The transcoders that the cards were made with.
        fingerprints: Of the weights of model and transcoders; the same for the same weights under any name.
        corpus: `names`, `texts`, `contexts`, `tokens`, `digest`.
        positions: Number of positions of which the firing rates are shares.
        settings: Context length, window and the like.
        n_features: Number of features of each layer, whether they fired or not.
        vocabulary_size: Of the model.

    Example:
        >>> cards = FeatureCards("cards.safetensors")
        >>> cards[3, 417]["promoted"][0]
        ['Austin', 0.83]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file of cards.

        Args:
            path: The file.

        Raises:
            OSError: There is no such file.
            ValueError: It holds no cards, is damaged, or of a newer version; one line that names it.
        """
        self.path = Path(path)
        metadata, self._tensors = map_tensors(path)
        if FORMAT not in metadata:
            raise ValueError(f"{path}: not a file of feature cards (no {FORMAT!r} in its header)")
        try:
            header = json.loads(metadata[FORMAT])
            version = header["version"]
            if version > VERSION:
                raise ValueError(f"written by a newer crosstrace: format {version}, this version reads up to {VERSION}")
            self.model_name, self.transcoders_name = str(header["model"]), str(header["transcoders"])
            self.fingerprints: dict[str, str] = header["fingerprints"]
            self.corpus: dict[str, Any] = header["corpus"]
            self.positions, self.settings = int(header["positions"]), dict(header["settings"])
            self.n_features: list[int] = header["n_features"]
            self.vocabulary_size = int(header["vocabulary_size"])
            names = [*_SHARED, *(f"{layer}.{name}" for layer in range(self.n_layers) for name in _OF_A_LAYER)]
            if missing := [name for name in names if name not in self._tensors]:
                raise ValueError(f"incomplete, it lacks {', '.join(missing[:5])}")
            self._features = [self._tensors[f"{layer}.features"] for layer in range(self.n_layers)]
            self._strings: dict[int, str] = {}  # of tokens that were asked for: cards repeat them
        except (ValueError, KeyError, TypeError) as problem:
            raise ValueError(f"{path}: {' '.join(str(problem).split())}") from None

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.n_features)

    def __len__(self) -> int:
        return sum(map(len, self._features))

    def __iter__(self) -> Iterator[Key]:
        for layer, features in enumerate(self._features):
            for feature in features.tolist():
                yield layer, feature

    def __contains__(self, key: object) -> bool:
        match key:
            case (int(layer), int(feature)):
                return self._row(layer, feature) is not None
        return False

    def __getitem__(self, key: Key) -> FeatureCard:
        """Return the card of (layer, feature).

        Raises:
            KeyError: The feature did not fire in the corpus.
            ValueError: The file is damaged at this card.
        """
        layer, row = key[0], self._existing(key)
        try:
            return self._card(key, layer, row)
        except (IndexError, ValueError) as problem:
            raise ValueError(f"{self.path}: the card of L{key[0]}/{key[1]} is damaged ({problem})") from None

    def _repr_html_(self) -> str:
        """A table of the first cards, for notebooks."""
        rows = [
            (f"L{layer}/{feature}", self.label((layer, feature)), share(self.firing_rate((layer, feature))))
            for layer, feature in islice(self, _SHOWN_CARDS)
        ]
        title = f"{self.path.name}: {count(len(self), 'feature card')} of {self.transcoders_name}"
        return table(title, ("feature", "label", "fires on"), rows) + note(
            "cards[layer, feature] shows a card, cards.search(text) finds features"
        )

    def _card(self, key: Key, layer: int, row: int) -> FeatureCard:
        promoted, suppressed = self._logits(layer, row, "promoted"), self._logits(layer, row, "suppressed")
        contexts = self.contexts(key)
        told = bool(self._telling(layer)[row])
        return FeatureCard(
            label=self._label(layer, row, [context.tokens[context.peak] for context in contexts], promoted),
            promoted=[list(pair) for pair in promoted if told],
            suppressed=[list(pair) for pair in suppressed if told],
            contexts=[
                {"tokens": context.tokens, "activations": context.activations, "peak": context.peak}
                for context in contexts
            ],
            histogram=self._histogram(layer, row),
            firing_rate=self.firing_rate(key),
            max_activation=max(contexts[0].activations),
            **self._weights_of(key),
        )

    @cached_property
    def weights(self) -> FeatureWeights | None:
        """The global weights beside the cards; None if there are none, or if they are of other weights.

        Raises:
            ValueError: The file is damaged.
        """
        path = weights_path(self.path)
        if not path.is_file():
            return None
        found = FeatureWeights(path)
        return found if found.belongs_to(self.fingerprints) else None

    def _weights_of(self, key: Key) -> dict[str, list[dict[str, Any]]]:
        if self.weights is None or key not in self.weights.features:
            return {}
        sides = {"inputs": self.weights.inputs(key), "outputs": self.weights.outputs(key)}
        names = {link.feature: self._name(link.feature) for links in sides.values() for link in links[:_SHOWN_LINKS]}
        return {side: links_as_json(links, names, _SHOWN_LINKS) for side, links in sides.items()}

    def _name(self, key: Key) -> str:
        """The label that somebody gave to a feature, as the global weights hold it, or the automatic one."""
        given = "" if self.weights is None else self.weights.names.get(key, "")
        return given or (self.label(key) if key in self else "")

    def label(self, key: Key) -> str:
        """Return the automatic label of a feature; see `cards/labels.py`.

        Raises:
            KeyError: The feature did not fire in the corpus.
        """
        layer, row = key[0], self._existing(key)
        peaks = [self._string(int(token)) for token in self._peak_tokens(layer, *self._rows(layer, row))]
        return self._label(layer, row, peaks, self._logits(layer, row, "promoted", PROMOTED_IN_LABELS))

    def says_something(self, key: Key) -> bool:
        """Return whether the tokens that a feature promotes say something of it.

        They do where they are more alike than those of 19 in 20 random directions, or where the first of them stands out
        (see `cards/labels.py`). What other features write, in early layers most of them, is read by later layers rather
        than by the output. In files of older versions that do not hold how alike tokens are, all features count.

        Raises:
            KeyError: The feature did not fire in the corpus.
        """
        return bool(self._telling(key[0])[self._existing(key)])

    def _telling(self, layer: int) -> NDArray[np.bool_]:
        """For each feature of a layer whether its promoted tokens say something."""
        if (coherent := self._coherent(layer)) is None:
            return np.ones(len(self._features[layer]), dtype=np.bool_)
        return coherent | (self._tensors[f"{layer}.raised"][:, 0] >= stands_out_at(self.vocabulary_size))

    def _coherent(self, layer: int) -> NDArray[np.bool_] | None:
        """For each feature of a layer whether its promoted tokens are more alike than chance makes them, if that is known."""
        coherence, chance = self._tensors.get(f"{layer}.coherence"), self.settings.get("coherence_by_chance")
        return None if coherence is None or chance is None else np.asarray(coherence > chance)

    def firing_rate(self, key: Key) -> float:
        """Return the share of the corpus' positions at which a feature is active, 0 to 1.

        Raises:
            KeyError: The feature did not fire in the corpus.
        """
        return int(self._tensors[f"{key[0]}.fired"][self._existing(key)]) / self.positions

    def firing_rates(self) -> list[list[float]]:
        """Return, for each layer, the firing rates of the features that fired, in ascending order of features."""
        return [
            (self._tensors[f"{layer}.fired"].astype(np.float64) / self.positions).tolist()
            for layer in range(self.n_layers)
        ]

    def contexts(self, key: Key) -> list[TopContext]:
        """Return the top contexts of a feature, strongest first.

        Raises:
            KeyError: The feature did not fire in the corpus.
        """
        layer, row = key[0], self._existing(key)
        return [self._context(layer, number) for number in range(*self._rows(layer, row))]

    def promoted_ids(self, key: Key) -> list[int]:
        """Return the ids of the tokens that a feature promotes most, strongest first, also where they say nothing of it.

        Raises:
            KeyError: The feature did not fire in the corpus.
        """
        numbers = self._tensors[f"{key[0]}.promoted"][self._existing(key)]
        return [int(token) for token in self._tensors["token_ids"][numbers]]

    def search(self, text: str, limit: int = 20) -> list[Key]:
        """Find features by text in what their cards show; see `find`.

        Args:
            text: Letters, in upper or lower case.
            limit: Number of features to return at most.
        """
        return list(self.find(text))[:limit]

    def find(self, text: str) -> dict[Key, str]:
        """Find features by text in their automatic label, a promoted token, or a token of their contexts.

        Args:
            text: Letters, in upper or lower case; they must be in one token, except in labels.

        Returns:
            For each feature where it was found: `automatic label`, `promoted`, `fires on` (the peak of a context) or
            `context`. In that order, then by the logit of the token where it is promoted, then by firing rate.
        """
        wanted = text.strip().casefold()
        # A label is made of tokens, some of them in quotes: one that holds the text holds its longest part in one of them.
        part = max((piece.strip(" '") for piece in re.split(f"[,→…~]|{OWN_TOKEN}", wanted)), key=len)
        strings = [self._string(number).casefold() for number in range(len(self._tensors["token_ids"]))]
        whole = np.array([bool(wanted) and wanted in string for string in strings], dtype=np.bool_)
        in_label = np.array([bool(wanted) and part in string.strip() for string in strings], dtype=np.bool_)
        # With the number of matches before each token of the corpus, any window is one subtraction.
        before = np.concatenate([[0], np.cumsum(whole[self._tensors["tokens"]], dtype=np.int64)])
        found: list[tuple[int, float, float, Key]] = []
        for layer, features in enumerate(self._features):
            if not len(features):
                continue
            promotes = whole[self._tensors[f"{layer}.promoted"]] & self._telling(layer)[:, None]
            raised = self._tensors[f"{layer}.raised"] * np.asarray(self._tensors[f"{layer}.spread"])[:, None]
            logit = np.where(promotes, raised, 0.0).max(axis=1)
            peaks = self._peak_tokens(layer, slice(None))
            first = in_label[self._tensors[f"{layer}.promoted"][:, :PROMOTED_IN_LABELS]].any(axis=1)
            candidates = self._any(layer, in_label[peaks]) | first
            labelled = np.zeros(len(features), dtype=np.bool_)
            for row in np.flatnonzero(candidates).tolist():
                labelled[row] = wanted in self.label((layer, int(features[row]))).casefold()
            where = np.full(len(features), len(_FOUND_IN))
            shown = self._any(layer, self._windows_with(layer, before))
            matches = (labelled, promotes.any(axis=1), self._any(layer, whole[peaks]), shown)
            for number in reversed(range(len(matches))):
                where[matches[number]] = number
            for row in np.flatnonzero(where < len(_FOUND_IN)).tolist():
                rate = int(self._tensors[f"{layer}.fired"][row]) / self.positions
                found.append((int(where[row]), -float(logit[row]), -rate, (layer, int(features[row]))))
        return {key: _FOUND_IN[number] for number, _, _, key in sorted(found)}

    def _any(self, layer: int, of_contexts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each feature of a layer whether any of its contexts has a property."""
        return np.logical_or.reduceat(of_contexts, np.asarray(self._tensors[f"{layer}.offsets"][:-1], dtype=np.int64))

    def _windows_with(self, layer: int, before: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each context of a layer whether a token that it shows matches, given the matches before each token."""
        context, peak = self._tensors[f"{layer}.context"], self._tensors[f"{layer}.peak"].astype(np.int64)
        starts = self._tensors["starts"].astype(np.int64)
        begin, end = starts[:-1][context], starts[1:][context]
        low = np.maximum(begin + peak - self.settings["before"], begin)
        high = np.minimum(begin + peak + self.settings["after"] + 1, end)
        return np.asarray(before[high] > before[low])

    def belongs_to(self, model_name: str, transcoders_name: str, fingerprints: Mapping[str, str] | None = None) -> str:
        """Check that these are the cards of a model and transcoders.

        Args:
            model_name: The model's name.
            transcoders_name: The transcoders' name.
            fingerprints: What `graph.settings["fingerprints"]` holds. They decide; the names do where one is unknown.

        Returns:
            "" if they are, otherwise one line that says what is different.
        """
        theirs = {"model": model_name, "transcoders": transcoders_name}
        mine = {"model": self.model_name, "transcoders": self.transcoders_name}
        for what in ("transcoders", "model"):
            same = same_weights(what, self.fingerprints, fingerprints)
            if same is None:
                same = _last_part(mine[what]) == _last_part(theirs[what])
            if not same:
                other_weights = " with other weights" if mine[what] == theirs[what] else ""
                return (
                    f"the cards in {self.path} are of other {'transcoders' if what == 'transcoders' else 'model weights'}: "
                    f"made of {mine[what]}{other_weights}, the graph of {theirs[what]}"
                )
        return ""

    def _row(self, layer: int, feature: int) -> int | None:
        if not 0 <= layer < self.n_layers:
            return None
        row = int(np.searchsorted(self._features[layer], feature))
        return row if row < len(self._features[layer]) and self._features[layer][row] == feature else None

    def _existing(self, key: Key) -> int:
        row = self._row(*key)
        if row is None:
            raise KeyError(f"L{key[0]}/{key[1]}")
        return row

    def _rows(self, layer: int, row: int) -> tuple[int, int]:
        first, last = self._tensors[f"{layer}.offsets"][row : row + 2].tolist()
        return first, last

    def _peak_tokens(self, layer: int, first: Any, last: int | None = None) -> NDArray[Any]:
        """The token at the peak of rows: of an array of them, or of a range."""
        rows = slice(first, last) if last is not None else first
        starts = self._tensors["starts"][self._tensors[f"{layer}.context"][rows]].astype(np.int64)
        return np.asarray(self._tensors["tokens"][starts + self._tensors[f"{layer}.peak"][rows]])

    def _context(self, layer: int, number: int) -> TopContext:
        context = int(self._tensors[f"{layer}.context"][number])
        peak = int(self._tensors[f"{layer}.peak"][number])
        begin, end = self._tensors["starts"][context : context + 2].tolist()
        low = max(peak - self.settings["before"], 0)
        high = min(peak + self.settings["after"] + 1, end - begin)
        tokens = [self._string(token) for token in self._tensors["tokens"][begin + low : begin + high].tolist()]
        activations = np.zeros(high - low, np.float32)
        first, last = self._tensors[f"{layer}.windows"][number : number + 2].tolist()
        positions = self._tensors[f"{layer}.position"][first:last].astype(np.int64) - low
        activations[positions] = self._tensors[f"{layer}.activation"][first:last]
        # Activations have 11 significant bits (see `tracer/cards/tops.py`): more than five digits would be noise.
        return TopContext(tokens, [float(f"{value:.5g}") for value in activations.tolist()], peak - low, context, low)

    def _logits(self, layer: int, row: int, end: str, count: int | None = None) -> list[tuple[str, float]]:
        values = {"promoted": "raised", "suppressed": "lowered"}[end]
        tokens = self._tensors[f"{layer}.{end}"][row][:count].tolist()
        scaled = self._tensors[f"{layer}.{values}"][row][:count].astype(np.float64)
        logits = (scaled * float(self._tensors[f"{layer}.spread"][row])).tolist()
        return [(self._string(token), logit) for token, logit in zip(tokens, logits, strict=True)]

    def _label(self, layer: int, row: int, peaks: list[str], promoted: list[tuple[str, float]]) -> str:
        spread = float(self._tensors[f"{layer}.spread"][row])
        coherent = self._coherent(layer)
        return automatic_label(
            peaks,
            promoted,
            spread,
            self.vocabulary_size,
            None if coherent is None else bool(coherent[row]),
            is_late(layer, self.n_layers),
        )

    def _histogram(self, layer: int, row: int) -> dict[str, list[float]]:
        counts = self._tensors[f"{layer}.histogram"][row]
        width = 2.0 ** int(self._tensors[f"{layer}.exponent"][row]) / len(counts)
        used = int(np.flatnonzero(counts)[-1]) + 1
        return {"counts": counts[:used].tolist(), "edges": [i * width for i in range(used + 1)]}

    def _string(self, number: int) -> str:
        if (known := self._strings.get(number)) is None:
            begin, end = self._tensors["string_starts"][number : number + 2].tolist()
            known = bytes(self._tensors["strings"][begin:end]).decode("utf-8", "surrogatepass")
            self._strings[number] = known
        return known


def with_card_labels(graph: AttributionGraph, cards: FeatureCards | None) -> AttributionGraph:
    """Return the graph with automatic labels for the features that have none, also those that pruning dropped.

    Args:
        graph: Raw or pruned.
        cards: Its features' cards; without any, the graph itself is returned.

    Example:
        >>> with_card_labels(graph, FeatureCards("cards.safetensors")).feature_labels[0]
        '~ → Texas'
    """
    if cards is None:
        return graph
    labels = list(graph.feature_labels)
    known: dict[Key, str] = {}
    for node in range(graph.layout.n_features):
        if not labels[node].strip():
            key = graph.feature_key(node)
            if key not in known:
                known[key] = cards.label(key) if key in cards else ""
            labels[node] = known[key]
    return dataclasses.replace(graph, feature_labels=labels)


def _pairs(logits: list[list[Any]]) -> str:
    names = distinct([token for token, _ in logits])
    return ", ".join(f"{name} {signed(value)}" for name, (_, value) in zip(names, logits, strict=True))


def _context_html(tokens: list[str], activations: list[float], largest: float) -> str:
    """Tokens, the more strongly the feature fires the stronger their background."""
    return "".join(
        f'<span style="background:rgba(0,114,178,{0.5 * value / largest:.2f})" title="{plain(value)}">{text(token)}</span>'
        if value > 0
        else text(token)
        for token, value in zip(tokens, activations, strict=True)
    )


def _last_part(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].partition("@")[0]
