"""JumpReLU whose thresholds are trained, through a straight-through estimator of the step's gradient.

Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders", section 4: the
step H(h - theta) gets the pseudo-derivative -K((h - theta) / w) / w by theta, with K the rectangle of width 1 and w the
bandwidth. Three penalties make it sparse:

- `quadratic`: (L0 / target - 1)^2 (ibid., appendix F; Gemma Scope 2 has the same up to its coefficient), per layer;
- `tanh`: tanh(c * a * norm), summed over features (Conerly et al. 2025, "Dictionary Learning Optimization Techniques");
- a penalty on frequent features: (frequency / limit - 1)^2 where the frequency in the batch is above the limit. Gemma Scope 2
  has one that keeps features below 10 % of tokens; its form is not published.

With `ste_reaches = "all"` the penalties also reach the encoder, through h, and `tanh` the decoder's norms; with `"threshold"`
they reach thresholds alone. The reconstruction's gradient always reaches both, h where the feature is active.

Thresholds are trained as their logarithms. Different from both papers: activations and decoders are in normalised units, and
decoders have no fixed norm.

Letters: L trained layers, B tokens of a batch, F features of a layer, D d_model, n listed entries of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from crosstrace.kernels import AdamStep, RowGradients, RowMoments, adam_rows, encode
from crosstrace.replacement_model.training.settings import TrainingSettings
from crosstrace.replacement_model.training.sparsity import EntryGradients, Listed, Sparsity, frequency_excess


class StraightThrough(Sparsity):
    """Trained thresholds.

    Attributes:
        log_threshold_lf: (L, F) float32.
        moments: Adam's state of them, per layer.
    """

    def __init__(self, settings: TrainingSettings, n_layers: int, device: torch.device) -> None:
        """Begin with the same threshold everywhere.

        Args:
            settings: Bandwidth, penalties and the threshold.
            n_layers: L.
            device: Where thresholds are.
        """
        self.settings = settings
        started = torch.full((n_layers, settings.features), settings.threshold_start, device=device)
        self.log_threshold_lf = started.log()
        self.moments = [RowMoments.zeros_like(row_f) for row_f in self.log_threshold_lf]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        yield "log_threshold_lf", self.log_threshold_lf
        for layer, state in enumerate(self.moments):
            for part in ("first", "second", "steps"):
                yield f"adam.log_threshold.{layer}.{part}", getattr(state, part)

    def thresholds(self, norms_lf: Tensor) -> Tensor:
        return self.log_threshold_lf.exp()

    def start_at(self, thresholds_lf: Tensor, norms_lf: Tensor) -> None:
        self.log_threshold_lf.copy_(thresholds_lf.clamp_min(1e-6).log())

    def restart(self, layer: int, features_u: Tensor) -> None:
        self.log_threshold_lf[layer, features_u] = math.log(self.settings.threshold_start)
        self.moments[layer].forget(features_u)

    def list(
        self,
        layer: int,
        x_bd: Tensor,
        encoder_fd: Tensor,
        bias_f: Tensor,
        norms_f: Tensor,
        target: float,
        rate: float,
    ) -> Listed:
        threshold_f = self.log_threshold_lf[layer].exp()
        positions, features, h_n = encode(x_bd, encoder_fd.T, bias_f, threshold_f - self.settings.bandwidth / 2)
        return Listed(positions, features, h_n, h_n > threshold_f[features])

    def gradients(
        self,
        layer: int,
        listed: Listed,
        by_value_n: Tensor,
        norms_f: Tensor,
        n_tokens: int,
        target: float,
        strength: float,
    ) -> EntryGradients:
        s, features = self.settings, listed.features
        threshold_f = self.log_threshold_lf[layer].exp()
        threshold_n, active_n = threshold_f[features], listed.active
        to_all = s.ste_reaches == "all"
        window_n = ((listed.pre_activations - threshold_n).abs() < s.bandwidth / 2) / s.bandwidth
        penalty, coefficient = 0.0, strength * s.l0_coefficient
        # The gradients by the activation through the penalty, and by the step H itself.
        by_value_of_penalty_n = torch.zeros_like(by_value_n)
        by_step_n = torch.zeros_like(by_value_n)
        norms_gradient_f = None
        if s.l0_loss == "quadratic":
            excess = float(active_n.sum()) / n_tokens / target - 1
            penalty += coefficient * excess * excess
            by_step_n += 2 * coefficient * excess / (target * n_tokens)
        elif s.l0_loss == "tanh":
            scaled_n, norms_n = s.tanh_scale * listed.values, norms_f[features]
            squashed_n = torch.tanh(scaled_n * norms_n)
            slope_n = (coefficient / n_tokens) * (1 - squashed_n.square())
            penalty += coefficient / n_tokens * float(squashed_n.sum())
            by_value_of_penalty_n += slope_n * s.tanh_scale * norms_n
            if to_all:
                norms_gradient_f = torch.zeros_like(norms_f).index_add_(0, features, slope_n * scaled_n)
        if s.frequency_coefficient:
            excess_f = frequency_excess(listed, len(norms_f), n_tokens, s.frequency_limit)
            penalty += s.frequency_coefficient * float(excess_f.square().sum())
            scale = 2 * s.frequency_coefficient / (s.frequency_limit * n_tokens)
            by_step_n += (scale * excess_f)[features]
        by_h_n = by_value_n * active_n
        if to_all:
            by_h_n += by_value_of_penalty_n * active_n + by_step_n * window_n
        by_step_n += threshold_n * (by_value_n + by_value_of_penalty_n)
        by_threshold_f = torch.zeros_like(norms_f).index_add_(0, features, -window_n * by_step_n)
        return EntryGradients(by_h_n, penalty, norms_gradient_f, by_threshold_f)

    def update(
        self, layer: int, listed: Listed, by_threshold_f: Tensor, extra_f: Tensor | None, adam: AdamStep
    ) -> None:
        rows_f = torch.zeros_like(by_threshold_f, dtype=torch.bool)
        rows_f[listed.features] = True
        if extra_f is not None:
            by_threshold_f = by_threshold_f + extra_f
            rows_f |= extra_f != 0
        rows = rows_f.nonzero()[:, 0]
        # The threshold is the exponential of what is trained.
        gradient_u = (by_threshold_f * self.log_threshold_lf[layer].exp())[rows]
        adam_rows(self.log_threshold_lf[layer], RowGradients(rows, gradient_u), self.moments[layer], adam)
