"""What the demo's training adds to the trainer: which features are missed least, and how they are dropped."""

from __future__ import annotations

import pytest
import torch
from dense_dictionary import small_data, small_trainer
from places import EXAMPLES

from crosstrace.replacement_model.training.core import Trainer
from crosstrace.replacement_model.training.evaluation import reconstruct
from crosstrace.replacement_model.training.settings import load_recipe


@pytest.fixture(scope="module")
def clt():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import demo_training.clt

        yield demo_training.clt


@pytest.fixture
def trainer() -> Trainer:
    trainer = small_trainer("clt", activation="ste-jumprelu", bandwidth=0.5, threshold_start=0.3)
    for step in range(6):
        trainer.step(*small_data(trainer.shape, 32, seed=step), step / 6)
    return trainer


def squared_error(trainer, cached) -> torch.Tensor:
    """Weighted, in normalised units."""
    errors = (reconstruct(trainer, cached.inputs)[1] - cached.outputs) * trainer.normalisation.scale_out_ld[:, None]
    return (errors.double().square().sum((0, 2)) * cached.weights).sum()


def test_the_features_missed_most_are_those_whose_removal_costs_most(clt, trainer):
    cached = clt.Cached(*small_data(trainer.shape, 60, seed=9), torch.arange(1.0, 61.0))
    whole, costs = squared_error(trainer, cached), torch.empty(3, 12)
    for layer, feature in torch.cartesian_prod(torch.arange(3), torch.arange(12)).tolist():
        rows = trainer.parameters.decoder_jfd[layer][:, feature]
        kept = rows.clone()
        rows.zero_()
        costs[layer, feature] = squared_error(trainer, cached) - whole
        rows.copy_(kept)
    expected = costs.topk(5, dim=1).indices.sort(dim=1).values
    assert torch.equal(clt.missed_most(trainer, cached, 5), expected)


def test_what_is_kept_goes_on_as_if_the_rest_had_fallen_silent(clt, trainer):
    kept = torch.tensor([[0, 3, 4, 11], [1, 2, 5, 6], [7, 8, 9, 10]])
    smaller = clt.keep_features(trainer, kept)
    dropped = torch.ones(3, 12, dtype=torch.bool).scatter(1, kept, False)
    trainer.parameters.encoder_bias_lf[dropped] = -1e6
    for step in range(6, 9):
        data = small_data(trainer.shape, 32, seed=step)
        one, other = trainer.step(*data, step / 9), smaller.step(*data, step / 9)
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
    for layer in range(3):
        whole = trainer.parameters.encoder_fd[layer][kept[layer]]
        assert torch.allclose(smaller.parameters.encoder_fd[layer], whole, atol=1e-5)
        written = trainer.parameters.decoder_jfd[layer][:, kept[layer]]
        assert torch.allclose(smaller.parameters.decoder_jfd[layer], written, atol=1e-5)


def test_the_demo_s_recipe_is_one(clt):
    settings = load_recipe(clt.RECIPE)
    assert (settings.kind, settings.start) == ("clt", "far-apart")
    assert settings.features > clt.KEPT
