"""Fine-tuning end to end: the base model runs with every MLP replaced, and its hidden states are to stay what they were.

Training on activations of the unreplaced model leaves each layer to itself: in use every layer reads what the layers below
have already got a little wrong. Here the whole is run, and the loss is the Kullback-Leibler divergence of the replaced
model's next token from the model's own, at some tokens of a step drawn at random, plus a share of the normalised squared
errors of the residual stream after each layer. Few tokens are enough, and each costs as much as a pass of the whole model
where the vocabulary is large. With none drawn, the normalised squared error of the final hidden state takes the place of the
divergence. Gradients go through the frozen base model by autograd and through the dictionary by the sparse kernels: of it
autograd sees one function per layer.

Running quantiles go on following the unreplaced model's activations, where L0 is measured: what replaced layers read is
poorer, and fewer features are active there. Thresholds that are trained stay as they are.

Letters: L layers, W windows, P positions of a window, B = W * (P - excluded first) tokens, D d_model, V vocabulary, J layers a
feature writes to, n entries of a layer, or tokens drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosstrace.kernels import RowGradients, SparseActivations, decode_layer, decode_layer_backward, encode_backward
from crosstrace.replacement_model.architectures.hooks import Hook, hooked
from crosstrace.replacement_model.architectures.sites import ModelSites, Site
from crosstrace.replacement_model.training.core import Trainer
from crosstrace.replacement_model.training.passes import Group, decode_layer_into, entries_of
from crosstrace.replacement_model.training.sparsity import Listed


@dataclass(frozen=True, eq=False)
class FineTuningMetrics:
    """What a step saw.

    Attributes:
        loss: The loss.
        final: The divergence (nats a token), or the normalised squared error of the final hidden state.
        residual_l: (L,) that of the residual stream after each layer.
        l0_l: (L,) active features of a token.
        dead_l: (L,) the share of features that were not active for `dead_after_tokens`.
        learning_rate: Adam's learning rate.
        gradient_norm: The norm of the gradient of all weights, before it was clipped; NaN where none is clipped.
    """

    loss: float
    final: float
    residual_l: Tensor
    l0_l: Tensor
    dead_l: Tensor
    learning_rate: float
    gradient_norm: float


def check_fine_tuning(trainer: Trainer, sites: ModelSites) -> None:
    """Check that a dictionary can be fine-tuned end to end with a model.

    Raises:
        ValueError: It is an SAE, or does not replace every MLP of the model.
    """
    shape, description = trainer.shape, sites.description
    if shape.kind == "sae":
        raise ValueError("fine-tuning end to end replaces MLPs; an SAE does not, expected transcoders or a CLT")
    if shape.layers != tuple(range(description.n_layers)):
        raise ValueError(
            f"fine-tuning end to end replaces every MLP: the dictionary has layers {list(shape.layers)}, "
            f"the model 0 to {description.n_layers - 1}"
        )


def fine_tune_step(trainer: Trainer, sites: ModelSites, tokens_wp: Tensor, progress: float) -> FineTuningMetrics:
    """Train on windows of text.

    Args:
        trainer: The trainer; its weights are updated.
        sites: The base model.
        tokens_wp: (W, P) int64 token ids, `<bos>` included.
        progress: How much of this stage is done, from 0 to 1.

    Returns:
        What the step saw, before its update.

    Raises:
        ValueError: The dictionary cannot be fine-tuned end to end, or a window has no positions that carry features.
    """
    check_fine_tuning(trainer, sites)
    if trainer.fine_tuning_steps == 0:
        trainer.moments.clear()  # of another loss, on another scale
    trainer.refresh_norms()
    trainer.fine_tuning_steps += 1
    return _update(trainer, run_replaced(trainer, sites, tokens_wp), progress)


def run_replaced(trainer: Trainer, sites: ModelSites, tokens_wp: Tensor) -> ReplacedPass:
    """Run the model without and with its MLPs replaced, and the loss backward.

    Args:
        trainer: The trainer; running quantiles follow, weights stay.
        sites: The base model.
        tokens_wp: (W, P) int64 token ids.

    Raises:
        ValueError: A window has no positions that carry features.
    """
    first, weight = sites.description.excluded_first, trainer.settings.end_to_end_residual_weight
    if tokens_wp.shape[1] <= first:
        raise ValueError(f"windows of {tokens_wp.shape[1]} tokens; expected more than the {first} excluded first ones")
    tokens_wp = tokens_wp.to(sites.embedding.get_parameter("weight").device)
    states = ReplacedPass(trainer, tokens_wp.shape[0] * (tokens_wp.shape[1] - first))
    with frozen(sites.text_model):
        with torch.no_grad(), hooked(_followers(trainer, sites)):
            wanted = _hidden_states(sites, tokens_wp)
        with torch.enable_grad(), _replaced(sites, states):
            got = _hidden_states(sites, tokens_wp)
            pairs = [(new[:, first:], old[:, first:]) for new, old in zip(got, wanted, strict=True)]
            residual = torch.stack([_normalised_error(*pair) for pair in pairs[:-1]])
            final = _final_error(trainer, sites, *pairs[-1])
            loss = final + weight * residual.sum()
            loss.backward()
    states.loss, states.final, states.residual_l = loss.item(), final.item(), residual.detach().float().cpu()
    return states


@torch.no_grad()
def _update(trainer: Trainer, states: ReplacedPass, progress: float) -> FineTuningMetrics:
    listed = [part for part in states.listed if part is not None]
    entries, rate = entries_of(listed, states.n_tokens), trainer.learning_rate(progress)
    trainer.remember_active(listed, states.n_tokens)
    clip, norm = trainer.settings.end_to_end_clip, float("nan")
    if clip:
        norm = states.gradient_norm()
        # Every gradient is linear in this one.
        states.gradient_lbd *= min(1.0, clip / max(norm, 1e-12))
    trainer.apply(states.x_lbd, listed, Group(entries, None, states.gradient_lbd), rate)
    return FineTuningMetrics(
        loss=states.loss,
        final=states.final,
        residual_l=states.residual_l,
        l0_l=entries.layer_offsets.diff() / states.n_tokens,
        dead_l=trainer.dead().float().mean(1).cpu(),
        learning_rate=rate,
        gradient_norm=norm,
    )


def _square_sum(tensor: Tensor) -> Tensor:
    # Row by row in float32, a twentieth of the time of float64 throughout; over all at once float32 would lose digits.
    return torch.linalg.vector_norm(tensor, dim=-1).double().square().sum()


def _final_error(trainer: Trainer, sites: ModelSites, new_wpd: Tensor, old_wpd: Tensor) -> Tensor:
    """How far the final hidden state is from the model's own: by the next token it says, where tokens are drawn for that."""
    n_drawn = trainer.settings.end_to_end_logit_tokens
    if not n_drawn:
        return _normalised_error(new_wpd, old_wpd)
    new_bd, old_bd = new_wpd.flatten(0, 1), old_wpd.flatten(0, 1)
    drawn_n = torch.randperm(len(new_bd), generator=trainer.generator)[:n_drawn].to(new_bd.device)
    unembedding_vd = sites.unembedding.detach()
    new_nv, old_nv = (F.linear(bd[drawn_n], unembedding_vd).float().log_softmax(-1) for bd in (new_bd, old_bd))
    return F.kl_div(new_nv, old_nv, log_target=True, reduction="batchmean")


