"""Global weights: what features do to each other whatever the prompt, in one file that is read in place.

The file is `.safetensors`; `crosstrace weights` writes it. It is a sparse matrix in coordinate form, one entry for each link,
ascending by target, then source, then path. One header entry, `crosstrace-weights`, is JSON: the version, what the weights
belong to, `n_features` and `n_heads` of each layer, `top` (links kept on each side of a feature), `by` (how they were
ranked), `positions` (of the sample) and `names` (labels that somebody gave to features in it). Its tensors:

| tensor | shape | |
| --- | --- | --- |
| `features` | (n, 2) | the features whose strongest links are in the file, (layer, feature) |
| `target`, `source` | (E,) | numbers through all layers: those of layer l follow those of layer l - 1 |
| `via` | (E,) | the head on the way, layer times heads plus head; -1 for the residual stream |
| `weight` | (E,) | the virtual weight: what a unit of the source adds to the target's pre-activation |
| `together` | (E,) | at how many positions of the sample both were active; -1 where that is not known |
| `expected` | (E,) | the expectation over the sample (TWERA); NaN where it is not known |
| `interference` | (E,) | 1 if the two were never active together although each was often; 0 if not; -1 if not known |

Letters: n features, E entries.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from crosstrace.graphs.fingerprints import same_weights
from crosstrace.graphs.tensor_file import headed_tensors

FORMAT, VERSION = "crosstrace-weights", 1
TENSORS = ("features", "target", "source", "via", "weight", "together", "expected", "interference")
Key = tuple[int, int]
"""(layer, feature)."""


def weights_path(cards: str | os.PathLike[str]) -> Path:
    """Return where the global weights that belong to a file of cards are kept: beside it.

    Example:
        >>> weights_path("cards.safetensors").name
        'cards.weights.safetensors'
    """
    return Path(cards).with_suffix(".weights.safetensors")


@dataclass(frozen=True)
class WeightLink:
    """One virtual weight.

    Attributes:
        feature: The feature at the other end, (layer, feature).
        weight: The virtual weight.
        head: The (layer, head) on the way; None for the residual stream.
        together: At how many positions of the sample both are active; None if that is not known.
        expected: The expectation over the sample; None if it is not known.
        interference: Whether the two were never active together although each was often; None if that is not known.
    """

    feature: Key
    weight: float
    head: tuple[int, int] | None = None
    together: int | None = None
    expected: float | None = None
    interference: bool | None = None


class FeatureWeights:
    """The global weights in a file. Nothing is read before it is used.

    Attributes:
        path: The file.
        model_name: The model.
        transcoders_name: The transcoders.
        fingerprints: Of the weights of both.
        n_features: Features of each layer.
        n_heads: Heads of a layer.
        top: Links kept on each side of a feature.
        by: `virtual` or `expected`: how links were ranked.
        positions: Positions of the sample; 0 without one.
        names: Labels that somebody gave to features in the file.

    Example:
        >>> weights = FeatureWeights("cards.weights.safetensors")
        >>> weights.inputs((3, 417))[0].feature
        (1, 20)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file.

        Raises:
            OSError: There is no such file.
            ValueError: It holds no global weights, is damaged, or of a newer version; one line that names it.
        """
        self.path = Path(path)
        header, self._tensors = headed_tensors(path, FORMAT, VERSION, "a file of global weights")
        try:
            self.model_name, self.transcoders_name = str(header["model"]), str(header["transcoders"])
            self.fingerprints: dict[str, str] = header["fingerprints"]
            self.n_features: list[int] = header["n_features"]
            self.n_heads, self.top, self.positions = (int(header[key]) for key in ("n_heads", "top", "positions"))
            self.by = str(header["by"])
            self.names: dict[Key, str] = {_parsed(name): str(label) for name, label in header["names"].items()}
            if missing := [name for name in TENSORS if name not in self._tensors]:
                raise ValueError(f"incomplete, it lacks {', '.join(missing)}")
        except (ValueError, KeyError, TypeError) as problem:
            raise ValueError(f"{path}: {' '.join(str(problem).split())}") from None

    @cached_property
    def features(self) -> set[Key]:
        """The features whose strongest links are in the file."""
        return {(layer, feature) for layer, feature in self._tensors["features"].tolist()}

    def inputs(self, feature: Key) -> list[WeightLink]:
        """Return the links from the features that write to one, strongest first; none if it is not one of `features`."""
        return self._links(feature, "target", "source")

    def outputs(self, feature: Key) -> list[WeightLink]:
        """Return the links to the features that one writes to, strongest first; none if it is not one of `features`."""
        return self._links(feature, "source", "target")

    def matrix(self, of: str = "weight") -> scipy.sparse.csr_array:
        """Return the links through the residual stream as a sparse matrix [target, source] over all features.

        Args:
            of: `weight` or `expected`; entries that are not known are left out.
        """
        size = sum(self.n_features)
        known = (self._tensors["via"] < 0) & ~np.isnan(self._tensors[of])
        rows, columns = (self._tensors[end][known].astype(np.int64) for end in ("target", "source"))
        return scipy.sparse.csr_array(
            scipy.sparse.coo_array((self._tensors[of][known], (rows, columns)), shape=(size, size))
        )

    def belongs_to(self, fingerprints: Mapping[str, str]) -> bool:
        """Say whether the weights are of the model and transcoders with these fingerprints."""
        return all(
            same_weights(what, self.fingerprints, fingerprints) is not False for what in ("transcoders", "model")
        )

    def key_of(self, number: int) -> Key:
        """Return (layer, feature) of a feature's number through all layers."""
        layer = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return layer, number - int(self._firsts[layer])

    @cached_property
    def _firsts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *self.n_features])

    @cached_property
    def _by_end(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For both ends the entries in the order of their features, and those features."""
        found = {}
        for end in ("target", "source"):
            order = np.argsort(self._tensors[end], kind="stable")
            found[end] = (order, self._tensors[end][order].astype(np.int64))
        return found

    def _links(self, feature: Key, own: str, other: str) -> list[WeightLink]:
        if feature not in self.features:
            return []
        order, ends = self._by_end[own]
        number = int(self._firsts[feature[0]]) + feature[1]
        entries = order[np.searchsorted(ends, number) : np.searchsorted(ends, number, side="right")]
        ranked = np.nan_to_num(np.abs(self._tensors["expected" if self.by == "expected" else "weight"][entries]))
        return [self._link(entry, other) for entry in entries[np.argsort(-ranked, kind="stable")][: self.top].tolist()]

    def _link(self, entry: int, other: str) -> WeightLink:
        part = {name: self._tensors[name][entry].item() for name in TENSORS[1:]}
        return WeightLink(
            self.key_of(part[other]),
            part["weight"],
            None if part["via"] < 0 else divmod(part["via"], self.n_heads),
            None if part["together"] < 0 else part["together"],
            None if np.isnan(part["expected"]) else part["expected"],
            None if part["interference"] < 0 else bool(part["interference"]),
        )


def links_as_json(links: list[WeightLink], name_of: Mapping[Key, str], most: int) -> list[dict[str, Any]]:
    """Return links as cards hold them: `feature`, `label`, `weight`, and where known `head`, `expected`, `interference`.

    Args:
        links: Strongest first.
        name_of: Names of features.
        most: How many to return at most.
    """
    found = []
    for link in links[:most]:
        entry: dict[str, Any] = {
            "feature": f"L{link.feature[0]}/{link.feature[1]}",
            "label": name_of.get(link.feature, ""),
            "weight": float(f"{link.weight:.4g}"),
        }
        if link.head is not None:
            entry["head"] = f"{link.head[0]}.{link.head[1]}"
        if link.expected is not None:
            entry["expected"] = float(f"{link.expected:.4g}")
        if link.interference:
            entry["interference"] = True
        found.append(entry)
    return found


def _parsed(name: str) -> Key:
    layer, _, feature = name.removeprefix("L").partition("/")
    return int(layer), int(feature)
