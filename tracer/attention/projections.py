"""What every node of a graph adds to a head's query or key.

Linear functionals of the residual stream at one position are targets like any other: a row of edges for each dimension of a
head gives what every node adds to that dimension. Where many positions are asked for and nodes are few, one sweep up for
each node costs less than a sweep down for each dimension at each position; both give the same.

Letters: n sources among the nodes, S of them, W head width, D d_model, C positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crosstrace.replacement_model import Target
from crosstrace.replacement_model.local.sources import ascend
from crosstrace.tracer.attention.places import TracedPrompt
from crosstrace.tracer.attribution.batches import Batcher, automatic_batch_size


def node_values(traced: TracedPrompt, layer: int, positions: Sequence[int], functionals: Sequence[Tensor]) -> Tensor:
    """Return what every node adds to linear functionals of the residual stream that enters a layer.

    Args:
        traced: The prompt of the graph.
        layer: The layer.
        positions: C positions.
        functionals: For each of them (W, D) float32.

    Returns:
        (C, n + 1, W) float32 on the CPU; the last row is the remainder: biases, excluded positions, features without a
        node. The rows add up to the functional of the stream.
    """
    places = [(traced.node_layers < layer) & (traced.node_positions <= position) for position in positions]
    n_sources = int(np.logical_or.reduce(places)[: traced.graph.layout.n_sources].sum())
    if len(positions) * len(functionals[0]) > n_sources:
        return _by_sweeps_up(traced, layer, positions, functionals)
    return _by_rows(traced, layer, positions, functionals)


def _by_rows(traced: TracedPrompt, layer: int, positions: Sequence[int], functionals: Sequence[Tensor]) -> Tensor:
    layout, stream_pd = traced.graph.layout, traced.local.residuals_lpd[layer]
    entries = torch.from_numpy(traced.entries)
    batcher = Batcher(traced.local, automatic_batch_size(traced.local))
    out_cnw = torch.zeros(len(positions), layout.n_sources + 1, len(functionals[0]))
    for i, (position, functional_wd) in enumerate(zip(positions, functionals, strict=True)):
        values_w = functional_wd @ stream_pd[position]
        targets = [Target(layer, position, row, 0.0) for row in functional_wd]
        start = 0
        while start < len(targets):
            found = batcher.rows(targets[start : start + batcher.batch_size])
            if found is None:  # memory ran out, and fewer are tried at a time
                continue
            part = slice(start, start + len(found.tokens_bp))
            out_cnw[i, layout.features, part] = found.features_bn.cpu()[:, entries].T
            out_cnw[i, layout.errors, part] = found.errors_blp.flatten(1).T.cpu()
            out_cnw[i, layout.tokens, part] = found.tokens_bp.T.cpu()
            start = part.stop
        out_cnw[i, -1] = (values_w.double().cpu() - out_cnw[i].double().sum(0)).float()
    traced.local.adjoint.release()
    return out_cnw


@torch.no_grad()
def _by_sweeps_up(traced: TracedPrompt, layer: int, positions: Sequence[int], functionals: Sequence[Tensor]) -> Tensor:
    layout, local, size = traced.graph.layout, traced.local, traced.local.description
    end = max(positions) + 1
    nodes = np.flatnonzero((traced.node_layers < layer) & (traced.node_positions < end))
    nodes = nodes[nodes < layout.n_sources]
    out_cnw = torch.zeros(len(positions), layout.n_sources + 1, len(functionals[0]))
    order = nodes[np.lexsort((traced.node_layers[nodes], traced.node_positions[nodes]))]
    at_a_time = automatic_batch_size(local)
    for start in range(0, len(order), at_a_time):
        batch = order[start : start + at_a_time]
        first = int(traced.node_positions[batch].min())
        by_number = np.sort(batch)
        made = dict(zip(by_number.tolist(), traced.sources(by_number), strict=True))
        batch = batch[np.argsort(traced.node_layers[batch], kind="stable")]

        def meet_stream(
            at: int, after: bool, stream_psd: Tensor, batch: np.ndarray = batch, first: int = first
        ) -> None:
            if at != layer or after:
                return
            for i, (position, functional_wd) in enumerate(zip(positions, functionals, strict=True)):
                if position >= first:
                    values_sw = stream_psd[position - first] @ functional_wd.T
                    out_cnw[i, torch.from_numpy(batch[: len(values_sw)])] = values_sw.cpu()

        sources = [made[node] for node in batch.tolist()]
        ascend(
            local.adjoint.record,
            local.adjoint.folded,
            sources,
            slice(first, end),
            min(layer - 1, size.n_layers - 1),
            meet_stream=meet_stream,
        )
    for i, (position, functional_wd) in enumerate(zip(positions, functionals, strict=True)):
        values_w = functional_wd @ local.residuals_lpd[layer, position]
        out_cnw[i, -1] = (values_w.double().cpu() - out_cnw[i].double().sum(0)).float()
    return out_cnw
