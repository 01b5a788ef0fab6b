"""Head loadings: how much of an edge passes through each attention head.

Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions", section on head loadings. With patterns
and norms frozen an edge is a sum over the ways from its source to its target. In layer l each way either takes one of the
heads or passes the layer's attention by: with x what the source adds to the residual stream that enters the layer, and g
the target's gradient after its attention,

    heads[l, h] = Σ_{q,k} A[h, q, k] · ⟨ O_hᵀ (g_pa ⊙ s_pa ⊙ g_q),  V (g_in ⊙ s_in ⊙ x_k) ⟩
    bypass[l]   = edge − Σ_h heads[l, h]

Deviation: sources are any node, and cross-layer transcoders are allowed: what they write in later layers bypasses.
One sweep up for each source and one down for each target give x and g; where they meet is a product of (P, W) matrices.

Letters: E edges, S sources, T targets, L layers, P positions, P' some of them, D d_model, H heads, K kv heads, W head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.attention.kept import HeadLoadings
from crosstrace.graphs.sparse_rows import values_at
from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel, Target
from crosstrace.replacement_model.local.adjoint import Patterns
from crosstrace.replacement_model.local.sources import Source, ascend
from crosstrace.replacement_model.memory import usable_bytes
from crosstrace.tracer.attention.places import TracedPrompt
from crosstrace.tracer.attribution.batches import batch_size_for
from crosstrace.tracer.progress import row_progress

# The share of the memory budget that the values of sources may take, and the most bytes of it on a CPU.
_SHARE, _LARGEST_BYTES = 0.25, 2 * 10**9
# Sources and targets are batched by the part of the prompt that their edges span, whose ends are rounded to this many places.
_SPANS = 8
# Where a sweep up ends and the graph's own edge differ by more than this share of the row's largest edge, the graph is not
# of this model: rounding is a hundredth of it.
_TOLERANCE = 1e-3


def head_loadings(
    model: ReplacementModel,
    graph: AttributionGraph,
    edges: object,
    progress: bool | None = False,
) -> HeadLoadings:
    """Return how much of some edges passes through each head, exactly.

    Args:
        model: The model and transcoders of the graph.
        graph: Raw or pruned.
        edges: (E, 2) rows (target node, source node): a tensor, an array, or a list of pairs.
        progress: Show a progress bar on standard error; None: if that is a terminal.

    Returns:
        The loadings of the E edges, in the order given: for every layer they add up to the edge.

    Raises:
        ValueError: The graph is of other weights, or an edge is not in it; one line names it.

    Example:
        >>> graph = trace(model, "The capital of the state containing Dallas is")
        >>> target = graph.layout.logit_index(0)
        >>> loadings = head_loadings(model, graph, [(target, source) for source in graph.edges[[target]].indices])
        >>> loadings.strongest(0)
        (4, 2)
    """
    pairs = check_edges(graph, edges)
    return loadings_of(TracedPrompt(model, graph), pairs, progress=progress)


def check_edges(graph: AttributionGraph, edges: object) -> NDArray[np.int64]:
    """Return edges as an (E, 2) array of (target node, source node).

    Raises:
        ValueError: They are not pairs of whole numbers, or one is not an edge of the graph; it is named.
    """
    given = edges.detach().cpu().numpy() if isinstance(edges, Tensor) else np.asarray(edges)
    if given.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if given.ndim != 2 or given.shape[1] != 2 or given.dtype.kind not in "iu":
        raise ValueError(
            f"edges must be pairs (target node, source node) of whole numbers, not {given.dtype} of shape {given.shape}"
        )
    pairs = given.astype(np.int64)
    outside = (pairs < 0) | (pairs >= graph.n)
    if outside.any():
        raise ValueError(f"edges name node {pairs[outside][0]}; the graph has nodes 0 to {graph.n - 1}")
    lacking = np.flatnonzero(values_at(graph.edges, pairs[:, 0], pairs[:, 1]) == 0)
    if len(lacking):
        target, source = pairs[lacking[0]].tolist()
        raise ValueError(
            f"there is no edge from {graph.describe(source)} (node {source}) to {graph.describe(target)} (node {target})"
        )
    return pairs


def loadings_of(
    traced: TracedPrompt,
    pairs: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
    flow: Tensor | None = None,
    progress: bool | None = False,
    checked: bool = True,
) -> HeadLoadings:
    """Return the loadings of edges of a traced prompt.

    Args:
        traced: The prompt.
        pairs: (E, 2) edges of its graph, as `check_edges` returns them.
        weights: (E,) what each edge counts for in `flow`.
        flow: (L, H, P, P) float32 to which the weighted sum of what the edges move is added, [query, key].
        progress: Show a progress bar on standard error; None: if that is a terminal.
        checked: Compare the edges that the sweeps arrive with to the graph's.

    Raises:
        ValueError: The edges are not those of the model, or a target is a direction.
    """
    sources, source_of = np.unique(pairs[:, 1], return_inverse=True)
    nodes, target_of = np.unique(pairs[:, 0], return_inverse=True)
    layers, positions = traced.node_layers[sources], traced.node_positions[sources]
    sweep = Sweep(
        traced.local,
        lambda chosen: list(traced.sources(sources[chosen])),
        layers,
        positions,
        traced.targets(nodes.tolist()),
        source_of,
        target_of,
        weights,
        flow,
    )
    sweep.run(progress)
    edges = torch.from_numpy(pairs)
    if checked:
        known = torch.from_numpy(values_at(traced.graph.edges, pairs[:, 0], pairs[:, 1]).astype(np.float64))
        _check_meeting(traced, pairs, sweep.edges_e.cpu().double(), known)
    heads_elh = sweep.heads_elh.cpu()
    return HeadLoadings(edges, heads_elh, (sweep.edges_e.cpu()[:, None] - heads_elh.sum(-1)))


def _check_meeting(traced: TracedPrompt, pairs: NDArray[np.int64], swept_e: Tensor, known_e: Tensor) -> None:
    """Compare what sweeps up arrive with to the graph's edges, which were computed from the top down."""
    edges = traced.graph.edges
    largest_n = np.zeros(traced.graph.n)
    for row in np.unique(pairs[:, 0]).tolist():
        largest_n[row] = np.abs(edges.data[edges.indptr[row] : edges.indptr[row + 1]]).max(initial=0.0)
    wrong = (swept_e - known_e).abs().numpy() > _TOLERANCE * largest_n[pairs[:, 0]]
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        target, source = pairs[i].tolist()
        raise ValueError(
            f"the edge from {traced.graph.describe(source)} to {traced.graph.describe(target)} is {float(known_e[i]):.6g} in "
            f"the graph and {float(swept_e[i]):.6g} in {traced.model.name}: the graph is not of this model as it is now"
        )


