"""A sample of a corpus: whole contexts, and at each position every feature that fires there.

How often two features are active together can be asked of any pair, and there are too many pairs to count them all while a
corpus streams by. So the pass that makes feature cards keeps some contexts whole: their tokens, all activations, and the
denominators of the norms. Statistics of the pairs that somebody asks for are sparse products over the sample, and held-out
contexts for the test of labels come from it too.

The file is `.safetensors`. One header entry, `crosstrace-sample`, is JSON: what the sample belongs to and how it was drawn.
Its tensors: `starts` (C + 1,), where each context starts in `tokens`; `first` (C,), the position in each from which positions
count; `number` (C,), which context of the corpus it is; `norms` (C, L, 3) float64, the sum over the positions that count of
1 / rms of each layer's norms (`replacement_model/readouts/norm_scales.py`); `token_ids` (V',), to which the numbers in
`tokens` refer; `strings` and `string_starts`, these tokens' text in UTF-8. For every layer l: `l.offsets` (T + 1,), where
the entries of each token start in `l.features` and `l.values`.

Letters: C contexts, T tokens of all contexts, L layers, V' tokens that occur, n entries.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.fingerprints import same_weights
from crosstrace.graphs.tensor_file import headed_tensors
from crosstrace.replacement_model.readouts.norm_scales import NormScales

FORMAT, VERSION = "crosstrace-sample", 1
_SHARED = ("starts", "first", "number", "norms", "tokens", "token_ids", "strings", "string_starts")


def sample_path(cards: str | os.PathLike[str]) -> Path:
    """Return where the sample that belongs to a file of cards is kept: beside it.

    Example:
        >>> sample_path("cards.safetensors").name
        'cards.sample.safetensors'
    """
    return Path(cards).with_suffix(".sample.safetensors")


class CorpusSample:
    """A sample in a file. Nothing is read before it is used.

    Attributes:
        path: The file.
        model_name: The model that the sample was read with.
        transcoders_name: The transcoders.
        fingerprints: Of the weights of both.
        corpus: `names` of the texts, `tokens` and `contexts` read in all.
        n_features: Number of features of each layer.
        share: The share of the corpus' contexts that was kept, 0 to 1.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a sample.

        Raises:
            OSError: There is no such file.
            ValueError: It is not a sample, is damaged, or of a newer version; one line names it.
        """
        self.path = Path(path)
        header, self._tensors = headed_tensors(path, FORMAT, VERSION, "a sample of a corpus")
        try:
            self.model_name, self.transcoders_name = str(header["model"]), str(header["transcoders"])
            self.fingerprints: dict[str, str] = header["fingerprints"]
            self.corpus: dict[str, Any] = header["corpus"]
            self.n_features: list[int] = header["n_features"]
            self.share = float(header["share"])
            names = [f"{layer}.{name}" for layer in range(self.n_layers) for name in ("offsets", "features", "values")]
            if missing := [name for name in [*_SHARED, *names] if name not in self._tensors]:
                raise ValueError(f"incomplete, it lacks {', '.join(missing[:5])}")
        except (ValueError, KeyError, TypeError) as problem:
            raise ValueError(f"{path}: {' '.join(str(problem).split())}") from None

    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.n_features)

    @property
    def n_contexts(self) -> int:
        """C."""
        return len(self._tensors["first"])

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """(T,) which tokens count: those after the excluded first positions of their context."""
        starts = self.starts
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
        return np.asarray(within >= np.repeat(self._tensors["first"].astype(np.int64), np.diff(starts)))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(C + 1,) where each context starts among the tokens."""
        return self._tensors["starts"].astype(np.int64)

    @property
    def positions(self) -> int:
        """Number of positions that count."""
        return int(self.counted.sum())

    def numbers(self) -> NDArray[np.int64]:
        """Return the number of each context in the corpus (C,)."""
        return self._tensors["number"].astype(np.int64)

    def norm_scales(self) -> NormScales:
        """Return the mean of 1 / rms of every norm over the positions that count.

        Raises:
            ValueError: No position counts.
        """
        if not self.positions:
            raise ValueError(f"{self.path}: the sample has no position that counts")
        return NormScales(torch.from_numpy(self._tensors["norms"].sum(0) / self.positions).float())

    def activations(self, layer: int) -> scipy.sparse.csr_array:
        """Return a layer's activations (T, F) float64, sparse."""
        width = self.n_features[layer]
        values, features, offsets = (self._tensors[f"{layer}.{name}"] for name in ("values", "features", "offsets"))
        index = features.astype(np.int64)
        return scipy.sparse.csr_array(
            (values.astype(np.float64), index, offsets.astype(np.int64)), shape=(len(self.counted), width)
        )

    def fired(self, layer: int) -> NDArray[np.int64]:
        """Return at how many positions each feature of a layer fires (F,)."""
        return np.bincount(self._tensors[f"{layer}.features"].astype(np.int64), minlength=self.n_features[layer])

    def feature(self, layer: int, feature: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return where a feature fires among all tokens, ascending, and how strongly."""
        entries = np.flatnonzero(self._tensors[f"{layer}.features"] == feature)
        tokens = np.searchsorted(self._tensors[f"{layer}.offsets"].astype(np.int64), entries, side="right") - 1
        return tokens, self._tensors[f"{layer}.values"][entries]

    def token_texts(self, start: int, stop: int) -> list[str]:
        """Return the text of some tokens."""
        return [self._string(number) for number in self._tensors["tokens"][start:stop].tolist()]

    def token_numbers(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return the numbers of some tokens within the sample; equal tokens have equal numbers."""
        return self._tensors["tokens"][start:stop].astype(np.int64)

    def string_of(self, number: int) -> str:
        """Return the text of the token with a number, as `token_numbers` gives them."""
        return self._string(number)

    def belongs_to(self, model_name: str, transcoders_name: str, fingerprints: Mapping[str, str] | None = None) -> str:
        """Check that the sample was read with a model and transcoders.

        Returns:
            "" if it was, otherwise one line that says what is different. Fingerprints decide; names do where one is unknown.
        """
        theirs = {"model": model_name, "transcoders": transcoders_name}
        mine = {"model": self.model_name, "transcoders": self.transcoders_name}
        for what in ("transcoders", "model"):
            same = same_weights(what, self.fingerprints, fingerprints)
            if same is None:
                same = Path(mine[what]).name == Path(theirs[what]).name
            if not same:
                return (
                    f"{self.path} was read with other {'transcoders' if what == 'transcoders' else 'model weights'}: "
                    f"{mine[what]}, not {theirs[what]} as it is now"
                )
        return ""

    def _string(self, number: int) -> str:
        begin, end = self._tensors["string_starts"][number : number + 2].tolist()
        return bytes(self._tensors["strings"][begin:end]).decode("utf-8", "surrogatepass")


def sample_of_cards(cards: FeatureCards) -> CorpusSample | None:
    """Open the sample beside a file of cards, if there is one and it was read with the same weights.

    Raises:
        ValueError: It is damaged, or was read with other weights.
    """
    path = sample_path(cards.path)
    if not path.is_file():
        return None
    sample = CorpusSample(path)
    if different := sample.belongs_to(cards.model_name, cards.transcoders_name, cards.fingerprints):
        raise ValueError(different)
    return sample
