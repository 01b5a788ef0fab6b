"""Activation functions in training: which features are active, and where thresholds are.

All of them are JumpReLUs in use, `a = h where h > threshold`; they differ in how the thresholds come about.

- Quantile-controlled: a feature's score is its pre-activation times the norm of what it writes, and one running quantile of
  the scores per layer, tau, keeps the target number active. The threshold of feature f is tau / norm_f. Our own.
- BatchTopK (Bussmann et al. 2024, "BatchTopK Sparse Autoencoders", section 3): of a batch the k * B largest scores are
  active, whatever the token; the running mean of the least of them becomes the threshold, in the same way. Different here:
  each layer is a batch of its own, and scores count the decoder's norm, which is not held at 1.
- Straight-through: thresholds are parameters, in `crosstrace.replacement_model.training.straight_through`.

None of them makes a (tokens x features) tensor: the kernel lists what lies above a bound a little below the threshold, and
the quantile is taken among the scores of what it lists.

Letters: L layers, B tokens of a batch, F features of a layer, D d_model, n listed entries of a layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.kernels import AdamStep, encode
from crosstrace.replacement_model.training.settings import TrainingSettings

# How many more entries are listed than are wanted: room for a batch with smaller scores.
_LISTED = 1.3
# Tokens whose scores are all looked at, to find the first bound.
_FIRST_TOKENS = 64
# Scores and norms are held above these, so that activations are positive and thresholds finite.
_LEAST_SCORE, _LEAST_NORM = 1e-6, 1e-8


@dataclass(frozen=True, eq=False)
class Listed:
    """Entries of one layer, ascending by (position, feature).

    Attributes:
        positions: (n,) int64.
        features: (n,) int64.
        pre_activations: (n,) float32.
        active: (n,) bool; the others are there because a threshold's gradient wants them.
    """

    positions: Tensor
    features: Tensor
    pre_activations: Tensor
    active: Tensor

    def part(self, mask_n: Tensor) -> Listed:
        """Return some of the entries."""
        return Listed(self.positions[mask_n], self.features[mask_n], self.pre_activations[mask_n], self.active[mask_n])

    @property
    def values(self) -> Tensor:
        """Activations (n,), 0 where not active."""
        return self.pre_activations * self.active


@dataclass(frozen=True, eq=False)
class EntryGradients:
    """What a layer's entries hand to the weights.

    Attributes:
        by_pre_activation_n: (n,) gradients by pre-activations.
        penalty: The penalties' part of the loss.
        by_norm_f: (F,) gradients by the decoder's norms, or None.
        by_threshold_f: (F,) gradients by thresholds, or None where they are not trained.
    """

    by_pre_activation_n: Tensor
    penalty: float
    by_norm_f: Tensor | None = None
    by_threshold_f: Tensor | None = None


class Sparsity(ABC):
    """An activation function in training."""

    @abstractmethod
    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor that is remembered, with its name."""

    @abstractmethod
    def thresholds(self, norms_lf: Tensor) -> Tensor:
        """Return the thresholds (L, F) of use, for decoder norms (L, F)."""

    @abstractmethod
    def start_at(self, thresholds_lf: Tensor, norms_lf: Tensor) -> None:
        """Begin with given thresholds (L, F), for decoder norms (L, F)."""

    @abstractmethod
    def restart(self, layer: int, features_u: Tensor) -> None:
        """Set what is remembered of some features (u,) of a layer back to its beginning."""

    @abstractmethod
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
        """List a layer's active features, and what a threshold's gradient wants besides; running quantiles follow.

        Args:
            layer: The layer.
            x_bd: (B, D_in) normalised inputs.
            encoder_fd: (F, D_in).
            bias_f: (F,).
            norms_f: (F,) decoder norms.
            target: How many features of a token shall be active.
            rate: How far a running quantile goes towards this batch's.
        """

    def list_by_thresholds(
        self, layer: int, x_bd: Tensor, encoder_fd: Tensor, bias_f: Tensor, norms_lf: Tensor
    ) -> Listed:
        """List a layer's active features as in use, by thresholds that stay as they are."""
        positions, features, h_n = encode(x_bd, encoder_fd.T, bias_f, self.thresholds(norms_lf)[layer])
        return Listed(positions, features, h_n, torch.ones_like(h_n, dtype=torch.bool))

    @abstractmethod
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
        """Return the gradients by pre-activations and thresholds, penalties included.

        Args:
            layer: The layer.
            listed: Its n entries.
            by_value_n: (n,) the reconstruction loss's gradient by activations, of entries that are not active too.
            norms_f: (F,) decoder norms.
            n_tokens: B.
            target: How many features of a token shall be active.
            strength: The share of the sparsity penalty's weight that counts by now.
        """

    @abstractmethod
    def update(
        self, layer: int, listed: Listed, by_threshold_f: Tensor, extra_f: Tensor | None, adam: AdamStep
    ) -> None:
        """Update a layer's thresholds, where they are trained, with their gradient (F,) and more of it if there is."""