def _normalised_error(new_wpd: Tensor, old_wpd: Tensor) -> Tensor:
    """Squared error as a share of the variance over tokens."""
    old_wpd = old_wpd.float()
    spread = (old_wpd - old_wpd.mean((0, 1))).square().sum()
    return (new_wpd.float() - old_wpd).square().sum() / spread


def _followers(trainer: Trainer, sites: ModelSites) -> list[tuple[nn.Module, Hook]]:
    """Hooks by which running quantiles follow what passes the model's MLPs."""
    first, scaling, settings = sites.description.excluded_first, trainer.normalisation, trainer.settings

    def follower(layer: int) -> Hook:
        def follow(args: Any, kwargs: Any, output: Tensor) -> None:
            input_bd = Site.MLP_INPUT_NORMED.value_in(args, output)[:, first:].flatten(0, 1).float().to(trainer.device)
            x_bd = (input_bd - scaling.mean_in_ld[layer]) * scaling.scale_in_ld[layer]
            trainer.list_layer(layer, x_bd, settings.l0, settings.quantile_rate)

        return follow

    if settings.activation == "ste-jumprelu":
        return []
    return [(layer.module(Site.MLP_INPUT_NORMED), follower(i)) for i, layer in enumerate(sites.layers)]


def _hidden_states(sites: ModelSites, tokens_wp: Tensor) -> list[Tensor]:
    """Run the model: the residual stream (W, P, D) after each layer, and the final hidden state."""
    found: list[Tensor] = []

    def keep(args: Any, kwargs: Any, output: Any) -> None:
        found.append(Site.RESIDUAL.value_in(args, output))

    with hooked([(layer.module(Site.RESIDUAL), keep) for layer in sites.layers]):
        found.append(sites.text_model(input_ids=tokens_wp, use_cache=False).last_hidden_state)
    return found


