"""The local replacement model of one prompt, and its adjoint.

Implements Ameisen et al. 2025, "Circuit Tracing", section "Constructing an Attribution Graph for a Prompt": attention
patterns and norm denominators are frozen at the prompt's values, MLPs are replaced by transcoders plus fixed errors, and
what is left between feature activations is linear. Deviations: skip connections of affine transcoders are part of the
linear model; gradients are products (`crosstrace.replacement_model.local.adjoint`) rather than autograd; and what flows
in from decoder biases and excluded positions is kept apart (`unattributed`), so that every row can be checked for
completeness.

Letters: L layers, P positions, D d_model, B target rows, N active features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.local.adjoint import Adjoint, Rows, Target
from crosstrace.replacement_model.local.record import PassRecord


class LocalReplacementModel:
    """One prompt's replacement model, linear between feature activations.

    Attributes:
        transcoders: The transcoders in use.
        sites: The live modules of the base model.
        adjoint: The adjoint of the linear model.
        description: As in `PassRecord`, like all that follow.
        tokens_p: (P,) int64.
        layers: L frozen layers.
        final_norm: The frozen final norm.
        activations: N active features.
        active_rows: Their decoder rows.
        errors_lpd: (L, P, D) float32.
        constants_lpd: (L, P, D) float32.
        residuals_lpd: (L + 1, P, D) float32.
        mids_lpd: (L, P, D) float32.
    """

    def __init__(self, record: PassRecord, transcoders: Transcoders, sites: ModelSites, budget: int = 0) -> None:
        """Make the linear model of a forward pass.

        Args:
            record: What the forward pass left behind.
            transcoders: The transcoders in use.
            sites: The live modules of the base model.
            budget: Bytes for transcoders and all that a prompt needs on the device; see `Adjoint`.
        """
        self.transcoders, self.sites = transcoders, sites
        self.adjoint = Adjoint(record, budget)
        self.description, self.tokens_p = record.description, record.tokens_p
        self.layers, self.final_norm = record.layers, record.final_norm
        self.activations, self.active_rows = record.activations, record.active_rows
        self.errors_lpd, self.constants_lpd = record.errors_lpd, record.constants_lpd
        self.residuals_lpd, self.mids_lpd = record.residuals_lpd, record.mids_lpd

    @property
    def n_positions(self) -> int:
        """P."""
        return int(self.tokens_p.numel())

    def feature_targets(self, entries_b: Tensor) -> list[Target]:
        """Return the pre-activations of some active features as targets.

        Args:
            entries_b: (B,) int64 ascending indices into `activations`.
        """
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
        """Return the pre-activation of any feature, active or not, as a target."""
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
        """Return a weighted sum of logits as a target, each minus the mean over the vocabulary.

        The mean changes no probability; a row that included it would mostly explain what all logits share.

        Args:
            weights: The weight of each token in the sum.
            position: Where in the prompt the logits are read.
        """
        unembedding_vd = self.sites.unembedding
        mean_d = self.sites.mean_unembedding
        rows = [weight * (unembedding_vd[token].float() - mean_d) for token, weight in weights.items()]
        gradient_d = self.final_norm[position] * torch.stack(rows).sum(0).to(self.residuals_lpd.device)
        value = torch.dot(gradient_d, self.residuals_lpd[-1, position]).item()
        return Target(self.description.n_layers, position, gradient_d, value)

    def residual_target(self, vector_d: Tensor, layer: int, position: int) -> Target:
        """Return the residual stream's component along a vector as a target.

        Args:
            vector_d: (D,).
            layer: The layer that the stream enters; L: the final norm.
            position: Where in the prompt.
        """
        vector_d = vector_d.to(self.residuals_lpd)
        return Target(layer, position, vector_d, torch.dot(vector_d, self.residuals_lpd[layer, position]).item())

    def logits(self, position: int | slice | Tensor = -1) -> Tensor:
        """Return the logits (V,) float32 at one position; (Q, V) at the Q of a slice or of a tensor of positions.

        Several positions take hardly longer than one: the unembedding, by far the largest matrix, is read once.
        """
        return self.sites.unembed(self.final_norm[position] * self.residuals_lpd[-1, position])

    def rows(self, targets: Sequence[Target]) -> Rows:
        """Return the direct effects of every source on some targets, by one pass down the layers.

        The gradient `G` of the targets with respect to the residual stream starts at each target and passes a layer
        as `G += mlp_scale * (G skip^T)` (the MLP's skip connection), then
        `G += input_scale * V^T A^T O^T (attention_scale * G)`. At each MLP output on the way it meets what features,
        errors and biases write there, and at the bottom the tokens.
        """
        return self.adjoint.rows(targets)