@dataclass
class _Values:
    """What the heads of each layer read of one batch of sources.

    Attributes:
        rows: (S,) which sources, in the order of the batch: those that start lowest first.
        first: The position at which the tensors begin; None: at each source's own, where they also end.
        values_skpw: For each layer (S', K, P', W) of the sources that have started.
    """

    rows: NDArray[np.int64]
    first: int | None
    values_skpw: dict[int, Tensor] = field(default_factory=dict)


class Sweep:
    """Sweeps up and down that meet at every head.

    Attributes:
        heads_elh: (E, L, H) float32, once it has run.
        edges_e: (E,) float32 the edges as the sweeps up give them.
    """

    def __init__(
        self,
        local: LocalReplacementModel,
        make: Callable[[NDArray[np.int64]], Sequence[Source]],
        layers: NDArray[np.int64],
        positions: NDArray[np.int64],
        targets: Sequence[Target],
        source_of: NDArray[np.int64],
        target_of: NDArray[np.int64],
        weights: NDArray[np.float64] | None = None,
        flow: Tensor | None = None,
    ) -> None:
        """Prepare the sweeps.

        Args:
            local: The prompt's local replacement model.
            make: Gives sources by their ascending numbers.
            layers: (S,) where they start.
            positions: (S,) the first position of each.
            targets: T targets.
            source_of: (E,) the source of each edge.
            target_of: (E,) its target.
            weights: (E,) what each edge counts for in `flow`.
            flow: (L, H, P, P) to which what the edges move is added.
        """
        self.local, self.make, self.targets = local, make, targets
        self.layers, self.positions = layers, positions
        self.source_of, self.target_of = source_of, target_of
        self.weights, self.flow = weights, flow
        size, device = local.description, local.residuals_lpd.device
        self.device, self.shared, self.width = device, size.n_heads // size.n_kv_heads, size.head_dim
        self.heads_elh = torch.zeros(len(source_of), size.n_layers, size.n_heads, device=device)
        self.edges_e = torch.zeros(len(source_of), device=device)
        self.tops = np.array([target.layer for target in targets], dtype=np.int64)
        self.read_after = np.array([target.after_attention for target in targets], dtype=bool)
        self.ends = np.array([target.position + 1 for target in targets], dtype=np.int64)
        # What lies between a source's position and its last target's is all that its sweep has to cover, and likewise
        # between a target's first source and the target.
        self.source_ends = np.zeros(len(layers), dtype=np.int64)
        np.maximum.at(self.source_ends, source_of, self.ends[target_of])
        self.target_firsts = self.ends.copy()
        np.minimum.at(self.target_firsts, target_of, positions[source_of])
        self._by_target = np.argsort(target_of, kind="stable")

    @torch.no_grad()
    def run(self, progress: bool | None = False) -> None:
        """Fill the tensors."""
        if not len(self.source_of):
            return
        blocks = self._blocks()
        total = len(self.layers) + len(self.targets) * len(blocks)
        with row_progress(total, progress) as advance:
            for block in blocks:
                held = []
                for batch in block:
                    held.append(self._up(batch))
                    advance(len(batch))
                chosen = np.isin(self.source_of, np.concatenate(block))
                needed = np.unique(self.target_of[chosen])
                for batch in self._target_batches(needed):
                    self._down(batch, held)
                    advance(len(batch))
                advance(len(self.targets) - len(needed))
            self.local.adjoint.release()

    def _blocks(self) -> list[list[NDArray[np.int64]]]:
        """Batches of sources at neighbouring positions, in blocks whose values fit into memory together."""
        size = self.local.description
        budget = self.local.transcoders.memory_budget or usable_bytes(self.device)
        room = _SHARE * budget if self.device.type != "cpu" else min(_SHARE * budget, _LARGEST_BYTES)
        floats = 3 * size.d_model + (size.n_heads + 2 * size.n_kv_heads) * size.head_dim
        blocks: list[list[NDArray[np.int64]]] = [[]]
        held = 0
        everything = np.arange(len(self.layers))
        for batch in self._batches(everything, self.positions, self.source_ends, self.layers, floats, singles=True):
            positions = 1 if self._alone(batch) else int(self.source_ends[batch].max() - self.positions[batch].min())
            needed = 4 * size.n_layers * len(batch) * size.n_kv_heads * size.head_dim * max(positions, 0)
            if blocks[-1] and held + needed > room:
                blocks.append([])
                held = 0
            blocks[-1].append(batch[np.argsort(self.layers[batch], kind="stable")])
            held += needed
        return blocks

    def _batches(
        self,
        rows: NDArray[np.int64],
        firsts: NDArray[np.int64],
        ends: NDArray[np.int64],
        layers: NDArray[np.int64],
        floats_a_position: int,
        singles: bool = False,
    ) -> list[NDArray[np.int64]]:
        """Batches of sources or targets whose positions span about the same part of the prompt."""
        width = max(1, -(-self.local.n_positions // _SPANS))
        low, high = firsts[rows] // width, -(-ends[rows] // width)
        if singles:  # what stays at its position is computed there alone, wherever that is
            alone = ends[rows] - firsts[rows] == 1
            low, high = np.where(alone, -1, low), np.where(alone, -1, high)
        sorting = np.lexsort((layers[rows], high, low))
        order, spans = rows[sorting], np.stack([low, high], axis=1)[sorting]
        starts: list[int] = []
        if len(order):
            starts = np.flatnonzero(np.r_[True, (spans[1:] != spans[:-1]).any(1)]).tolist()
        budget = self.local.transcoders.memory_budget or usable_bytes(self.device)
        batches = []
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            n_positions = max(1, int(spans[start, 1] - spans[start, 0]) * width)
            at_a_time = batch_size_for(n_positions, 4 * n_positions * floats_a_position, budget, self.device.type)
            batches += [order[at : min(at + at_a_time, stop)] for at in range(start, stop, at_a_time)]
        return batches

    def _alone(self, batch: NDArray[np.int64]) -> bool:
        """Whether the edges of each source of a batch stay at its position."""
        return bool((self.source_ends[batch] - self.positions[batch] == 1).all())

    def _target_batches(self, targets: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        size = self.local.description
        floats = 2 * size.d_model + (3 * size.n_heads + 2) * size.head_dim
        batches = self._batches(targets, self.target_firsts, self.ends, self.tops, floats)
        # Highest first, as the adjoint takes them.
        return [batch[np.lexsort((~self.read_after[batch], -self.tops[batch]))] for batch in batches]

    def _up(self, batch: NDArray[np.int64]) -> _Values:
        """Sweep up some sources: keep what heads read of them, and read their edges where they arrive."""
        chosen = np.isin(self.source_of, batch)
        edges = np.flatnonzero(chosen)
        column = {int(row): i for i, row in enumerate(batch)}
        targets = self.target_of[edges]
        first, end = int(self.positions[batch].min()), int(self.source_ends[batch].max())
        alone = self._alone(batch)
        held = _Values(batch, None if alone else first)
        arriving: dict[tuple[int, bool], list[int]] = {}
        for edge in edges.tolist():
            target = self.target_of[edge]
            arriving.setdefault((int(self.tops[target]), bool(self.read_after[target])), []).append(edge)

        def meet_values(layer: int, values_psx: Tensor) -> None:
            values_pskw = values_psx.unflatten(-1, (-1, self.width))
            held.values_skpw[layer] = values_pskw.permute(1, 2, 0, 3).contiguous()

        def meet_stream(layer: int, after: bool, stream_psd: Tensor) -> None:
            here = [e for e in arriving.get((layer, after), []) if self.ends[self.target_of[e]] > first]
            here = [e for e in here if column[int(self.source_of[e])] < stream_psd.shape[1]]
            if here:
                at_e = torch.tensor([0 if alone else self.targets[self.target_of[e]].position - first for e in here])
                column_e = torch.tensor([column[int(self.source_of[e])] for e in here])
                gradients_ed = torch.stack([self.targets[self.target_of[e]].gradient_d for e in here])
                streams_ed = stream_psd[at_e.to(self.device), column_e.to(self.device)]
                self.edges_e[torch.tensor(here, device=self.device)] = (streams_ed * gradients_ed).sum(-1)

        if end > first:
            by_number = np.sort(batch)
            made = dict(zip(by_number.tolist(), self.make(by_number), strict=True))
            highest = int((self.tops[targets] - ~self.read_after[targets]).max())
            record, folded = self.local.adjoint.record, self.local.adjoint.folded
            sources = [made[int(row)] for row in batch]
            ascend(record, folded, sources, None if alone else slice(first, end), highest, meet_values, meet_stream)
        return held

    def _down(self, batch: NDArray[np.int64], held: Sequence[_Values]) -> None:
        """Sweep down some targets, and meet the sources of their edges at every head."""
        meetings = [_Meetings.of(self, batch, values) for values in held]
        lowest = min((one.lowest for one in meetings if one.of_target), default=None)
        if lowest is None:
            return
        first = int(self.target_firsts[batch].min())

        def meet_heads(layer: int, mixed_hpsw: Tensor, patterns: Patterns) -> None:
            values_shpw = _through_patterns(mixed_hpsw, patterns)
            for values, meeting in zip(held, meetings, strict=True):
                if meeting.of_target and layer in values.values_skpw:
                    self._meet(layer, values, meeting, first, values_shpw, mixed_hpsw, patterns)

        targets = [self.targets[row] for row in batch]
        self.local.adjoint.descend(targets, max(lowest + 1, 0), first, meet_heads=meet_heads)

    def _meet(
        self,
        layer: int,
        values: _Values,
        meeting: _Meetings,
        first: int,
        values_shpw: Tensor,
        mixed_hpsw: Tensor,
        patterns: Patterns,
    ) -> None:
        """Multiply what the heads of a layer read of sources with what targets ask of it, between their positions."""
        seen_skpw = values.values_skpw[layer]
        n_seen, n_kv_heads = seen_skpw.shape[:2]
        rows, lows, weighted = [], [], []
        for i, edges_e, columns_e, end in meeting.of_target:
            begin = end - 1 if values.first is None else values.first
            low, high = max(first, begin), min(end, begin + seen_skpw.shape[2])
            count = int(np.searchsorted(columns_e, n_seen))
            if i >= len(values_shpw) or not count or high <= low:
                continue
            read_ekpw = seen_skpw[:, :, low - begin : high - begin][torch.from_numpy(columns_e[:count]).to(self.device)]
            asked_khx = values_shpw[i, :, low - first : high - first].reshape(n_kv_heads, self.shared, -1)
            met_keh = torch.bmm(read_ekpw.flatten(2).transpose(0, 1), asked_khx.transpose(1, 2))
            edges = torch.from_numpy(edges_e[:count]).to(self.device)
            self.heads_elh[edges, layer] = met_keh.transpose(0, 1).reshape(count, -1)
            if self.flow is not None:
                assert self.weights is not None
                of_edges = torch.from_numpy(self.weights[edges_e[:count]]).to(read_ekpw)
                rows.append(i)
                lows.append(low - first)
                weighted.append(torch.einsum("e,ekpw->kpw", of_edges, read_ekpw))
        if rows and self.flow is not None:
            self._move(layer, self.flow, first, rows, lows, weighted, mixed_hpsw, patterns)

    def _move(
        self,
        layer: int,
        flow: Tensor,
        first: int,
        rows: list[int],
        lows: list[int],
        weighted: list[Tensor],
        mixed_hpsw: Tensor,
        patterns: Patterns,
    ) -> None:
        """Add what the heads of a layer move from key to query for some targets, given the weighted values (K, P', W)."""
        n_positions = mixed_hpsw.shape[1]
        read_rkpw = mixed_hpsw.new_zeros(len(rows), weighted[0].shape[0], n_positions, self.width)
        for row, low, values_kpw in zip(read_rkpw, lows, weighted, strict=True):
            row[:, low : low + values_kpw.shape[1]] = values_kpw
        asked_hprw = mixed_hpsw[:, :, rows]
        for head in range(mixed_hpsw.shape[0]):
            asked_px = asked_hprw[head].flatten(1)
            read_px = read_rkpw[:, head // self.shared].transpose(0, 1).flatten(1)
            for keys, queries, pattern_hqc in patterns:
                moved_qc = (asked_px[queries] @ read_px[keys].T) * pattern_hqc[head]
                at_q = slice(queries.start + first, queries.stop + first)
                at_c = slice(keys.start + first, keys.stop + first)
                flow[layer, head, at_q, at_c] += moved_qc.to(flow.device)


@dataclass(frozen=True)
class _Meetings:
    """The edges between a batch of targets and a batch of sources.

    Attributes:
        of_target: For each target that has any: its place in its batch, the edges, their sources' places in the batch of
            sources (ascending), and the position after the target's.
        lowest: The lowest layer in which one of the sources starts.
    """

    of_target: list[tuple[int, NDArray[np.int64], NDArray[np.int64], int]]
    lowest: int

    @staticmethod
    def of(sweep: Sweep, batch: NDArray[np.int64], values: _Values) -> _Meetings:
        """Find the edges between targets and sources."""
        place = np.full(len(sweep.layers), -1)
        place[values.rows] = np.arange(len(values.rows))
        of_target: list[tuple[int, NDArray[np.int64], NDArray[np.int64], int]] = []
        lowest = sweep.local.description.n_layers
        bounds = np.searchsorted(sweep.target_of[sweep._by_target], np.stack([batch, batch + 1]))
        for i, (row, start, stop) in enumerate(zip(batch.tolist(), *bounds.tolist(), strict=True)):
            edges = sweep._by_target[start:stop]
            columns = place[sweep.source_of[edges]]
            edges, columns = edges[columns >= 0], columns[columns >= 0]
            if len(edges):
                by_column = np.argsort(columns, kind="stable")
                of_target.append((i, edges[by_column], columns[by_column], int(sweep.ends[row])))
                lowest = min(lowest, int(sweep.layers[sweep.source_of[edges]].min()))
        return _Meetings(of_target, lowest)


def _through_patterns(mixed_hpsw: Tensor, patterns: Patterns) -> Tensor:
    """Carry gradients with respect to what heads write (H, P', S, W) to the values they read: (S, H, P', W)."""
    values_hpsw = torch.zeros_like(mixed_hpsw)
    for keys, queries, pattern_hqc in patterns:
        read_hcx = torch.bmm(pattern_hqc.transpose(1, 2), mixed_hpsw[:, queries].flatten(2))
        values_hpsw[:, keys] = read_hcx.unflatten(-1, mixed_hpsw.shape[2:])
    return values_hpsw.permute(2, 0, 1, 3).contiguous()