@dataclass(eq=False)
class ReplacedPass:
    """One pass with every MLP replaced: what its layers leave for each other and for the update.

    Attributes:
        trainer: The dictionary.
        n_tokens: B.
        out_lbd: (L, B, D) what features have written so far, normalised.
        gradient_lbd: (L, B, D) the loss's gradient by the normalised reconstructions, from the last layer down.
        x_lbd: (L, B, D_in) normalised inputs.
        listed: Each layer's active features.
        loss: The loss.
        final: The part of it that the final hidden state has.
        residual_l: (L,) the normalised squared errors of the residual stream after each layer.
        squares: The squared norms of the weights' gradients, of layers that were gone back through, where they are clipped.
    """

    trainer: Trainer
    n_tokens: int
    out_lbd: Tensor = field(init=False)
    gradient_lbd: Tensor = field(init=False)
    x_lbd: Tensor = field(init=False)
    listed: list[Listed | None] = field(init=False)
    loss: float = field(init=False)
    final: float = field(init=False)
    residual_l: Tensor = field(init=False)
    squares: list[Tensor] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        shape, device = self.trainer.shape, self.trainer.device
        out_shape = (shape.n_layers, self.n_tokens, shape.d_out)
        self.out_lbd, self.gradient_lbd = torch.zeros(out_shape, device=device), torch.zeros(out_shape, device=device)
        self.x_lbd = torch.zeros(shape.n_layers, self.n_tokens, shape.d_in, device=device)
        self.listed = [None] * shape.n_layers

    def forward(self, layer: int, input_bd: Tensor) -> Tensor:
        """Return a layer's output (B, D) from its input (B, D_in), both raw."""
        trainer, p, scaling = self.trainer, self.trainer.parameters, self.trainer.normalisation
        x_bd = self.x_lbd[layer]
        torch.sub(input_bd.float().to(trainer.device), scaling.mean_in_ld[layer], out=x_bd).mul_(
            scaling.scale_in_ld[layer]
        )
        listed = self.listed[layer] = trainer.sparsity.list_by_thresholds(
            layer, x_bd, p.encoder_fd[layer], p.encoder_bias_lf[layer], trainer.norms_lf
        )
        entries = _entries_of_layer(listed, self.n_tokens)
        decoder_jfd = p.decoder_jfd[layer]
        decode_layer_into(self.out_lbd[layer : layer + len(decoder_jfd)], entries, 0, decoder_jfd)
        y_bd = self.out_lbd[layer] + p.decoder_bias_ld[layer]
        if p.skip_ldd is not None:
            y_bd.addmm_(x_bd, p.skip_ldd[layer])
        return (y_bd / scaling.scale_out_ld[layer] + scaling.mean_out_ld[layer]).to(input_bd)

    def backward(self, layer: int, gradient_bd: Tensor) -> Tensor:
        """Return the gradient of a layer's raw input from that of its raw output.

        Layers come from the last one down, since what a layer gives is read by those above; so the gradients of all that its
        features write to are known.
        """
        p, scaling, listed = self.trainer.parameters, self.trainer.normalisation, self.listed[layer]
        assert listed is not None
        self.gradient_lbd[layer] = gradient_bd.float().to(self.trainer.device) / scaling.scale_out_ld[layer]
        decoder_jfd = p.decoder_jfd[layer]
        values_n, decoder_rows = decode_layer_backward(
            self.gradient_lbd[layer : layer + len(decoder_jfd)],
            listed.positions,
            listed.features,
            listed.values,
            decoder_jfd.transpose(0, 1),
        )
        if self.trainer.settings.end_to_end_clip:
            self.squares += self._squares(layer, listed, values_n, decoder_rows)
        # The gradient of an input is a decoding too: of the gradients of pre-activations, by encoder rows.
        x_gradient_1bd = torch.zeros_like(self.x_lbd[layer])[None]
        decode_layer(x_gradient_1bd, listed.positions, values_n, p.encoder_fd[layer][:, None], listed.features)
        if p.skip_ldd is not None:
            x_gradient_1bd[0].addmm_(self.gradient_lbd[layer], p.skip_ldd[layer].T)
        return (x_gradient_1bd[0] * scaling.scale_in_ld[layer]).to(gradient_bd)

    def _squares(self, layer: int, listed: Listed, values_n: Tensor, decoder_rows: RowGradients) -> Iterator[Tensor]:
        """Yield the squared norms of the gradients of one layer's weights, which are all known here."""
        x_bd, gradient_bd = self.x_lbd[layer], self.gradient_lbd[layer]
        [(encoder_rows, biases)] = encode_backward(x_bd[None], _entries_of_layer(listed, self.n_tokens), values_n)
        for part in (decoder_rows, encoder_rows, biases):
            yield _square_sum(part.gradients)
        yield gradient_bd.sum(0).double().square().sum()
        if self.trainer.parameters.skip_ldd is not None:
            yield (x_bd.T @ gradient_bd).double().square().sum()

    def gradient_norm(self) -> float:
        """Return the norm of the gradient of all weights."""
        return float(torch.stack(self.squares).sum().sqrt())