def frequency_excess(listed: Listed, n_features: int, n_tokens: int, limit: float) -> Tensor:
    """Return by how much of the limit each feature (F,) is active more often than that, 0 where it is not."""
    counts_f = torch.bincount(listed.features[listed.active], minlength=n_features)
    return (counts_f / (n_tokens * max(limit, 1e-9)) - 1).clamp_min(0)


class RunningQuantile(Sparsity):
    """One running quantile of scores per layer, quantile-controlled or as BatchTopK's threshold.

    Attributes:
        tau_l: (L,) float32 on the CPU: the quantile that thresholds follow; NaN before the first batch.
        bound_l: (L,) float32 on the CPU: the score from which entries are listed.
    """

    def __init__(self, settings: TrainingSettings, n_layers: int) -> None:
        """Begin without a quantile.

        Args:
            settings: The activation function. With BatchTopK a batch's own quantile decides in training, rather than the
                running one.
            n_layers: L.
        """
        self.settings, self.exact = settings, settings.activation == "batch-topk"
        self.tau_l, self.bound_l = torch.full((n_layers,), torch.nan), torch.full((n_layers,), torch.nan)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        yield "tau_l", self.tau_l
        yield "bound_l", self.bound_l

    def thresholds(self, norms_lf: Tensor) -> Tensor:
        return torch.stack([self._threshold(layer, norms_f) for layer, norms_f in enumerate(norms_lf)])

    def start_at(self, thresholds_lf: Tensor, norms_lf: Tensor) -> None:
        """Nothing: the first batch says where the quantile is."""

    def restart(self, layer: int, features_u: Tensor) -> None:
        """Nothing: a layer's features share one quantile."""

    def _threshold(self, layer: int, norms_f: Tensor) -> Tensor:
        return float(self.tau_l[layer].clamp_min(_LEAST_SCORE)) / norms_f.clamp_min(_LEAST_NORM)

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
        wanted = max(1, min(round(target * len(x_bd)), len(x_bd) * len(encoder_fd)))
        if self.bound_l[layer].isnan():
            self._begin(layer, x_bd, encoder_fd, bias_f, norms_f, target)
        divisor_f = norms_f.clamp_min(_LEAST_NORM)
        while True:
            bound = float(self.bound_l[layer])
            positions, features, h_n = encode(x_bd, encoder_fd.T, bias_f, bound / divisor_f)
            if len(h_n) >= wanted or bound <= 0:
                break
            # Too few: look further down, twice as far each time, to 0 at last.
            reached = 0.0 if self.tau_l[layer].isnan() else 2 * (float(self.tau_l[layer]) - bound)
            self.bound_l[layer] = max(bound - max(reached, 0.05 * bound, _LEAST_SCORE), 0.0)
        scores_n = h_n * norms_f[features]
        if len(scores_n):
            lowest_n = scores_n.neg()
            quantile = -_kth_smallest(lowest_n, min(wanted, len(scores_n)))
            tau = float(self.tau_l[layer])
            self.tau_l[layer] = quantile if self.tau_l[layer].isnan() else tau + rate * (quantile - tau)
            room = min(round(_LISTED * wanted), len(scores_n))
            at_room = -_kth_smallest(lowest_n, room)
            self.bound_l[layer] = max(min(at_room, float(self.tau_l[layer])), 0.0)
            at_threshold_n = h_n > self._threshold(layer, norms_f)[features]
            active_n = (scores_n >= quantile) & (h_n > 0) if self.exact else at_threshold_n
        else:
            active_n = torch.zeros_like(h_n, dtype=torch.bool)
        return Listed(positions, features, h_n, active_n).part(active_n)

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
        s = self.settings
        if not s.frequency_coefficient:
            return EntryGradients(by_value_n, 0.0)
        # No gradient goes through the quantile: scores of too frequent features are pulled down themselves.
        excess_f = frequency_excess(listed, len(norms_f), n_tokens, s.frequency_limit)
        weight_n = (s.frequency_coefficient / n_tokens * excess_f.square() * norms_f)[listed.features]
        return EntryGradients(by_value_n + weight_n, float((weight_n * listed.values).sum()))

    def update(
        self, layer: int, listed: Listed, by_threshold_f: Tensor, extra_f: Tensor | None, adam: AdamStep
    ) -> None:
        raise AssertionError("a running quantile is not trained")

    def _begin(
        self, layer: int, x_bd: Tensor, encoder_fd: Tensor, bias_f: Tensor, norms_f: Tensor, target: float
    ) -> None:
        """Find a first bound among all scores of a few tokens."""
        some_bd = x_bd[:_FIRST_TOKENS]
        _, features, h_n = encode(some_bd, encoder_fd.T, bias_f, torch.full_like(bias_f, -torch.inf))
        wanted = max(1, min(round(_LISTED * target * len(some_bd)), len(h_n)))
        self.bound_l[layer] = max(-_kth_smallest(-h_n * norms_f[features], wanted), 0.0)


def _kth_smallest(values_n: Tensor, k: int) -> float:
    """Return the k-th smallest of (n,) values, k from 1. On a GPU by sorting: `kthvalue` runs on one multiprocessor there."""
    return float(values_n.sort().values[k - 1] if values_n.is_cuda else values_n.kthvalue(k).values)
