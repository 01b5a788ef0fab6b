"""The trainer: one step of a dictionary's training on a batch of activations, by hand-written gradients.

It knows tensors and settings, nothing of texts, files of runs or terminals. The recipe `laptop` is our own; how it relates
to published ones is said in `crosstrace.replacement_model.training.sparsity` and in the recipes' comments.

A step computes with active features alone: they are listed, decoded, and the gradients of their rows applied at once, so
that memory is weights, moments and batch, and time does not grow with what is silent.

Letters: L trained layers, B tokens of a batch, N of a sample, F features of a layer, D d_model (D_in where encoders read), J
layers a feature writes to, n entries of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.kernels import AdamStep
from crosstrace.replacement_model.training.dead_features import (
    DeadGradients,
    auxiliary_group,
    pre_activation_gradients,
    reset_dead,
)
from crosstrace.replacement_model.training.measures import Unexplained
from crosstrace.replacement_model.training.parameters import DictionaryShape, Moments, Normalisation, Parameters
from crosstrace.replacement_model.training.passes import Group, prefix_errors, prefix_gradients, split
from crosstrace.replacement_model.training.settings import TrainingSettings
from crosstrace.replacement_model.training.sparsity import Listed, RunningQuantile, Sparsity
from crosstrace.replacement_model.training.starting import start, start_from_transcoders
from crosstrace.replacement_model.training.straight_through import StraightThrough
from crosstrace.replacement_model.training.updates import Backward

# Steps after which the norms of decoders, which scores count, are taken anew.
_NORMS_EVERY = 4


@dataclass(frozen=True, eq=False)
class StepMetrics:
    """What a step saw.

    Attributes:
        loss: The loss that the gradient is of. Its main part is the squared error of a token in normalised units, summed
            over layers and dimensions.
        fvu_l: (L,) float32: the fraction of the outputs' variance that is unexplained, in the batch, in raw units.
        fvu_weighted_l: (L,) float32: the same with each dimension scaled as in training.
        l0_l: (L,) float32: active features of a token.
        dead_l: (L,) float32: the share of features that were not active for `dead_after_tokens`.
        learning_rate: Adam's learning rate.
        l0_target: The target of active features.
        resets: How many features were started again.
    """

    loss: float
    fvu_l: Tensor
    fvu_weighted_l: Tensor
    l0_l: Tensor
    dead_l: Tensor
    learning_rate: float
    l0_target: float
    resets: int


class Trainer:
    """The weights being trained and everything that is remembered from step to step.

    Attributes:
        settings: What is trained and how.
        shape: The sizes of the dictionary.
        device: Where it is trained.
        normalisation: The scaling of activations.
        parameters: The weights, in normalised units.
        moments: Adam's state.
        sparsity: The activation function.
        norms_lf: (L, F) decoder norms, as last taken.
        last_active_lf: (L, F) int64: how many tokens had been seen when the feature was last active.
        steps: Steps so far.
        tokens_seen: Tokens so far.
        fine_tuning_steps: Steps of fine-tuning end to end so far, the current one included.
        generator: The source of everything random.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        shape: DictionaryShape,
        sample: tuple[Tensor, Tensor] | None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start from a sample of activations.

        Args:
            settings: What is trained and how.
            shape: The sizes of the dictionary.
            sample: Raw inputs (L, N, D_in) and outputs (L, N, D) of some tokens, for the scaling and the data points of
                the start; None where `restore` follows.
            device: Where it is trained.

        Raises:
            ValueError: The sample has another shape, or cannot be scaled; or transcoders to start from do not fit.
            FileNotFoundError: There are no transcoders to start from.
        """
        self.settings, self.shape, self.device = settings, shape, torch.device(device)
        L, F = shape.n_layers, shape.n_features
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.parameters = Parameters.empty(shape, settings.skip, self.device)
        self.moments = Moments(self.parameters, getattr(torch, settings.moments))
        self.sparsity: Sparsity = (
            StraightThrough(settings, L, self.device)
            if settings.activation == "ste-jumprelu"
            else RunningQuantile(settings, L)
        )
        self.norms_lf = torch.zeros(L, F, device=self.device)
        self.last_active_lf = torch.zeros(L, F, dtype=torch.int64, device=self.device)
        self.steps = self.tokens_seen = self.fine_tuning_steps = 0
        if sample is None:
            zeros = (torch.zeros(L, width, device=self.device) for width in (shape.d_in,) * 2 + (shape.d_out,) * 2)
            self.normalisation = Normalisation(*zeros)
            return
        inputs_lnd, outputs_lnd = (part.to(self.device, torch.float32) for part in sample)
        self._check(inputs_lnd, outputs_lnd)
        self.normalisation = Normalisation.of(inputs_lnd, outputs_lnd, settings.normalisation_exponent)
        if settings.initialise_from is not None:
            thresholds_lf = start_from_transcoders(self.parameters, self.normalisation, settings.initialise_from, shape)
            self.sparsity.start_at(thresholds_lf, self.parameters.decoder_norms())
            return
        x_lnd, y_lnd = self.normalisation.inputs(inputs_lnd), self.normalisation.outputs(outputs_lnd)
        start(self.parameters, x_lnd, y_lnd, settings, self.generator)

    def _check(self, inputs_lbd: Tensor, outputs_lbd: Tensor) -> None:
        shape = self.shape
        for name, tensor, width in (("inputs", inputs_lbd, shape.d_in), ("outputs", outputs_lbd, shape.d_out)):
            expected = (shape.n_layers, inputs_lbd.shape[1], width)
            if tensor.shape != expected:
                raise ValueError(f"{name} have shape {tuple(tensor.shape)}; expected {expected}")

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate at a share of a stage: linear warm-up, constant, linear decay."""
        s = self.settings
        base, steps = s.learning_rate, self.steps
        if self.fine_tuning_steps:
            base, steps = s.end_to_end_learning_rate, self.fine_tuning_steps - 1
        warm = min(1.0, (steps + 1) / max(s.warmup_steps, 1))
        decayed = 1.0 if progress < 1 - s.decay_share else max((1 - progress) / max(s.decay_share, 1e-9), s.decay_floor)
        return base * warm * decayed

    def l0_target(self, progress: float) -> float:
        """Return the target of active features of a token and layer at a share of the run."""
        s = self.settings
        begun = s.l0 if s.l0_start is None else s.l0_start
        return begun + (s.l0 - begun) * (min(1.0, progress / s.l0_anneal_share) if s.l0_anneal_share else 1.0)

    @torch.no_grad()
    def step(self, inputs_lbd: Tensor, outputs_lbd: Tensor, progress: float) -> StepMetrics:
        """Train on a batch.

        Args:
            inputs_lbd: (L, B, D_in) float32 raw activations that encoders read.
            outputs_lbd: (L, B, D) float32 raw activations that are reconstructed.
            progress: How much of the run is done, from 0 to 1.

        Returns:
            What the step saw, before its update.

        Raises:
            ValueError: A shape does not fit.
        """
        self._check(inputs_lbd, outputs_lbd)
        x_lbd = self.normalisation.inputs(inputs_lbd.to(self.device))
        y_lbd = self.normalisation.outputs(outputs_lbd.to(self.device))
        self.refresh_norms()
        s, n_tokens = self.settings, x_lbd.shape[1]
        target, rate = self.l0_target(progress), self.learning_rate(progress)
        listed = self.list_active(x_lbd, target)
        groups = split(listed, n_tokens, self.shape.n_features, s.matryoshka)
        errors = prefix_errors(self.parameters, x_lbd, y_lbd, groups)
        unexplained = Unexplained.of(errors[-1], y_lbd)
        losses = [unexplained.loss(), *(float(error.double().square().sum()) / n_tokens for error in errors[:-1])]
        self.remember_active(listed, n_tokens)
        resets_due = self._resets_due(progress)
        dead_lf = self.dead()
        auxiliary, auxiliary_loss = None, 0.0
        if s.aux_coefficient:
            auxiliary, auxiliary_loss = auxiliary_group(self.parameters, x_lbd, errors[-1], dead_lf, s)
        errors_lbd = errors[-1].clone() if resets_due else errors[-1]
        groups = prefix_gradients(errors, groups)
        dead = self._draw_dead(x_lbd, dead_lf) if self._draws else []
        strength = min(1.0, progress / s.l0_warmup_share) if s.l0_warmup_share else 1.0
        backward = Backward(
            self.parameters,
            self.moments,
            self.sparsity,
            self.norms_lf,
            x_lbd,
            listed,
            groups,
            self.adam_step(rate),
            target,
            strength,
            auxiliary,
            dead,
        )
        penalty = backward.apply(
            gathers=s.activation == "ste-jumprelu" and s.l0_loss == "tanh" and s.ste_reaches == "all"
        )
        self.steps += 1
        resets = self._reset(x_lbd, errors_lbd) if resets_due else 0
        return StepMetrics(
            loss=sum(losses) / len(losses)
            + auxiliary_loss
            + penalty
            + sum(part.loss for part in dead if part is not None),
            fvu_l=unexplained.fvu(self.normalisation.scale_out_ld),
            fvu_weighted_l=unexplained.fvu(),
            l0_l=torch.tensor([float(part.active.sum()) / n_tokens for part in listed]),
            dead_l=self.dead().float().mean(1).cpu(),
            learning_rate=rate,
            l0_target=target,
            resets=resets,
        )

    def adam_step(self, rate: float) -> AdamStep:
        """Return Adam's settings with a learning rate."""
        return AdamStep(rate, self.settings.adam_beta1, self.settings.adam_beta2, self.settings.adam_epsilon)

    @property
    def _draws(self) -> bool:
        """Whether a loss draws dead features' pre-activations up to their thresholds."""
        return self.settings.activation == "ste-jumprelu" and self.settings.pre_activation_coefficient > 0

    def _draw_dead(self, x_lbd: Tensor, dead_lf: Tensor) -> list[DeadGradients | None]:
        p, s, thresholds_lf = self.parameters, self.settings, self.sparsity.thresholds(self.norms_lf)
        layers = enumerate(zip(x_lbd, dead_lf, thresholds_lf, self.norms_lf, strict=True))
        return [pre_activation_gradients(p, layer, *tensors, s) for layer, tensors in layers]

    def refresh_norms(self) -> None:
        """Take the norms of decoders anew, every few steps."""
        if (self.steps + self.fine_tuning_steps) % _NORMS_EVERY == 0:
            self.norms_lf = self.parameters.decoder_norms()

    def list_active(self, x_lbd: Tensor, target: float) -> list[Listed]:
        """List every layer's active features for normalised inputs (L, B, D_in); running quantiles follow."""
        rate = self.settings.quantile_rate
        rate = max(0.5, rate) if self.steps < self.settings.warmup_steps else rate
        return [self.list_layer(layer, x_bd, target, rate) for layer, x_bd in enumerate(x_lbd)]

    def list_layer(self, layer: int, x_bd: Tensor, target: float, rate: float) -> Listed:
        """List one layer's active features for normalised inputs (B, D_in); its running quantile follows."""
        p = self.parameters
        encoder_fd, bias_f, norms_f = p.encoder_fd[layer], p.encoder_bias_lf[layer], self.norms_lf[layer]
        return self.sparsity.list(layer, x_bd, encoder_fd, bias_f, norms_f, target, rate)

    def apply(self, x_lbd: Tensor, listed: list[Listed], group: Group, rate: float) -> None:
        """Update every weight, with the gradient that a group of all entries has; no penalty counts."""
        Backward(
            self.parameters,
            self.moments,
            self.sparsity,
            self.norms_lf,
            x_lbd,
            listed,
            [group],
            self.adam_step(rate),
            self.settings.l0,
        ).apply()

    def remember_active(self, listed: list[Listed], n_tokens: int) -> None:
        """Count tokens, and note which features were active in them."""
        self.tokens_seen += n_tokens
        for layer, part in enumerate(listed):
            self.last_active_lf[layer, part.features[part.active]] = self.tokens_seen

    def dead(self) -> Tensor:
        """Return which features (L, F) were not active for `dead_after_tokens` tokens."""
        return self.last_active_lf < self.tokens_seen - self.settings.dead_after_tokens

    def _reset(self, x_lbd: Tensor, errors_lbd: Tensor) -> int:
        reset_lf = reset_dead(
            self.dead(), self.parameters, self.moments, x_lbd, errors_lbd, self.settings, self.generator
        )
        n_reset = int(reset_lf.sum())
        if n_reset:
            for layer, reset_f in enumerate(reset_lf):
                self.sparsity.restart(layer, reset_f.nonzero()[:, 0])
            self.last_active_lf[reset_lf] = self.tokens_seen
            self.norms_lf = self.parameters.decoder_norms()
        return n_reset

    def _resets_due(self, progress: float) -> bool:
        s = self.settings
        return (
            s.reset_every_steps > 0 and (self.steps + 1) % s.reset_every_steps == 0 and progress < s.reset_until_share
        )

    def thresholds(self) -> Tensor:
        """Return the thresholds (L, F) that use has, of the weights as they are now."""
        return self.sparsity.thresholds(self.parameters.decoder_norms())

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor that is remembered, with its name; counters and the generator are not among them."""
        for group in (self.normalisation, self.parameters, self.moments, self.sparsity):
            yield from group.named()
        yield "norms_lf", self.norms_lf
        yield "last_active_lf", self.last_active_lf

    def state(self) -> dict[str, Tensor]:
        """Return everything that later steps depend on; tensors are the trainer's own, so write them before the next step."""
        counters = torch.tensor([self.steps, self.tokens_seen, self.fine_tuning_steps])
        return {**dict(self.named()), "counters": counters, "generator": self.generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a state; the next steps give the same bits as they did after it.

        Raises:
            ValueError: The state is of another dictionary; the first tensor that does not fit is named.
        """
        own = self.state()
        for name in {**own, **state}:
            if name not in own or name not in state:
                where = "the state" if name not in state else "this dictionary"
                raise ValueError(f"state: {name} is missing in {where}; is it of another recipe?")
            if own[name].shape != state[name].shape or own[name].dtype != state[name].dtype:
                raise ValueError(
                    f"state: {name} has shape {tuple(state[name].shape)} and dtype {state[name].dtype}; "
                    f"expected {tuple(own[name].shape)} and {own[name].dtype}"
                )
        for name, tensor in self.named():
            tensor.copy_(state[name])
        self.steps, self.tokens_seen, self.fine_tuning_steps = state["counters"].tolist()
        self.generator.set_state(state["generator"].cpu())
