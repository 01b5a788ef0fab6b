"""Fine-tuning end to end: gradients through the whole model are autograd's of a model whose MLPs are written anew."""

from __future__ import annotations

import pytest
import torch
from cases import load_case
from dense_dictionary import Dense, small_settings, small_trainer

from crosstrace.kernels import decode_backward, encode_backward
from crosstrace.replacement_model.architectures.hooks import hooked
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.replacement_model.architectures.sites import ModelSites, Site
from crosstrace.replacement_model.training.core import Trainer
from crosstrace.replacement_model.training.end_to_end import fine_tune_step, run_replaced
from crosstrace.replacement_model.training.evaluation import evaluate
from crosstrace.replacement_model.training.parameters import DictionaryShape
from crosstrace.replacement_model.training.passes import entries_of

FIRST = 2  # excluded positions
KINDS = ("transcoders", "skip_clt")


@pytest.fixture(scope="module")
def sites() -> ModelSites:
    model, _, description = load_model(str(load_case("clt_plain_gqa").model), None, torch.device("cpu"))
    return ModelSites(model, description).excluding(FIRST)


def windows(n: int, length: int, seed: int) -> torch.Tensor:
    tokens = torch.randint(3, 97, (n, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 2
    return tokens


def activations(sites: ModelSites, tokens_wp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What passes the MLPs, without the excluded positions."""
    found: dict[Site, list[torch.Tensor]] = {Site.MLP_INPUT_NORMED: [], Site.MLP_OUTPUT: []}

    def keeper(site):
        return lambda args, kwargs, output: found[site].append(output[:, FIRST:].flatten(0, 1))

    with torch.no_grad(), hooked([(layer.module(site), keeper(site)) for layer in sites.layers for site in found]):
        sites.text_model(input_ids=tokens_wp, use_cache=False)
    return tuple(torch.stack(part) for part in found.values())


def trainer_for(sites: ModelSites, kind: str, **changes) -> Trainer:
    """A trainer after a few steps on the model's activations."""
    settings = small_settings(kind, **{"features": 24, "l0": 5.0, "l0_start": 5.0, "end_to_end_tokens": 100, **changes})
    trainer = Trainer(settings, DictionaryShape.of(settings, sites.description), activations(sites, windows(8, 20, 1)))
    for step in range(10):
        trainer.step(*activations(sites, windows(4, 18, 100 + step)), step / 10)
    return trainer


def dense_loss(trainer: Trainer, dense: Dense, sites: ModelSites, tokens_wp: torch.Tensor, active) -> torch.Tensor:
    """The loss written out, with the given active features, (B, F) of each layer."""
    scaling, inputs, written = trainer.normalisation, {}, []

    def read(layer):
        return lambda args, kwargs, output: inputs.__setitem__(layer, output)

    def write(layer):
        def replaced(args, kwargs, output):
            x = (inputs[layer][:, FIRST:].flatten(0, 1).double() - scaling.mean_in_ld[layer]) * scaling.scale_in_ld[
                layer
            ]
            written.append(dense.pre_activations(layer, x) * active[layer])
            y = dense.affine(layer, x)
            for source in range(layer + 1):
                y = y + dense.written(source, layer, written[source])
            y = (y / scaling.scale_out_ld[layer] + scaling.mean_out_ld[layer]).float()
            return torch.cat([output[:, :FIRST], y.view(len(tokens_wp), -1, y.shape[-1])], 1)

        return replaced

    def states(hooks):
        residuals = []
        keep = [(layer.whole, lambda args, kwargs, output: residuals.append(output)) for layer in sites.layers]
        with hooked([*hooks, *keep]):
            final = sites.text_model(input_ids=tokens_wp, use_cache=False).last_hidden_state
        return [state[:, FIRST:].flatten(0, 1) for state in (*residuals, final)]

    reads = [(layer.pre_feedforward_norm, read(i)) for i, layer in enumerate(sites.layers)]
    writes = [(layer.post_feedforward_norm, write(i)) for i, layer in enumerate(sites.layers)]
    new_states, old_states = states([*reads, *writes]), states([])
    errors = [
        (new - old).square().sum() / (old - old.mean(0)).square().sum()
        for new, old in zip(new_states, old_states, strict=True)
    ]
    final = errors[-1]
    if trainer.settings.end_to_end_logit_tokens:
        new, old = (torch.log_softmax(found[-1] @ sites.unembedding.T, -1) for found in (new_states, old_states))
        final = (old.exp() * (old - new)).sum(-1).mean()
    return final + trainer.settings.end_to_end_residual_weight * sum(errors[:-1])


@pytest.mark.parametrize("logit_tokens", [0, 18])  # 18 are all
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_autograd_s_through_the_model_with_rewritten_mlps(sites, kind, logit_tokens):
    trainer, tokens = trainer_for(sites, kind, end_to_end_logit_tokens=logit_tokens), windows(2, 11, 7)
    states = run_replaced(trainer, sites, tokens)
    entries = entries_of(states.listed, states.n_tokens)
    dense = Dense(trainer)
    loss = dense_loss(trainer, dense, sites, tokens, entries.to_dense(trainer.settings.features) != 0)
    loss.backward()

    assert len(entries) > 50
    assert states.loss == pytest.approx(loss.item(), rel=1e-5)
    p, gradient = trainer.parameters, states.gradient_lbd
    values, decoders = decode_backward(entries, p.rows_ujd(), gradient)
    encoders = encode_backward(states.x_lbd, entries, values)
    got = {"decoder_bias_ld": gradient.sum(1)}
    got["encoder_bias_lf"] = torch.stack([biases.to_dense(24) for _, biases in encoders])
    got |= {f"encoder_fd.{i}": weights.to_dense(24) for i, (weights, _) in enumerate(encoders)}
    got |= {f"decoder_jfd.{i}": rows.to_dense(24).transpose(0, 1) for i, rows in enumerate(decoders)}
    if p.skip_ldd is not None:
        got["skip_ldd"] = states.x_lbd.transpose(1, 2) @ gradient
    assert got.keys() == dense.weights.keys()
    for name, weight in dense.weights.items():
        assert torch.dist(got[name].double(), weight.grad) < 1e-4 * weight.grad.norm(), name
    norm = torch.stack([weight.grad.norm() for weight in dense.weights.values()]).norm()
    assert states.gradient_norm() == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("logit_tokens", [0, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_brings_the_replaced_model_closer(sites, kind, logit_tokens):
    changes = {"end_to_end_learning_rate": 1e-2, "end_to_end_logit_tokens": logit_tokens}
    trainer, held_out = trainer_for(sites, kind, **changes), windows(8, 20, 8)
    before = run_replaced(trainer, sites, held_out).loss
    for step in range(30):
        seen = fine_tune_step(trainer, sites, windows(4, 20, 200 + step), step / 30)
        assert seen.l0_l.mean() < 8  # of what replaced layers read
    assert run_replaced(trainer, sites, held_out).loss < 0.9 * before
    # Thresholds follow the model's own activations, so that L0 is the target's there.
    assert evaluate(trainer, *activations(sites, held_out)).l0_l.mean() == pytest.approx(5, abs=0.5)


def test_a_resumed_stage_goes_on_to_the_bit(sites):
    one = trainer_for(sites, "clt", end_to_end_logit_tokens=5)
    for step in range(2):
        fine_tune_step(one, sites, windows(2, 12, step), step / 4)
    other = Trainer(one.settings, one.shape, None)
    other.restore({name: tensor.clone() for name, tensor in one.state().items()})
    for trainer in (one, other):
        for step in range(2, 4):
            fine_tune_step(trainer, sites, windows(2, 12, step), step / 4)
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in one.state().items())


def test_the_model_is_left_as_it_was(sites):
    tokens = windows(2, 12, 3)
    with torch.no_grad():
        before = sites.text_model(input_ids=tokens, use_cache=False).last_hidden_state
    weight = sites.layers[0].value.weight.requires_grad_(True)
    fine_tune_step(trainer_for(sites, "clt"), sites, tokens, 0.0)
    assert weight.requires_grad
    assert weight.grad is None
    weight.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(sites.text_model(input_ids=tokens, use_cache=False).last_hidden_state, before)


def test_what_replaces_no_mlp_is_refused(sites):
    tokens = windows(2, 12, 3)
    with pytest.raises(ValueError, match="an SAE does not"):
        fine_tune_step(small_trainer("sae"), sites, tokens, 0.0)
    with pytest.raises(ValueError, match=r"has layers \[0, 1, 2\], the model 0 to 4"):
        fine_tune_step(small_trainer("clt"), sites, tokens, 0.0)
    with pytest.raises(ValueError, match="windows of 2 tokens; expected more than the 2 excluded"):
        fine_tune_step(trainer_for(sites, "clt"), sites, tokens[:, :2], 0.0)
