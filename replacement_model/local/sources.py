"""Sources of edges, carried up through the frozen layers: what one source adds to the residual stream everywhere.

The counterpart of `crosstrace.replacement_model.local.adjoint`, with the same products the other way round. Streams are
kept position by position, [position, source, dimension].

Letters: L layers, P positions, P' from the first one that matters up to the last, D d_model, H heads, K kv heads, W head
width, J layers a source writes to, S sources, N active features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model.local.folding import FoldedLayers, folded_patterns
from crosstrace.replacement_model.local.record import PassRecord

MeetValues = Callable[[int, Tensor], None]
"""Called with a layer and the values (P', S, K * W) that its attention reads of the sources, without the norm's 1 / rms."""
MeetStream = Callable[[int, bool, Tensor], None]
"""Called with a layer, whether this is after its attention, and the streams (P', S, D) there."""


@dataclass(frozen=True)
class Source:
    """What one source writes into the residual stream.

    Attributes:
        layer: The first layer whose MLP output it is part of; -1: it is there before layer 0, as a token is.
        position: Where it writes; None: everywhere.
        vectors_jd: (J, D) float32, what it writes to `layer` and the layers after it; (J, P, D) where it writes everywhere.
    """

    layer: int
    position: int | None
    vectors_jd: Tensor

    @property
    def first(self) -> int:
        """The first position where it is."""
        return self.position or 0


def feature_sources(record: PassRecord, entries_n: Tensor) -> Iterator[Source]:
    """Yield active features as sources.

    Args:
        record: The forward pass.
        entries_n: (n,) int64 ascending indices into its activations.
    """
    active = record.activations
    entries_n = entries_n.to(active.device)
    layers = active.layers[entries_n]
    for layer in layers.unique().tolist():
        here_n = entries_n[layers == layer]
        rows_njd = record.active_rows.rows_of(layer, here_n - active.layer(layer).start)
        vectors_njd = rows_njd * active.values[here_n, None, None]
        for position, vectors_jd in zip(active.positions[here_n].tolist(), vectors_njd, strict=True):
            yield Source(layer, position, vectors_jd)


def error_source(record: PassRecord, layer: int, position: int) -> Source:
    """Return what a layer's transcoder misses at a position as a source."""
    return Source(layer, position, record.errors_lpd[layer, position][None])


def token_source(record: PassRecord, position: int) -> Source:
    """Return a token's vector as a source."""
    return Source(-1, position, record.residuals_lpd[0, position][None])


def ascend(
    record: PassRecord,
    folded: FoldedLayers,
    sources: Sequence[Source],
    positions: slice,
    top: int,
    meet_values: MeetValues | None = None,
    meet_stream: MeetStream | None = None,
) -> None:
    """Carry sources up the layers.

    What it calls back with holds the S sources that have started, which are the first ones.

    Args:
        record: The forward pass.
        folded: Its layers with the norms folded into them.
        sources: Those that start lowest first.
        positions: Start and stop of the positions that matter; none of the sources may start before.
        top: The last layer whose attention matters.
        meet_values: Called for each layer's attention.
        meet_stream: Called for what enters each layer, the one above the last included, and after its attention.
    """
    size = record.description
    width, shared = size.head_dim, size.n_heads // size.n_kv_heads
    n_positions, d_model = positions.stop - positions.start, record.errors_lpd.shape[-1]
    stream_psd = torch.zeros(n_positions, len(sources), d_model, device=record.errors_lpd.device)
    started = 0
    for layer in range(-1, size.n_layers):
        if layer >= 0 and started:
            part_psd = stream_psd[:, :started]
            if meet_stream is not None:
                meet_stream(layer, False, part_psd)
            if layer > top:
                return
            values_psx = part_psd @ folded[layer].value_xd.T
            if meet_values is not None:
                meet_values(layer, values_psx)
            part_psd += _attended(record, folded, layer, values_psx, positions, width, shared)
            if meet_stream is not None:
                meet_stream(layer, True, part_psd)
            skip_dd = folded[layer].skip_dd
            if skip_dd is not None:
                inverse_p11 = record.layers[layer].mlp_norm.inverse_rms_p1[positions, None]
                part_psd.addcmul_(inverse_p11, part_psd @ skip_dd.T)
        while started < len(sources) and sources[started].layer <= layer:
            started += 1
        for i, source in enumerate(sources[:started]):
            if (step := layer - source.layer) < len(source.vectors_jd):
                if source.position is None:
                    stream_psd[:, i] += source.vectors_jd[step, positions]
                else:
                    stream_psd[source.position - positions.start, i] += source.vectors_jd[step]
    if started and meet_stream is not None:
        meet_stream(size.n_layers, False, stream_psd[:, :started])


def _attended(
    record: PassRecord,
    folded: FoldedLayers,
    layer: int,
    values_psx: Tensor,
    positions: slice,
    width: int,
    shared: int,
) -> Tensor:
    """What a layer's attention adds to the streams (P', S, D), given its values (P', S, K * W)."""
    n_positions, n_sources, n_values = values_psx.shape
    output_dx = folded[layer].output_dx
    added_psd = values_psx.new_zeros(n_positions, n_sources, output_dx.shape[0])
    patterns = list(folded_patterns(record.layers[layer], positions))
    for kv_head in range(n_values // width):
        values_px = values_psx[..., kv_head * width : (kv_head + 1) * width].reshape(n_positions, -1)
        for head in range(kv_head * shared, (kv_head + 1) * shared):
            mixed_qx = values_px.new_zeros(values_px.shape)
            for keys, queries, pattern_hqc in patterns:
                mixed_qx[queries].addmm_(pattern_hqc[head], values_px[keys])
            columns = slice(head * width, (head + 1) * width)
            added_psd.view(-1, output_dx.shape[0]).addmm_(mixed_qx.view(-1, width), output_dx[:, columns].T)
    return added_psd
