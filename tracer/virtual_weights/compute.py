"""The strongest virtual weights of chosen features, with every other feature, in bounded memory.

Decoders are read once for a set of chosen features, a tile of rows at a time from the mapped files, and meet the gradients of
all chosen features in one product. Where there are no skip connections, the layers of a row are added up first: what a
target in layer m reads is the sum of all that was written below it. Encoders meet what the chosen features write, a layer
at a time. Nothing of the size of (features x features) is ever held: of every block the strongest links are kept.

With a sample of a corpus (`crosstrace.tracer.samples`), each link has two more numbers: at how many of its positions both
features are active, and the expectation of Ameisen et al. 2025, "Circuit Tracing", section "Global Weights in Cross-Layer
Transcoders" (TWERA): Σ a_source · a_target / Σ a_target · V, the mean attribution through the residual stream, weighted by the
target's activation.

Letters: n chosen features, L layers, F features of a layer, J layers a feature writes to, D d_model, T tokens of the sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosstrace.graphs.cards.weights import WeightLink
from crosstrace.replacement_model import ReplacementModel, weight_fingerprints
from crosstrace.replacement_model.memory import usable_bytes
from crosstrace.replacement_model.readouts.norm_scales import NormScales
from crosstrace.tracer.defaults import STRONGEST_WEIGHTS
from crosstrace.tracer.samples.sample import CorpusSample
from crosstrace.tracer.virtual_weights.paths import Head, LinearPaths
from crosstrace.tracer.virtual_weights.rankings import RANKINGS
from crosstrace.tracer.virtual_weights.strongest import RESIDUAL, Links, Strongest

Key = tuple[int, int]
"""(layer, feature)."""
FEWEST_FIRED = 10
"""A pair that was never active together is interference, a weight that superposition makes and that no computation uses, if
each of the two was active at this many positions or more; of rarer ones the sample says nothing."""
_TILE_BYTES = 64 * 2**20
_CHOSEN_SHARE = 1 / 8  # of the memory, for what is held of the chosen features at a time


@dataclass(frozen=True)
class GlobalWeights:
    """The strongest links of n features.

    Attributes:
        model_name: The model.
        transcoders_name: The transcoders.
        n_features: Features of each layer; numbers through all layers count these.
        n_heads: Heads of a layer.
        features: The n features, (layer, feature).
        inputs: What writes to each.
        outputs: What each writes to.
        by: How links were ranked, one of `RANKINGS`.
        positions: Positions of the sample that count; 0 without one.
        fired: For each layer at how many of them each feature fires; none without a sample.
        heads: The heads whose paths they take; none for the residual stream.
    """

    model_name: str
    transcoders_name: str
    n_features: list[int]
    n_heads: int
    features: list[Key]
    inputs: Links
    outputs: Links
    by: str = "virtual"
    positions: int = 0
    fired: Sequence[NDArray[np.int64]] = ()
    heads: Sequence[Head] = ()

    def strongest_inputs(self, feature: Key) -> list[WeightLink]:
        """Return the links from the features that write to one of the n, strongest first.

        Raises:
            KeyError: It is not one of them.
        """
        return self._links(self.inputs, feature)

    def strongest_outputs(self, feature: Key) -> list[WeightLink]:
        """Return the links to the features that one of the n writes to, strongest first.

        Raises:
            KeyError: It is not one of them.
        """
        return self._links(self.outputs, feature)

    def first(self, count: int) -> GlobalWeights:
        """Return the same with fewer links of each feature, the strongest."""
        sides = (
            Links(*(getattr(side, one.name)[:, :count] for one in fields(Links)))
            for side in (self.inputs, self.outputs)
        )
        inputs, outputs = sides
        return replace(self, inputs=inputs, outputs=outputs)

    def named(self) -> list[Key]:
        """Return every feature that occurs, at either end."""
        others = torch.cat([self.inputs.others_nk.flatten(), self.outputs.others_nk.flatten()]).unique().tolist()
        return [*self.features, *(self.key_of(number) for number in others if number >= 0)]

    @cached_property
    def _row_of(self) -> dict[Key, int]:
        return {key: row for row, key in enumerate(self.features)}

    def key_of(self, number: int) -> Key:
        """Return (layer, feature) of a feature's number through all layers."""
        firsts = np.cumsum([0, *self.n_features])
        layer = int(np.searchsorted(firsts, number, side="right")) - 1
        return layer, number - int(firsts[layer])

    def interference(
        self, ones: NDArray[np.int64], others: NDArray[np.int64], together: NDArray[np.int64]
    ) -> NDArray[np.int8]:
        """Say which pairs are interference: 1, 0, or -1 where the sample says nothing; see `FEWEST_FIRED`.

        Args:
            ones: (E,) features, numbered through all layers.
            others: (E,) those at the other end.
            together: (E,) at how many positions both are active; -1 where that is not known.
        """
        if not self.positions:
            return np.full(len(ones), -1, np.int8)
        rarest = np.minimum(self._fired[ones], self._fired[others])
        return np.where((rarest >= FEWEST_FIRED) & (together >= 0), together == 0, -1).astype(np.int8)

    @cached_property
    def _fired(self) -> NDArray[np.int64]:
        return np.concatenate(list(self.fired))

    def _links(self, side: Links, feature: Key) -> list[WeightLink]:
        if feature not in self._row_of:
            raise KeyError(f"L{feature[0]}/{feature[1]}")
        row = self._row_of[feature]
        own = int(np.cumsum([0, *self.n_features])[feature[0]]) + feature[1]
        there = side.others_nk[row] >= 0
        others, vias, weights, together, expected = (
            part[row][there].numpy()
            for part in (side.others_nk, side.via_nk, side.weights_nk, side.together_nk, side.expected_nk)
        )
        marks = self.interference(np.full(len(others), own), others, together)
        return [
            WeightLink(
                self.key_of(other),
                weight,
                None if via == RESIDUAL else divmod(via, self.n_heads),
                None if both < 0 else both,
                None if both < 0 else mean,
                None if mark < 0 else bool(mark),
            )
            for other, via, weight, both, mean, mark in zip(
                *(column.tolist() for column in (others, vias, weights, together, expected, marks)), strict=True
            )
        ]


