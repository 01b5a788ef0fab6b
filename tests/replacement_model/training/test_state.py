"""What a trainer remembers: to the bit, and nothing that it does not say."""

from __future__ import annotations

import pytest
import torch
from dense_dictionary import KINDS, small_data, small_trainer

from crosstrace.replacement_model.training.core import Trainer

RESETS = {"dead_after_tokens": 20, "reset_every_steps": 2, "reset_until_share": 1.0, "resets_per_step": 4}


def run(trainer: Trainer, first: int, last: int) -> None:
    for step in range(first, last):
        trainer.step(*small_data(trainer.shape, 16, seed=step), step / 12)


def copied(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.state().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_trainer_goes_on_to_the_bit(kind):
    whole = small_trainer(kind, **RESETS)
    run(whole, 0, 6)
    kept = copied(whole)
    run(whole, 6, 12)
    resumed = Trainer(whole.settings, whole.shape, None)
    resumed.restore(kept)
    assert same(resumed.state(), kept)
    run(resumed, 6, 12)
    assert same(resumed.state(), whole.state())
    assert not same(resumed.state(), kept)


def test_two_runs_give_the_same_bits_and_another_seed_others():
    first, second, other = (small_trainer("clt", **RESETS, seed=seed) for seed in (3, 3, 4))
    for trainer in (first, second, other):
        run(trainer, 0, 6)
    assert same(first.state(), second.state())
    assert not same(first.state(), other.state())


def test_a_state_of_another_dictionary_is_refused():
    trainer = small_trainer("clt")
    with pytest.raises(ValueError, match=r"encoder_fd\.0 has shape \(10, 5\).*expected \(12, 5\)"):
        trainer.restore(small_trainer("clt", features=10).state())
    with pytest.raises(ValueError, match="skip_ldd"):
        trainer.restore(small_trainer("skip_clt").state())


def test_a_sample_that_does_not_vary_is_refused():
    trainer = small_trainer("clt")
    inputs, outputs = small_data(trainer.shape, 50)
    inputs[1] = 3
    with pytest.raises(ValueError, match="inputs of trained layer 1 have standard deviation 0"):
        Trainer(trainer.settings, trainer.shape, (inputs, outputs))
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 50, 4\); expected \(3, 50, 5\)"):
        trainer.step(inputs, outputs[:, :, :4], 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_resets_change_dead_features_and_no_others(kind):
    trainer = small_trainer(kind, **{**RESETS, "reset_every_steps": 1, "resets_per_step": 2, "learning_rate": 1e-30})
    run(trainer, 0, 2)
    # Features 3, 4 and 9 of layer 1 read nothing any more.
    trainer.parameters.encoder_fd[1][[3, 4, 9]] = 0
    trainer.parameters.encoder_bias_lf[1, [3, 4, 9]] = -100
    trainer.last_active_lf[:] = trainer.tokens_seen
    trainer.last_active_lf[1, [3, 4, 9]] = 0
    before = copied(trainer)
    seen = trainer.step(*small_data(trainer.shape, 16, seed=50), 0.5)
    assert seen.resets == 2
    assert seen.dead_l[1] == pytest.approx(1 / 12)  # of three, two began again
    after = trainer.state()
    for name in before:
        if name.startswith(("encoder", "decoder_jfd")):
            changed = (after[name] - before[name]).abs() > 1e-6
            if name == "encoder_bias_lf":
                assert changed.nonzero().tolist() == [[1, 3], [1, 4]]
            elif name.endswith(".1"):
                rows = changed.any(-1) if name.startswith("encoder") else changed.any(-1).any(0)
                assert rows.nonzero()[:, 0].tolist() == [3, 4]
            else:
                assert not changed.any()
    for moments in (trainer.moments.encoder, trainer.moments.decoder, trainer.moments.encoder_bias):
        assert not moments[1].steps[[3, 4]].any()


def test_what_starts_again_has_the_first_threshold_again():
    trainer = small_trainer("clt", **RESETS, activation="ste-jumprelu", threshold_start=0.2)
    trainer.sparsity.log_threshold_lf[1, [2, 5]] = 9.0  # above what anything reaches
    trainer.sparsity.moments[1].steps[:] = 7
    trainer.last_active_lf[1, [2, 5]] = -100
    trainer.steps = 1
    seen = trainer.step(*small_data(trainer.shape, 16), 0.5)
    assert seen.resets == 2
    assert trainer.thresholds()[1, [2, 5]].tolist() == pytest.approx([0.2, 0.2])
    assert trainer.sparsity.moments[1].steps[[2, 5]].tolist() == [0, 0]
    assert (trainer.sparsity.moments[1].steps >= 7).sum() == 10
