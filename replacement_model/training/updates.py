"""From the gradients of what features write to new weights.

Where nothing but the reconstruction has a gradient for the decoder, the kernels apply the rows' gradients as they compute
them. Penalties on decoder norms and losses of dead features add to the same rows: then one layer's gradients are gathered
first.

Letters: L trained layers, B tokens of a batch, F features of a layer, U touched rows, D d_model, J layers a feature writes to,
N entries, n those of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crosstrace.kernels import (
    AdamStep,
    RowGradients,
    RowMoments,
    SparseActivations,
    adam_rows,
    decode_backward_adam,
    decode_layer_backward,
    encode_backward,
    encode_backward_adam,
)
from crosstrace.replacement_model.training.dead_features import DeadGradients
from crosstrace.replacement_model.training.parameters import Moments, Parameters
from crosstrace.replacement_model.training.passes import Group, entries_of
from crosstrace.replacement_model.training.sparsity import EntryGradients, Listed, Sparsity


@dataclass(frozen=True, eq=False)
class Backward:
    """One step's backward pass.

    Attributes:
        parameters: The weights, updated in place.
        moments: Adam's state, likewise.
        sparsity: The activation function, whose thresholds are updated if they are trained.
        norms_lf: (L, F) decoder norms.
        x_lbd: (L, B, D_in) normalised inputs.
        listed: Each layer's entries.
        groups: The same in groups, with their gradients; the first has the whole reconstruction's.
        adam: The step's settings.
        target: How many features of a token shall be active.
        strength: The share of the sparsity penalty's weight that counts by now.
        auxiliary: Dead features' entries with gradients of their own.
        dead: For each layer further gradients of dead features; () for none.
    """

    parameters: Parameters
    moments: Moments
    sparsity: Sparsity
    norms_lf: Tensor
    x_lbd: Tensor
    listed: Sequence[Listed]
    groups: Sequence[Group]
    adam: AdamStep
    target: float
    strength: float = 0.0
    auxiliary: Group | None = None
    dead: Sequence[DeadGradients | None] = field(default=())

    def apply(self, gathers: bool = False) -> float:
        """Update all weights.

        Args:
            gathers: Whether penalties have gradients for decoder norms.

        Returns:
            The penalties' part of the loss.
        """
        p, m, x_lbd = self.parameters, self.moments, self.x_lbd
        whole_lbd = self.groups[0].gradient_lbd
        m.decoder_bias.step(p.decoder_bias_ld, whole_lbd.sum(1), self.adam)
        if p.skip_ldd is not None and m.skip is not None:
            m.skip.step(p.skip_ldd, torch.bmm(x_lbd.transpose(1, 2), whole_lbd), self.adam)
        gathers = gathers or self.auxiliary is not None or any(part is not None for part in self.dead)
        return self._gathered() if gathers else self._fused()

    def _fused(self) -> float:
        p, m = self.parameters, self.moments
        entries = self._entries()
        by_value_n = torch.zeros(len(entries), device=self.x_lbd.device)
        for group in self.groups:
            values_n = decode_backward_adam(group.entries, p.rows_ujd(), group.gradient_lbd, m.decoder, self.adam)
            by_value_n[slice(None) if group.mask_n is None else group.mask_n] = values_n
        parts = [self._entry_gradients(layer, by_value_n[entries.layer(layer)]) for layer in range(len(self.listed))]
        by_h_n = torch.cat([part.by_pre_activation_n for part in parts])
        encode_backward_adam(
            self.x_lbd, entries, by_h_n, p.encoder_fd, list(p.encoder_bias_lf), m.encoder, m.encoder_bias, self.adam
        )
        for layer, part in enumerate(parts):
            if part.by_threshold_f is not None:
                self.sparsity.update(layer, self.listed[layer], part.by_threshold_f, None, self.adam)
        return sum(part.penalty for part in parts)

    def _entries(self) -> SparseActivations:
        if self.groups[0].mask_n is None:
            return self.groups[0].entries
        return entries_of(self.listed, self.x_lbd.shape[1])

    def _entry_gradients(self, layer: int, by_value_n: Tensor) -> EntryGradients:
        n_tokens = self.x_lbd.shape[1]
        return self.sparsity.gradients(
            layer, self.listed[layer], by_value_n, self.norms_lf[layer], n_tokens, self.target, self.strength
        )

    def _gathered(self) -> float:
        p, m, penalty = self.parameters, self.moments, 0.0
        entries = self._entries()
        auxiliary_n: list[Tensor] = []
        by_value_n = torch.zeros(len(entries), device=self.x_lbd.device)
        by_h: list[Tensor] = []
        for layer, decoder_jfd in enumerate(p.decoder_jfd):
            rows_fjd = decoder_jfd.transpose(0, 1)
            into = _RowSum(torch.zeros_like(decoder_jfd).transpose(0, 1))
            for group in self.groups:
                values_n = into.decoder(group, layer, rows_fjd)
                own = entries.layer(layer)
                mask_n = slice(None) if group.mask_n is None else group.mask_n[own]
                by_value_n[own][mask_n] = values_n
            if self.auxiliary is not None:
                auxiliary_n.append(into.decoder(self.auxiliary, layer, rows_fjd))
            part = self._entry_gradients(layer, by_value_n[entries.layer(layer)])
            penalty += part.penalty
            by_h.append(part.by_pre_activation_n)
            dead = self.dead[layer] if self.dead else None
            for by_norm_f in (part.by_norm_f, None if dead is None else dead.by_norm_f):
                if by_norm_f is not None:
                    into.norms(by_norm_f, rows_fjd, self.norms_lf[layer])
            into.apply(rows_fjd, m.decoder[layer], self.adam)
            if part.by_threshold_f is not None:
                extra_f = None if dead is None else dead.by_threshold_f
                self.sparsity.update(layer, self.listed[layer], part.by_threshold_f, extra_f, self.adam)
        self._gathered_encoders(entries, torch.cat(by_h), auxiliary_n)
        return penalty

    def _gathered_encoders(self, entries: SparseActivations, by_h_n: Tensor, auxiliary_n: list[Tensor]) -> None:
        p, m = self.parameters, self.moments
        found: list[Sequence[tuple[RowGradients, RowGradients] | None]] = [encode_backward(self.x_lbd, entries, by_h_n)]
        if self.auxiliary is not None:
            found.append(encode_backward(self.x_lbd, self.auxiliary.entries, torch.cat(auxiliary_n)))
        if self.dead:
            found.append([None if part is None else (part.encoder, part.bias) for part in self.dead])
        for layer, encoder_fd in enumerate(p.encoder_fd):
            # Rows and their biases side by side: they have the same entries.
            into = _RowSum(encoder_fd.new_zeros(len(encoder_fd), encoder_fd.shape[1] + 1))
            for source in found:
                of_layer = source[layer]
                if of_layer is not None:
                    weights, biases = of_layer
                    into.add(RowGradients(weights.rows, torch.cat([weights.gradients, biases.gradients[:, None]], 1)))
            touched = into.touched()
            weights = RowGradients(touched.rows, touched.gradients[:, :-1].contiguous())
            adam_rows(encoder_fd, weights, m.encoder[layer], self.adam)
            biases = RowGradients(touched.rows, touched.gradients[:, -1].contiguous())
            adam_rows(p.encoder_bias_lf[layer], biases, m.encoder_bias[layer], self.adam)


class _RowSum:
    """One layer's gradients of all rows, and which of them have one."""

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients
        self.has = torch.zeros(len(gradients), dtype=torch.bool, device=gradients.device)

    def add(self, part: RowGradients) -> None:
        self.gradients.index_add_(0, part.rows, part.gradients)
        self.has[part.rows] = True

    def decoder(self, group: Group, layer: int, rows_fjd: Tensor) -> Tensor:
        """Add a group's gradients; return those of its values."""
        own = group.entries.layer(layer)
        values_n, rows = decode_layer_backward(
            group.gradient_lbd[layer : layer + rows_fjd.shape[1]],
            group.entries.positions[own],
            group.entries.features[own],
            group.entries.values[own],
            rows_fjd,
        )
        self.add(rows)
        return values_n

    def norms(self, by_norm_f: Tensor, rows_fjd: Tensor, norms_f: Tensor) -> None:
        """Add what gradients by norms are for rows: along them."""
        rows = by_norm_f.nonzero()[:, 0]
        along_u = by_norm_f[rows] / norms_f[rows].clamp_min(1e-8)
        self.add(RowGradients(rows, rows_fjd[rows] * along_u[:, None, None]))

    def touched(self) -> RowGradients:
        rows = self.has.nonzero()[:, 0]
        return RowGradients(rows, self.gradients[rows])

    def apply(self, rows_fjd: Tensor, moments: RowMoments, adam: AdamStep) -> None:
        adam_rows(rows_fjd, self.touched(), moments, adam)
