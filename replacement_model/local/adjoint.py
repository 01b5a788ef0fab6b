"""Gradients of targets, carried down through the frozen layers: the rows of an attribution graph.

Implements Ameisen et al. 2025, "Circuit Tracing", section "Constructing an Attribution Graph for a Prompt", as products
written out rather than autograd. The norms' frozen scales are folded into the matrices (gains into the projections,
1 / rms into the attention pattern), so that a layer is matrix products and nothing else. Gradients are kept position by
position, [position, row, dimension]: attention then mixes positions in one large product for all rows at once.

Letters: L layers, P positions, P' up to the last one that matters, D d_model, H heads, K kv heads, W head width,
B target rows, S of them started, N active features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.local.folding import FoldedLayers, folded_patterns
from crosstrace.replacement_model.local.record import PassRecord

Patterns = Sequence[tuple[slice, slice, Tensor]]
"""The keys, the queries and the folded pattern (H, Q, C) of each block of attention."""
MeetOutput = Callable[[int, Tensor], None]
"""Called with a layer and the gradients (P', S, D) with respect to its MLP's output."""
MeetHeads = Callable[[int, Tensor, Patterns], None]
"""Called with a layer, the gradients (H, P', S, W) with respect to what its heads write, and its patterns."""


@dataclass(frozen=True)
class Target:
    """A direction in the residual stream whose value a row explains.

    Attributes:
        layer: The row is `<gradient, r>`, with r the residual stream that enters this layer (L: what the final norm
            reads).
        position: Where in the prompt.
        gradient_d: (D,) float32.
        value: The row's left-hand side, from the forward pass.
        after_attention: Whether r is the residual stream after the layer's attention instead.
    """

    layer: int
    position: int
    gradient_d: Tensor
    value: float
    after_attention: bool = False


@dataclass(frozen=True)
class Rows:
    """Direct effects on a batch of B targets.

    Attributes:
        features_bn: (B, N) float32, of every active feature.
        errors_blp: (B, L, P) float32, of every error.
        tokens_bp: (B, P) float32, of every token.
        unattributed_b: (B,) float32, of decoder biases and excluded positions.
    """

    features_bn: Tensor
    errors_blp: Tensor
    tokens_bp: Tensor
    unattributed_b: Tensor


class Adjoint:
    """The adjoint of one prompt's local replacement model, with buffers that batches share.

    Attributes:
        record: The forward pass that it is the adjoint of.
        folded: Its layers with the norms folded into them.
    """

    def __init__(self, record: PassRecord, budget: int) -> None:
        """Take the adjoint of a forward pass.

        Args:
            record: What the forward pass left behind.
            budget: Bytes for transcoders and all that a prompt needs on the device; see `FoldedLayers`.
        """
        self.record = record
        self.folded = FoldedLayers(record, budget)
        self._buffers: dict[str, Tensor] = {}

    def release(self) -> None:
        """Give back the buffers and folded layers; they are made again when needed."""
        self._buffers.clear()
        self.folded.release()

    @torch.no_grad()
    def rows(self, targets: Sequence[Target]) -> Rows:
        """Return the direct effects of every source on targets in any order."""
        # Highest first: the rows that a layer concerns are then the leading ones, and no others are touched.
        order = sorted(range(len(targets)), key=lambda row: (-targets[row].layer, not targets[row].after_attention))
        rows = self._descend([targets[row] for row in order])
        if order == sorted(order):
            return rows
        back = torch.empty(len(targets), dtype=torch.int64)
        back[order] = torch.arange(len(targets))
        back = back.to(rows.tokens_bp.device)
        return Rows(rows.features_bn[back], rows.errors_blp[back], rows.tokens_bp[back], rows.unattributed_b[back])

    def _descend(self, targets: Sequence[Target]) -> Rows:
        n_rows, top = len(targets), targets[0].layer
        n_positions = max(target.position for target in targets) + 1
        record = self.record
        n_layers, n_all, d_model = record.errors_lpd.shape
        device = record.errors_lpd.device
        outputs_pbld = self._buffer("outputs", n_positions, n_rows, top, d_model)
        errors_blp = torch.zeros(n_rows, n_layers, n_all, device=device)
        tokens_bp = torch.zeros(n_rows, n_all, device=device)
        unattributed_b = torch.zeros(n_rows, device=device)

        def meet_output(layer: int, gradient_psd: Tensor) -> None:
            started = gradient_psd.shape[1]
            outputs_pbld[:, :started, layer] = gradient_psd
            outputs_pbld[:, started:, layer] = 0
            met_ps2 = torch.bmm(
                gradient_psd,
                torch.stack([record.errors_lpd[layer, :n_positions], record.constants_lpd[layer, :n_positions]], -1),
            )
            errors_blp[:started, layer, :n_positions] = met_ps2[..., 0].T
            unattributed_b[:started] += met_ps2[..., 1].sum(0)

        gradient_psd = self.descend(targets, meet_output=meet_output)
        tokens_bp[:, :n_positions] = torch.bmm(gradient_psd, record.residuals_lpd[0, :n_positions, :, None])[..., 0].T
        features_bn = record.active_rows.scores(
            record.activations, outputs_pbld.transpose(0, 1), [target.layer for target in targets]
        )
        return Rows(features_bn, errors_blp, tokens_bp, unattributed_b)

    @torch.no_grad()
    def descend(
        self,
        targets: Sequence[Target],
        lowest: int = 0,
        first: int = 0,
        meet_output: MeetOutput | None = None,
        meet_heads: MeetHeads | None = None,
    ) -> Tensor:
        """Carry the gradients of targets down the layers.

        What it calls back with lies in buffers that the next layer overwrites, and holds the S targets that have started,
        which are the first ones.

        Args:
            targets: Highest first: of one layer, those that are read after its attention first.
            lowest: Where to stop: the gradients are those of what enters this layer.
            first: The first position that matters; tensors begin there.
            meet_output: Called for each MLP's output on the way.
            meet_heads: Called for each layer's attention on the way.

        Returns:
            (P', S, D) gradients with respect to the residual stream that enters the lowest layer.
        """
        top, d_model = targets[0].layer, self.record.errors_lpd.shape[-1]
        positions = slice(first, max(target.position for target in targets) + 1)
        gradient_psd = self._buffer("gradient", positions.stop - first, 0, d_model)
        gradient_psd = self._start(targets, gradient_psd, top, first, after_attention=True)
        if gradient_psd.shape[1]:
            self._through_attention(top, gradient_psd, positions, meet_heads)
        gradient_psd = self._start(targets, gradient_psd, top, first, after_attention=False)
        for layer in range(top - 1, lowest - 1, -1):
            if meet_output is not None:
                meet_output(layer, gradient_psd)
            skip_dd = self.folded[layer].skip_dd
            if skip_dd is not None:
                skipped_psd = (gradient_psd.view(-1, d_model) @ skip_dd).view_as(gradient_psd)
                gradient_psd.addcmul_(self.record.layers[layer].mlp_norm.inverse_rms_p1[positions, None], skipped_psd)
            gradient_psd = self._start(targets, gradient_psd, layer, first, after_attention=True)
            self._through_attention(layer, gradient_psd, positions, meet_heads)
            gradient_psd = self._start(targets, gradient_psd, layer, first, after_attention=False)
        return gradient_psd

    def _start(
        self, targets: Sequence[Target], gradient_psd: Tensor, layer: int, first: int, after_attention: bool
    ) -> Tensor:
        """The gradients (P', S, D) with the targets that are read here added to them; they come next in order."""
        n_positions, started, d_model = gradient_psd.shape
        stop = started
        while stop < len(targets) and (targets[stop].layer, targets[stop].after_attention) == (layer, after_attention):
            stop += 1
        if stop == started:
            return gradient_psd
        # Two buffers take turns: rows of a position are neighbours, so adding rows moves all of them.
        spare = "spare" if gradient_psd.data_ptr() == self._buffers["gradient"].data_ptr() else "gradient"
        grown_psd = self._buffer(spare, n_positions, len(targets), d_model).view(-1)
        grown_psd = grown_psd[: n_positions * stop * d_model].view(n_positions, stop, d_model)
        grown_psd[:, :started] = gradient_psd
        grown_psd[:, started:] = 0
        new = targets[started:stop]
        positions_b = torch.tensor([target.position - first for target in new], device=grown_psd.device)
        rows_b = torch.arange(started, stop, device=grown_psd.device)
        grown_psd[positions_b, rows_b] = torch.stack([target.gradient_d for target in new])
        return grown_psd

    def _through_attention(
        self, layer: int, gradient_psd: Tensor, positions: slice, meet_heads: MeetHeads | None = None
    ) -> None:
        """Carry a gradient (P', S, D) through attention, in place: add V^T A^T O^T of it, between the norms' scales."""
        n_positions, started, d_model = gradient_psd.shape
        size = self.record.description
        width, kv_heads, n_heads = size.head_dim, size.n_kv_heads, size.n_heads
        shared = n_heads // kv_heads  # heads that read one kv head
        folded = self.folded[layer]
        flat_xd = gradient_psd.view(-1, d_model)
        mixed_hqx = self._buffer("mixed", n_heads, n_positions, started * width)
        for head in range(n_heads):
            columns = slice(head * width, (head + 1) * width)
            torch.mm(flat_xd, folded.output_dx[:, columns], out=mixed_hqx[head].view(-1, width))
        patterns = list(folded_patterns(self.record.layers[layer], positions))
        if meet_heads is not None:
            meet_heads(layer, mixed_hqx.view(n_heads, n_positions, started, width), patterns)
        values_cx = self._buffer("values", n_positions, started * width)
        for kv_head in range(kv_heads):
            heads = slice(kv_head * shared, (kv_head + 1) * shared)
            for keys, queries, pattern_hqc in patterns:
                mixed = mixed_hqx[heads, queries]
                if mixed.shape[1] == n_positions:  # heads of one kv head add up: one product over (head, query) pairs
                    torch.mm(pattern_hqc[heads].flatten(0, 1).T, mixed.flatten(0, 1), out=values_cx[keys])
                    continue
                torch.mm(pattern_hqc[heads.start].T, mixed[0], out=values_cx[keys])
                for head in range(1, shared):
                    values_cx[keys].addmm_(pattern_hqc[heads.start + head].T, mixed[head])
            flat_xd.addmm_(values_cx.view(-1, width), folded.value_xd[kv_head * width : (kv_head + 1) * width])

    def _buffer(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor; the next call with this name gets the same memory."""
        size = 1
        for length in shape:
            size *= length
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers.pop(name, None)  # before the new one is made, so that both never exist at once
            self._buffers[name] = torch.empty(size, device=self.record.errors_lpd.device)
        return self._buffers[name][:size].view(shape)


def row_bytes(description: ModelDescription, n_positions: int, n_active: int) -> int:
    """Return the memory in bytes that one more row of a batch takes, on the way down and once it is done."""
    heads = description.n_heads + 1
    per_position = description.d_model * (description.n_layers + 3) + heads * description.head_dim
    return 4 * (n_positions * per_position + description.d_model * description.n_layers + 2 * n_active)
