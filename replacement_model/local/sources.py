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
    positions: slice | None,
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
        positions: Start and stop of the positions that matter; none of the sources may start before. None: of each source
            its own position alone, so that P' is 1.
        top: The last layer whose attention matters.
        meet_values: Called for each layer's attention.
        meet_stream: Called for what enters each layer, the one above the last included, and after its attention.
    """
    size = record.description
    n_positions = 1 if positions is None else positions.stop - positions.start
    stream_psd = record.errors_lpd.new_zeros(n_positions, len(sources), size.d_model)
    own_s = torch.tensor([source.first for source in sources], device=stream_psd.device)
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
            mixed_psx = _mixed(record, layer, values_psx, own_s[:started] if positions is None else positions)
            part_psd += mixed_psx @ folded[layer].output_dx.T
            if meet_stream is not None:
                meet_stream(layer, True, part_psd)
            skip_dd = folded[layer].skip_dd
            if skip_dd is not None:
                inverse_p1 = record.layers[layer].mlp_norm.inverse_rms_p1
                inverse_ps1 = inverse_p1[own_s[:started]][None] if positions is None else inverse_p1[positions, None]
                part_psd.addcmul_(inverse_ps1, part_psd @ skip_dd.T)
        while started < len(sources) and sources[started].layer <= layer:
            started += 1
        for i, source in enumerate(sources[:started]):
            if (step := layer - source.layer) < len(source.vectors_jd):
                if source.position is None:
                    # Each at its own position: then the prompt has one.
                    whole_pd = source.vectors_jd[step]
                    stream_psd[:, i] += whole_pd if positions is None else whole_pd[positions]
                else:
                    at = 0 if positions is None else source.position - positions.start
                    stream_psd[at, i] += source.vectors_jd[step]
    if started and meet_stream is not None:
        meet_stream(size.n_layers, False, stream_psd[:, :started])


def _mixed(record: PassRecord, layer: int, values_psx: Tensor, positions: slice | Tensor) -> Tensor:
    """What the heads of a layer write of some sources side by side (P', S, H * W), given their values (P', S, K * W)."""
    n_positions, n_sources, _ = values_psx.shape
    size, frozen = record.description, record.layers[layer]
    width, shared = size.head_dim, size.n_heads // size.n_kv_heads
    if isinstance(positions, Tensor):
        own_hs = (
            frozen.attention.own(values_psx.device)[:, positions]
            * (frozen.attention_norm.inverse_rms_p1 * frozen.input_norm.inverse_rms_p1)[positions, 0]
        )
        values_skw = values_psx[0].unflatten(-1, (size.n_kv_heads, width)).repeat_interleave(shared, 1)
        return (values_skw * own_hs.T[..., None]).flatten(1)[None]
    patterns = list(folded_patterns(frozen, positions))
    mixed_psx = values_psx.new_zeros(n_positions, n_sources, size.n_heads * width)
    mixed_pshw = mixed_psx.view(n_positions, n_sources, size.n_heads, width)
    for kv_head in range(size.n_kv_heads):
        heads = slice(kv_head * shared, (kv_head + 1) * shared)
        values_px = values_psx[..., kv_head * width : (kv_head + 1) * width].reshape(n_positions, -1)
        for keys, queries, pattern_hqc in patterns:
            # Heads that share a kv head read the same values: one product for all of them.
            read_hqsw = (pattern_hqc[heads].flatten(0, 1) @ values_px[keys]).view(
                shared, queries.stop - queries.start, n_sources, width
            )
            mixed_pshw[queries, :, heads] += read_hqsw.permute(1, 2, 0, 3)
    return mixed_psx