@torch.no_grad()
def global_weights(
    model: ReplacementModel,
    features: Sequence[Key] | None = None,
    scales: NormScales | None = None,
    sample: CorpusSample | None = None,
    *,
    top: int = STRONGEST_WEIGHTS,
    by: str = "virtual",
    heads: Sequence[Head] = (),
) -> GlobalWeights:
    """Find the strongest inputs and outputs of features among all features of the transcoders.

    Args:
        model: The replacement model.
        features: The features, as (layer, feature); None for all.
        scales: Typical denominators of the norms; None takes those of the sample.
        sample: A sample of a corpus, for co-activation and expectation.
        top: Links kept on each side of a feature.
        by: `virtual` ranks by the size of the virtual weight, `expected` by that of the expectation over the sample.
        heads: Heads (layer, head): paths through one of them, in place of the residual stream alone. Expectation and
            co-activation are of paths at one position, so that links through heads have neither.

    Returns:
        The links.

    Raises:
        ValueError: A feature or a head does not exist, the ranking is unknown or needs a sample, or there are neither
            denominators nor a sample.

    Example:
        >>> found = global_weights(model, [(0, 61)], sample=sample)
        >>> found.strongest_outputs((0, 61))[0].feature
        (2, 417)
    """
    used = model.transcoders
    if by not in RANKINGS:
        raise ValueError(f"ranking {by!r} is not known; it is one of {', '.join(RANKINGS)}")
    if by == "expected" and sample is None:
        raise ValueError("ranking by expectation needs a sample of a corpus")
    if by == "expected" and heads:
        raise ValueError("paths through heads have no expectation over positions: rank them by the virtual weight")
    if scales is None and sample is None:
        raise ValueError("virtual weights need typical denominators of the norms: give a sample of a corpus")
    if sample is not None and (different := sample.belongs_to(model.name, used.name, weight_fingerprints(model))):
        raise ValueError(different)
    if top < 1:
        raise ValueError(f"links kept: {top} is too few; at least 1")
    if scales is None:
        assert sample is not None
        scales = sample.norm_scales()
    paths = LinearPaths(model, scales)
    for head in heads:
        paths.check_head(head)
    counts = [used.n_features[layer] for layer in range(used.n_layers)]
    chosen = _checked(features, counts)
    together = None if sample is None or heads else _Together(sample)
    order = sorted(range(len(chosen)), key=chosen.__getitem__)
    budget = used.memory_budget or usable_bytes(used.device)
    at_a_time = max(1, int(_CHOSEN_SHARE * budget) // (4 * used.d_model * (used.n_layers + 2)))
    sides: list[tuple[Links, Links]] = []
    for start in range(0, len(order), at_a_time):
        some = [chosen[i] for i in order[start : start + at_a_time]]
        ranked = _Ranked(paths, some, list(dict.fromkeys(heads)) or [None], together, top, by == "expected", counts)
        sides.append((ranked.inputs(), ranked.outputs()))
    back = torch.empty(len(order), dtype=torch.int64)
    back[order] = torch.arange(len(order))
    inputs, outputs = (
        Links.joined([part[side] for part in sides])[back] if sides else Links.none(0, top) for side in (0, 1)
    )
    return GlobalWeights(
        model.name,
        used.name,
        counts,
        model.description.n_heads,
        chosen,
        inputs,
        outputs,
        by,
        0 if sample is None else sample.positions,
        [] if sample is None else [sample.fired(layer) for layer in range(used.n_layers)],
        tuple(dict.fromkeys(heads)),
    )


def _checked(features: Sequence[Key] | None, counts: Sequence[int]) -> list[Key]:
    if features is None:
        return [(layer, feature) for layer, count in enumerate(counts) for feature in range(count)]
    for layer, feature in features:
        if not 0 <= layer < len(counts):
            raise ValueError(f"there is no feature L{layer}/{feature}: layers are 0 to {len(counts) - 1}")
        if not 0 <= feature < counts[layer]:
            raise ValueError(f"there is no feature L{layer}/{feature}: layer {layer} has 0 to {counts[layer] - 1}")
    return list(dict.fromkeys(features))


class _Together:
    """How often, and how strongly, pairs of features are active together in a sample."""

    def __init__(self, sample: CorpusSample) -> None:
        self._sample = sample

    def chosen(self, some: Sequence[Key]) -> scipy.sparse.csr_array:
        """Return the activations (n, T) of features, sparse."""
        columns = []
        for layer in sorted({layer for layer, _ in some}):
            own = [feature for at, feature in some if at == layer]
            columns.append(self._sample.activations(layer)[:, own])
        return scipy.sparse.csr_array(scipy.sparse.hstack(columns, format="csc").T)

    def pairs(
        self, chosen_nt: scipy.sparse.csr_array, layer: int
    ) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
        """Return Σ a · a' and the number of positions (n, F) of pairs of the chosen ones with a layer's features."""
        of_layer_tf = self._sample.activations(layer)
        return _product(chosen_nt, of_layer_tf), _product(_fires(chosen_nt), _fires(of_layer_tf))

    def total(self, layer: int) -> NDArray[np.float64]:
        """Return Σ a (F,) of a layer's features."""
        return np.asarray(self._sample.activations(layer).sum(axis=0)).ravel()


def _product(one: scipy.sparse.csr_array, other: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(one @ other)


def _fires(values: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((np.ones_like(values.data), values.indices, values.indptr), shape=values.shape)


class _Ranked:
    """The links of some features, ascending by (layer, feature), through some paths."""

    def __init__(
        self,
        paths: LinearPaths,
        some: Sequence[Key],
        heads: Sequence[Head | None],
        together: _Together | None,
        top: int,
        by_expected: bool,
        counts: Sequence[int],
    ) -> None:
        self._paths, self._some, self._heads = paths, some, heads
        self._together, self._top, self._by_expected = together, top, by_expected
        self._used = paths.model.transcoders
        self._firsts = np.cumsum([0, *counts]).tolist()
        self._counts = counts
        layers = np.array([layer for layer, _ in some], dtype=np.int64)
        self._layers = sorted(set(layers.tolist()))
        self._rows = {
            layer: slice(int(np.searchsorted(layers, layer)), int(np.searchsorted(layers, layer, side="right")))
            for layer in self._layers
        }
        self._chosen_nt = None if together is None else together.chosen(some)
        self._totals_n = (
            None if self._chosen_nt is None else torch.from_numpy(np.asarray(self._chosen_nt.sum(axis=1)).ravel())
        )

    def _features(self, layer: int) -> Tensor:
        return torch.tensor([feature for _, feature in self._some[self._rows[layer]]], device=self._used.device)

    def _via(self, head: Head | None) -> int:
        return RESIDUAL if head is None else head[0] * self._paths.model.description.n_heads + head[1]

    def inputs(self) -> Links:
        """Return what writes to the features."""
        kept = Strongest(len(self._some), self._top, self._by_expected)
        gradients: list[tuple[int, Head | None, list[Tensor]]] = []
        for layer in self._layers:
            encoder_df = self._used.encoder(layer).w_enc_df
            readers_nd = encoder_df[:, self._features(layer)].T.float() * self._paths.reading_gain(layer)
            for head in self._heads:
                if at_outputs := self._paths.pull(layer, readers_nd, head):
                    gradients.append((layer, head, at_outputs))
        for source in range(max(self._layers, default=0)):
            readers = [one for one in gradients if len(one[2]) > source]
            if not readers:
                continue
            pairs = None if self._together is None else self._together.pairs(self._chosen_nt, source)
            for first, rows_fjd in self._tiles(source):
                if not self._paths.skips:
                    rows_fjd = rows_fjd.cumsum(1)
                for layer, head, at_outputs in readers:
                    written = min(len(at_outputs) - source, rows_fjd.shape[1])
                    if self._paths.skips:
                        gradient_nx = torch.cat(at_outputs[source : source + written], dim=1)
                        weights_nf = gradient_nx @ rows_fjd[:, :written].flatten(1).T
                    else:
                        weights_nf = at_outputs[source] @ rows_fjd[:, written - 1].T
                    self._keep(kept, layer, head, weights_nf, source, first, pairs)
        return kept.links()

    def outputs(self) -> Links:
        """Return what the features write to."""
        kept = Strongest(len(self._some), self._top, self._by_expected)
        arriving: dict[int, list[tuple[int, Head | None, Tensor]]] = {}
        for layer in self._layers:
            rows_njd = self._used.decoder_rows(layer, self._features(layer)).float()
            for head in self._heads:
                for target, vectors_nd in self._paths.push(layer, rows_njd, head):
                    arriving.setdefault(target, []).append((layer, head, vectors_nd))
        for target in sorted(arriving):
            encoder_df = self._used.encoder(target).w_enc_df
            pairs = None if self._together is None else self._together.pairs(self._chosen_nt, target)
            totals_f = None if self._together is None else torch.from_numpy(self._together.total(target))
            step = max(1, _TILE_BYTES // (4 * self._used.d_model))
            for first in range(0, self._counts[target], step):
                tile_df = encoder_df[:, first : first + step].float()
                for layer, head, vectors_nd in arriving[target]:
                    weights_nf = (vectors_nd * self._paths.reading_gain(target)) @ tile_df
                    own = None if totals_f is None else totals_f[first : first + step]
                    self._keep(kept, layer, head, weights_nf, target, first, pairs, own)
        return kept.links()

    def _keep(
        self,
        kept: Strongest,
        layer: int,
        head: Head | None,
        weights_nf: Tensor,
        other: int,
        first: int,
        pairs: tuple[scipy.sparse.csr_array, scipy.sparse.csr_array] | None,
        targets_f: Tensor | None = None,
    ) -> None:
        """Keep the strongest of a block: virtual weights (n, F) between chosen features of a layer and others from `first`.

        Args:
            kept: Where.
            layer: Of the chosen features.
            head: The path.
            weights_nf: The block.
            other: The layer of the others.
            first: The first of them.
            pairs: What `_Together.pairs` says of the chosen features and that layer's.
            targets_f: Σ a of the others where they are the targets; None where the chosen ones are.
        """
        rows = self._rows[layer]
        number = self._firsts[other] + first
        if pairs is None:
            kept.add(rows, weights_nf, number, self._via(head))
            return
        window = slice(first, first + weights_nf.shape[1])
        sums_nf, together_nf = (torch.from_numpy(part[rows, window].toarray()) for part in pairs)
        assert self._totals_n is not None
        totals = self._totals_n[rows, None] if targets_f is None else targets_f[None]
        expected_nf = torch.where(totals > 0, sums_nf / totals.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        expected_nf = (expected_nf.to(weights_nf.device) * weights_nf).float()
        together_nf = together_nf.to(weights_nf.device).long()
        kept.add(rows, weights_nf, number, RESIDUAL, together_nf, expected_nf)

    def _tiles(self, layer: int) -> Iterator[tuple[int, Tensor]]:
        """Yield a layer's decoder rows (f, J, D) in float32, a tile at a time, each with the first feature of its own."""
        used = self._used
        step = max(1, _TILE_BYTES // (4 * used.d_model * used.reader.n_written(layer)))
        for part_n in torch.arange(used.n_features[layer]).split(step):
            if used.keeps_decoders:
                rows_fjd = used.decoder(layer)[part_n]
            else:
                rows_fjd = used.place(used.reader.decoder_rows(layer, part_n))
            yield int(part_n[0]), rows_fjd.float()
