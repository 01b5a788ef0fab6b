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
