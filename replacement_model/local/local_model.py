"""The local replacement model of one prompt, and its adjoint.

Implements Ameisen et al. 2025, "Circuit Tracing", section "Constructing an Attribution Graph for a Prompt": attention
patterns and norm denominators are frozen at the prompt's values, MLPs are replaced by transcoders plus fixed errors, and
what is left between feature activations is linear. Deviations: skip connections of affine transcoders are part of the
linear model, gradients are products (:mod:`crosstrace.replacement_model.local.adjoint`) rather than autograd, and what flows in
from decoder biases and excluded positions is kept apart (``unattributed``) so that every row can be checked for
completeness.

Letters: L layers, P positions, D d_model, B target rows, N active features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.dictionaries.active_rows import ActiveRows
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.local.adjoint import Adjoint, Rows, Target
from crosstrace.replacement_model.local.frozen import FrozenLayer, FrozenNorm


class LocalReplacementModel:
    """One prompt's replacement model, linear between feature activations.

    Attributes:
        tokens_p: (P,) the prompt.
        activations: N active features; active_rows: their decoder rows.
        errors_lpd: (L, P, D) MLP output minus reconstruction; zero at excluded positions.
        constants_lpd: (L, P, D) what is written without a source: decoder biases, and at excluded positions the
            MLP's own output but for the skip connection, which is live at every position.
        residuals_lpd: (L + 1, P, D) residual stream that enters each layer: the token vectors first, last what the
            final norm reads. mids_lpd: (L, P, D) the residual after each layer's attention.
        final_norm: the final norm, frozen.
    """

    def __init__(
        self,
        *,
        description: ModelDescription,
        transcoders: Transcoders,
        sites: ModelSites,
        tokens_p: Tensor,
        layers: Sequence[FrozenLayer],
        activations: SparseActivations,
        active_rows: ActiveRows,
        errors_lpd: Tensor,
        constants_lpd: Tensor,
        residuals_lpd: Tensor,
        mids_lpd: Tensor,
        final_norm: FrozenNorm,
        folded_budget: int = 0,
    ) -> None:
        self.description, self.transcoders, self.sites = description, transcoders, sites
        self.tokens_p, self.layers = tokens_p, layers
        self.activations, self.active_rows = activations, active_rows
        self.errors_lpd, self.constants_lpd = errors_lpd, constants_lpd
        self.residuals_lpd, self.mids_lpd, self.final_norm = residuals_lpd, mids_lpd, final_norm
        self.adjoint = Adjoint(
            description, layers, activations, active_rows, errors_lpd, constants_lpd, residuals_lpd[0], folded_budget
        )

    @property
    def n_positions(self) -> int:
        return int(self.tokens_p.numel())

    def feature_targets(self, entries_b: Tensor) -> list[Target]:
        """The pre-activations of some active features (ascending indices into ``activations``) as targets."""
        targets: list[Target] = []
        entries_b = entries_b.to(self.activations.device)
        positions, features, values = (
            part[entries_b] for part in (self.activations.positions, self.activations.features, self.activations.values)
        )
        layers, counts = torch.unique_consecutive(self.activations.layers[entries_b], return_counts=True)
        start = 0
        for layer, stop in zip(layers.tolist(), counts.cumsum(0).tolist(), strict=True):
            part = slice(start, stop)
            values_b = values[part] - self.transcoders.encoder(layer).b_enc_f[features[part]]
            targets += self._pre_activations(layer, positions[part], features[part], values_b)
            start = stop
        return targets

    def feature_target(self, layer: int, position: int, feature: int) -> Target:
        """The pre-activation of any feature, active or not, as a target."""
        positions, features = (torch.tensor([i], device=self.residuals_lpd.device) for i in (position, feature))
        encoder = self.transcoders.encoder(layer)
        u_d = self.layers[layer].mlp_norm[position] * self.mids_lpd[layer, position]
        return self._pre_activations(layer, positions, features, (u_d @ encoder.w_enc_df[:, features].float()))[0]

    def _pre_activations(self, layer: int, positions_b: Tensor, features_b: Tensor, values_b: Tensor) -> list[Target]:
        gradients_bd = (
            self.layers[layer].mlp_norm[positions_b] * self.transcoders.encoder(layer).w_enc_df[:, features_b].T.float()
        )
        return [
            Target(layer, position, gradient_d, value, after_attention=True)
            for position, gradient_d, value in zip(positions_b.tolist(), gradients_bd, values_b.tolist(), strict=True)
        ]

    def logit_target(self, weights: dict[int, float], position: int) -> Target:
        """A weighted sum of logits as a target, each less the mean over the vocabulary.

        The mean changes no probability, and without it a logit's row mostly explains what all logits share.
        """
        unembedding_vd = self.sites.unembedding
        mean_d = self.sites.mean_unembedding
        rows = [weight * (unembedding_vd[token].float() - mean_d) for token, weight in weights.items()]
        gradient_d = self.final_norm[position] * torch.stack(rows).sum(0).to(self.residuals_lpd.device)
        value = torch.dot(gradient_d, self.residuals_lpd[-1, position]).item()
        return Target(self.description.n_layers, position, gradient_d, value)

    def residual_target(self, vector_d: Tensor, layer: int, position: int) -> Target:
        """The residual stream entering a layer (``L``: the final norm), projected on a vector (D,), as a target."""
        vector_d = vector_d.to(self.residuals_lpd)
        return Target(layer, position, vector_d, torch.dot(vector_d, self.residuals_lpd[layer, position]).item())

    def logits(self, position: int = -1) -> Tensor:
        """(V,) float32 logits at one position."""
        return self.sites.unembed(self.final_norm[position] * self.residuals_lpd[-1, position])

    def rows(self, targets: Sequence[Target]) -> Rows:
        """The direct effects of every source on some targets, by one pass down the layers.

        The gradient ``G`` of the targets with respect to the residual stream starts at each target and passes a layer
        as ``G += mlp_scale * (G skip^T)`` (the MLP's skip connection), then
        ``G += input_scale * V^T A^T O^T (attention_scale * G)``; at each MLP output on the way it meets what features,
        errors and biases write there, and at the bottom the tokens.
        """
        return self.adjoint.rows(targets)


__all__ = ["FrozenLayer", "FrozenNorm", "LocalReplacementModel", "Rows", "Target"]
