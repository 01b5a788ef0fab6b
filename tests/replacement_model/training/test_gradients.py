"""A step is one of torch's Adam with autograd's gradients of the loss, for every kind of dictionary."""

from __future__ import annotations

import pytest
import torch
from dense_dictionary import KINDS, Dense, small_data, small_trainer

# With a large epsilon a first step of Adam is not just the sign of the gradient, so that its size is compared too.
ADAM = {"adam_epsilon": 0.05, "warmup_steps": 0, "decay_share": 0.0, "learning_rate": 0.1}


@pytest.mark.parametrize("activation", ["quantile-jumprelu", "batch-topk"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_adam_on_the_gradient_of_the_squared_error(kind, activation):
    trainer = small_trainer(kind, activation=activation, **ADAM)
    inputs, outputs = small_data(trainer.shape, 16, seed=5)
    x, y = trainer.normalisation.inputs(inputs).double(), trainer.normalisation.outputs(outputs).double()
    dense = Dense(trainer)
    seen = trainer.step(inputs, outputs, 0.5)

    activations = []
    wanted = round(trainer.l0_target(0.5) * 16)
    for layer, active in enumerate((seen.l0_l * 16).round().int().tolist()):
        h = dense.pre_activations(layer, x[layer])
        largest = (h * dense.norms(layer)).flatten().topk(active)
        kept = torch.zeros(h.numel(), dtype=torch.bool).index_fill(0, largest.indices, True)
        activations.append(h * kept.view_as(h))
        # In a first step both take the batch's own quantile, which BatchTopK's scores reach and a threshold's exceed.
        assert active in ((wanted,) if activation == "batch-topk" else (wanted, wanted - 1))
        assert float(trainer.sparsity.tau_l[layer]) == pytest.approx(largest.values.min().item(), rel=0.1)
    loss = (dense.reconstruct(x, activations) - y).square().sum() / 16
    loss.backward()
    torch.optim.Adam(dense.weights.values(), lr=0.1, betas=(0.9, 0.99), eps=0.05).step()

    assert seen.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in trainer.parameters.named():
        assert torch.allclose(weight.double(), dense.weights[name], rtol=0, atol=2e-5), name


def test_fvu_is_the_unexplained_share_of_the_batch_in_raw_and_in_normalised_units():
    trainer = small_trainer("clt")
    inputs, outputs = small_data(trainer.shape, 16, seed=5)
    y = trainer.normalisation.outputs(outputs)
    for weight in trainer.parameters.decoder_jfd:
        weight.zero_()
    trainer.parameters.decoder_bias_ld.fill_(0.5)
    seen = trainer.step(inputs, outputs, 1.0)
    error, spread = (0.5 - y).square().sum(1), (y - y.mean(1, keepdim=True)).square().sum(1)
    assert torch.allclose(seen.fvu_weighted_l, error.sum(1) / spread.sum(1), rtol=1e-4)
    raw = trainer.normalisation.scale_out_ld.square()
    assert torch.allclose(seen.fvu_l, (error / raw).sum(1) / (spread / raw).sum(1), rtol=1e-4)


class Jump(torch.autograd.Function):
    """h where h > threshold; the gradient of the jump goes to the threshold by a rectangle around it."""

    @staticmethod
    def forward(ctx, h, threshold, bandwidth):
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return h * (h > threshold)

    @staticmethod
    def backward(ctx, gradient):
        h, threshold = ctx.saved_tensors
        near = ((h - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return gradient * (h > threshold), (-gradient * threshold * near).sum(0), None


class Step(torch.autograd.Function):
    """1 where h > threshold; the gradient of the step goes to both."""

    @staticmethod
    def forward(ctx, h, threshold, bandwidth):
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return (h > threshold).double()

    @staticmethod
    def backward(ctx, gradient):
        h, threshold = ctx.saved_tensors
        near = ((h - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return gradient * near, (-gradient * near).sum(0), None


def straight_through_loss(trainer, dense, log_threshold, x, y, marked, strength):
    """The loss written out; `marked` (L, F) features are dead unless they are active."""
    s, n = trainer.settings, x.shape[1]
    values, auxiliary, penalty = [], [], 0.0
    for layer in range(trainer.shape.n_layers):
        h, norms, threshold = dense.pre_activations(layer, x[layer]), dense.norms(layer), log_threshold[layer].exp()
        values.append(Jump.apply(h, threshold, s.bandwidth))
        dead = marked[layer] & ~(h > threshold).any(0)
        penalized, weights = (h, norms) if s.ste_reaches == "all" else (h.detach(), norms.detach())
        steps = Step.apply(penalized, threshold, s.bandwidth)
        if s.l0_loss == "quadratic":
            penalty += strength * s.l0_coefficient * (steps.sum() / n / s.l0 - 1).square()
        else:
            jumped = Jump.apply(penalized, threshold, s.bandwidth)
            penalty += strength * s.l0_coefficient * torch.tanh(s.tanh_scale * jumped * weights).sum() / n
        excess = (steps.mean(0) / s.frequency_limit - 1).clamp_min(0)
        penalty += s.frequency_coefficient * excess.square().sum()
        penalty += s.pre_activation_coefficient * ((threshold - h).clamp_min(0) * norms)[:, dead].sum() / n
        among = h.where(dead, -torch.inf)
        strongest = torch.zeros_like(h, dtype=torch.bool).scatter(1, among.topk(min(s.aux_k, s.features)).indices, True)
        auxiliary.append(h * (strongest & dead & (h > 0)))
    shares = s.matryoshka or (1.0,)
    errors = []
    for share in shares:
        inside = torch.arange(s.features) < round(share * s.features)
        errors.append(dense.reconstruct(x, [a * inside for a in values]) - y)
    loss = sum(error.square().sum() for error in errors) / len(errors) / n
    restored = torch.stack(
        [
            sum((dense.written(source, layer, a) for source, a in enumerate(auxiliary)), torch.zeros_like(y[layer]))
            for layer in range(trainer.shape.n_layers)
        ]
    )
    if s.aux_coefficient:
        loss = loss + s.aux_coefficient * (errors[-1].detach() + restored).square().sum() / n
    return loss + penalty


EXTRAS = {
    "frequency": {"frequency_coefficient": 0.4, "frequency_limit": 0.3},
    "pre_activation": {"pre_activation_coefficient": 0.3},
    "auxiliary": {"aux_coefficient": 0.5, "aux_k": 2},
    "matryoshka": {"matryoshka": [0.25, 0.5, 1.0]},
    "everything": {
        "frequency_coefficient": 0.4,
        "frequency_limit": 0.3,
        "pre_activation_coefficient": 0.3,
        "aux_coefficient": 0.5,
        "aux_k": 2,
        "matryoshka": [0.25, 1.0],
    },
}
STRAIGHT_THROUGH = {
    "activation": "ste-jumprelu",
    "bandwidth": 0.8,
    "threshold_start": 1.0,
    "l0_coefficient": 0.7,
    "l0_warmup_share": 0.8,
    "tanh_scale": 1.5,
    "l0_start": 3.0,
    "pre_activation_coefficient": 0.0,
    "start_decoder_scale": 1.0,
}


@pytest.mark.parametrize("extra", [None, *EXTRAS])
@pytest.mark.parametrize("reaches", ["threshold", "all"])
@pytest.mark.parametrize("penalty", ["quadratic", "tanh"])
def test_a_step_with_trained_thresholds_is_adam_on_the_gradient_with_the_step_s_stand_in(penalty, reaches, extra):
    _compare_straight_through("skip_clt", penalty, reaches, extra)


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_are_trained_for_every_kind(kind):
    _compare_straight_through(kind, "tanh", "all", "everything")


def _compare_straight_through(kind, penalty, reaches, extra):
    changes = {**STRAIGHT_THROUGH, "l0_loss": penalty, "ste_reaches": reaches, **(EXTRAS[extra] if extra else {})}
    trainer = small_trainer(kind, **ADAM, **changes)
    generator = torch.Generator().manual_seed(2)
    trainer.sparsity.log_threshold_lf += 0.3 * torch.randn(trainer.shape.n_layers, 12, generator=generator)
    marked = torch.rand(trainer.shape.n_layers, 12, generator=generator) < 0.6
    for layer, encoder in enumerate(trainer.parameters.encoder_fd):  # some of them are weak enough to stay silent
        encoder[marked[layer]] *= 0.3
    trainer.last_active_lf[marked] = -(10**6)
    inputs, outputs = small_data(trainer.shape, 16, seed=5)
    x, y = trainer.normalisation.inputs(inputs).double(), trainer.normalisation.outputs(outputs).double()
    dense = Dense(trainer)
    log_threshold = trainer.sparsity.log_threshold_lf.double().clone().requires_grad_()
    loss = straight_through_loss(trainer, dense, log_threshold, x, y, marked, strength=0.5 / 0.8)
    loss.backward()
    torch.optim.Adam([*dense.weights.values(), log_threshold], lr=0.1, betas=(0.9, 0.99), eps=0.05).step()

    seen = trainer.step(inputs, outputs, 0.5)

    assert 0.5 < seen.l0_l.mean() < 8
    assert seen.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in [*trainer.parameters.named(), ("log_threshold_lf", trainer.sparsity.log_threshold_lf)]:
        expected = log_threshold if name == "log_threshold_lf" else dense.weights[name]
        assert torch.allclose(weight.double(), expected, rtol=0, atol=2e-5), name


@pytest.mark.parametrize("extra", ["frequency", "auxiliary", "matryoshka"])
def test_a_quantile_s_step_has_the_same_extras(extra):
    trainer = small_trainer("clt", **ADAM, **EXTRAS[extra])
    s = trainer.settings
    marked = torch.arange(12) % 3 == 0
    for encoder in trainer.parameters.encoder_fd:
        encoder[marked] *= 0.2
    trainer.last_active_lf[:, marked] = -(10**6)
    inputs, outputs = small_data(trainer.shape, 16, seed=5)
    x, y = trainer.normalisation.inputs(inputs).double(), trainer.normalisation.outputs(outputs).double()
    dense, norms = Dense(trainer), trainer.parameters.decoder_norms()
    seen = trainer.step(inputs, outputs, 0.5)

    values, auxiliary, penalty = [], [], 0.0
    for layer, active in enumerate((seen.l0_l * 16).round().int().tolist()):
        h = dense.pre_activations(layer, x[layer])
        largest = (h * norms[layer]).flatten().topk(active).indices
        kept = torch.zeros(h.numel(), dtype=torch.bool).index_fill(0, largest, True).view_as(h)
        values.append(h * kept)
        excess = (kept.double().mean(0) / s.frequency_limit - 1).clamp_min(0)
        penalty += s.frequency_coefficient * (excess.square() * norms[layer] * values[-1]).sum() / 16
        dead = marked & ~kept.any(0)
        among = h.where(dead, -torch.inf).topk(min(s.aux_k, s.features)).indices
        auxiliary.append(h * (torch.zeros_like(kept).scatter(1, among, True) & dead & (h > 0)))
    errors = [
        dense.reconstruct(x, [a * (torch.arange(12) < round(share * 12)) for a in values]) - y
        for share in s.matryoshka or (1.0,)
    ]
    loss = sum(error.square().sum() for error in errors) / len(errors) / 16 + penalty
    if s.aux_coefficient:
        assert any(a.any() for a in auxiliary)
        restored = dense.reconstruct(x, auxiliary) - dense.weights["decoder_bias_ld"][:, None]
        loss = loss + s.aux_coefficient * (errors[-1].detach() + restored).square().sum() / 16
    loss.backward()
    torch.optim.Adam(dense.weights.values(), lr=0.1, betas=(0.9, 0.99), eps=0.05).step()
    assert seen.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in trainer.parameters.named():
        assert torch.allclose(weight.double(), dense.weights[name], rtol=0, atol=2e-5), name