def _entries_of_layer(listed: Listed, n_tokens: int) -> SparseActivations:
    return SparseActivations.from_layers([(listed.positions, listed.features, listed.values)], n_tokens)


class _ReplacedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_bd: Tensor, states: ReplacedPass, layer: int) -> Tensor:
        ctx.states, ctx.layer = states, layer
        return states.forward(layer, input_bd)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.states.backward(ctx.layer, gradients[0]), None, None


@contextmanager
def _replaced(sites: ModelSites, states: ReplacedPass) -> Iterator[None]:
    """Replace every MLP for the moment; excluded first positions keep its own output, and it runs for them alone."""
    first = sites.description.excluded_first
    inputs: dict[int, Tensor] = {}

    def reader(layer: int) -> Hook:
        def read(args: Any, kwargs: Any, output: Tensor) -> None:
            inputs[layer] = Site.MLP_INPUT_NORMED.value_in(args, output)

        return read

    def writer(layer: int) -> Hook:
        def write(args: Any, kwargs: Any, output_wpd: Tensor) -> Tensor:
            input_bd = inputs.pop(layer)[:, first:].flatten(0, 1)
            if not input_bd.requires_grad:  # below the first replaced MLP nothing depends on weights
                input_bd = input_bd.detach().requires_grad_()
            replaced_bd = _ReplacedMlp.apply(input_bd, states, layer)
            replaced_wpd = replaced_bd.view(len(output_wpd), -1, output_wpd.shape[-1])
            return torch.cat([output_wpd[:, :first], replaced_wpd], dim=1)

        return write

    hooks: list[tuple[nn.Module, Hook]] = []
    with ExitStack() as stack:
        for layer, parts in enumerate(sites.layers):
            hooks.append((parts.module(Site.MLP_INPUT_NORMED), reader(layer)))
            hooks.append((parts.module(Site.MLP_OUTPUT), writer(layer)))
            if parts.mlp is not None:
                stack.enter_context(_only_first(parts.mlp, first))
        stack.enter_context(hooked(hooks))
        yield


@contextmanager
def _only_first(mlp: nn.Module, first: int) -> Iterator[None]:
    """Run an MLP for the first positions alone; its output is 0 elsewhere."""
    own, was_set = mlp.forward, "forward" in vars(mlp)

    def forward(input_wpd: Tensor) -> Tensor:
        output_wpd = torch.zeros_like(input_wpd)
        if first:
            output_wpd = torch.cat([own(input_wpd[:, :first]), output_wpd[:, first:]], dim=1)
        return output_wpd

    mlp.forward = forward
    try:
        yield
    finally:
        if was_set:
            mlp.forward = own
        else:
            del mlp.forward


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep autograd from a module's weights for the moment."""
    wanted = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in wanted:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanted:
            weight.requires_grad_(True)
