"""Where features start, and that a dictionary that is planted in data is found again."""

from __future__ import annotations

import pytest
import torch
from dense_dictionary import small_data, small_settings, small_shape, small_trainer

from crosstrace.replacement_model.training.core import Trainer
from crosstrace.replacement_model.training.evaluation import reconstruct
from crosstrace.replacement_model.training.export import export
from crosstrace.replacement_model.training.parameters import DictionaryShape


def test_a_data_start_reads_data_points_and_writes_a_part_of_what_goes_with_them():
    trainer = small_trainer("clt", start_noise=0.0, start_data_share=0.8)
    inputs, outputs = small_data(trainer.shape, 200)
    x, y = trainer.normalisation.inputs(inputs), trainer.normalisation.outputs(outputs)
    directions = x[1] / x[1].norm(dim=1, keepdim=True)
    for feature, row in enumerate(trainer.parameters.encoder_fd[1]):
        point = int((directions @ row).argmax())
        assert torch.allclose(row, 0.8 * directions[point], atol=1e-5)
        fires = max(float(x[1, point] @ row), 1.0)
        own, later = trainer.parameters.decoder_jfd[1][:, feature]
        assert torch.allclose(own, 0.1 * 0.5 * y[1, point] / fires, atol=1e-5)
        assert torch.allclose(later, 0.1 * 0.15 * y[2, point] / fires, atol=1e-5)


def test_with_a_margin_a_feature_is_active_near_its_point_alone():
    trainer = small_trainer("clt", start_noise=0.0, start_margin=0.75)
    inputs, outputs = small_data(trainer.shape, 200)
    x, y = trainer.normalisation.inputs(inputs), trainer.normalisation.outputs(outputs)
    row, bias = trainer.parameters.encoder_fd[1][4], trainer.parameters.encoder_bias_lf[1, 4]
    point = int((x[1] @ row / x[1].norm(dim=1)).argmax())
    at_point = x[1, point] @ row
    assert torch.isclose(bias, -0.75 * at_point)
    own = trainer.parameters.decoder_jfd[1][0, 4]
    assert torch.allclose(own, 0.1 * 0.5 * y[1, point] / (at_point + bias).clamp_min(1), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_points_far_apart_leave_no_rare_kind_out(seed):
    """Of 1,000 tokens five are of three rare kinds: an even draw of eight would nearly always miss them."""
    kinds = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0], [-9.0, -9.0, -9.0]])
    of_token = torch.cat([torch.zeros(995, dtype=torch.int64), torch.tensor([1, 1, 2, 2, 3])])
    spread = 0.01 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(seed))
    data = (kinds[of_token] + spread)[None]
    settings = small_settings(
        "sae", layers=[0], features=8, start="far-apart", start_noise=0.0, seed=seed, normalisation_exponent=0.0
    )
    trainer = Trainer(settings, DictionaryShape("sae", "resid_post", (0,), 8, 3, 3), (data, data))
    x_nd = trainer.normalisation.inputs(data)[0]
    x_nd /= x_nd.norm(dim=1, keepdim=True)
    nearest = (trainer.parameters.encoder_fd[0] @ x_nd.T).argmax(1)
    assert set(of_token[nearest].tolist()) == {0, 1, 2, 3}


def test_points_far_apart_are_drawn_again_where_there_are_too_few():
    data = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).repeat(5, 1)[None]
    settings = small_settings("sae", layers=[0], features=12, start="far-apart", start_noise=0.0)
    trainer = Trainer(settings, DictionaryShape("sae", "resid_post", (0,), 12, 3, 3), (data, data))
    rows = trainer.parameters.encoder_fd[0]
    assert len(rows[:4].unique(dim=0)) == len(rows.unique(dim=0)) == 4


@pytest.mark.parametrize("kind", ["sae", "clt"])
def test_a_uniform_start_has_the_norm_asked_for_and_reads_what_it_writes(kind):
    trainer = small_trainer(kind, start="uniform", start_decoder_scale=0.3)
    assert torch.allclose(trainer.parameters.decoder_norms(), torch.full((3, 12), 0.3))
    encoder, decoder = trainer.parameters.encoder_fd[0], trainer.parameters.decoder_jfd[0][0]
    assert torch.allclose(encoder, decoder / decoder.norm(dim=1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("activation", ["quantile-jumprelu", "ste-jumprelu"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_clt_started_from_transcoders_gives_what_their_first_features_give(tmp_path, activation, skip):
    kind = "skip_transcoders" if skip else "transcoders"
    transcoders = small_trainer(kind, matryoshka=[0.5, 1.0])
    for step in range(5):
        transcoders.step(*small_data(transcoders.shape, 16, seed=step), 0.9)
    export(transcoders, tmp_path / "transcoders", "tiny", dtype=torch.float32)
    settings = small_settings(
        "skip_clt" if skip else "clt",
        features=6,
        initialise_from=str(tmp_path / "transcoders"),
        activation=activation,
        bandwidth=0.1,
    )
    shape = small_shape(settings)
    clt = Trainer(settings, shape, small_data(shape, 200, seed=7))
    inputs, _ = small_data(shape, 50, seed=9)
    if activation == "ste-jumprelu":  # thresholds are what they were; a running quantile finds its own
        for layer in range(3):
            transcoders.parameters.decoder_jfd[layer][:, 6:] = 0
            transcoders.parameters.encoder_fd[layer][6:] = 0
        active, expected = reconstruct(transcoders, inputs)
        got_active, got = reconstruct(clt, inputs)
        assert torch.equal(got_active.indices, active.indices)
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)
    assert all(not decoder[1:].any() for decoder in clt.parameters.decoder_jfd)
    seen = clt.step(*small_data(shape, 16, seed=11), 0.5)
    assert 0 < seen.l0_l.mean() < 6
    assert all(decoder[1:].any() for decoder in clt.parameters.decoder_jfd[:-1])


def test_transcoders_that_do_not_fit_are_refused(tmp_path):
    for kind, changes in (("transcoders", {}), ("clt", {})):
        trainer = small_trainer(kind, **changes)
        trainer.step(*small_data(trainer.shape, 16), 0.5)
        export(trainer, tmp_path / kind, "tiny")

    def begin(source, n_layers=3, **changes):
        settings = small_settings("clt", initialise_from=str(tmp_path / source), **changes)
        shape = small_shape(settings, n_layers)
        Trainer(settings, shape, small_data(shape, 50))

    with pytest.raises(ValueError, match="holds a cross-layer transcoder; expected per-layer ones"):
        begin("clt")
    with pytest.raises(ValueError, match="has layers 3; expected 4"):
        begin("transcoders", n_layers=4)
    with pytest.raises(ValueError, match="has 12 features; expected at least 20"):
        begin("transcoders", features=20)
    with pytest.raises(FileNotFoundError):
        begin("nowhere")


# Trained thresholds leave two pairs of the sixteen vectors mixed, at an error of nearly 0.
@pytest.mark.parametrize(("activation", "least"), [("quantile-jumprelu", 16), ("batch-topk", 16), ("ste-jumprelu", 14)])
def test_a_planted_dictionary_is_found_again(activation, least):
    """Sparse sums of unit vectors; each planted vector is some feature's decoder row, up to its size."""
    generator = torch.Generator().manual_seed(0)
    planted = torch.randn(16, 32, generator=generator)
    planted /= planted.norm(dim=1, keepdim=True)

    def batch(n):
        active = torch.rand(n, 16, generator=generator) < 2 / 16
        strength = 1 + torch.rand(n, 16, generator=generator)
        data = ((active * strength) @ planted)[None]
        return data, data

    settings = small_settings(
        "sae",
        layers=[0],
        features=24,
        l0=2.0,
        l0_start=4.0,
        activation=activation,
        normalisation_exponent=0.0,
        learning_rate=1e-2,
        dead_after_tokens=4000,
        reset_until_share=0.5,
        bandwidth=0.5,
        threshold_start=0.5,
        l0_loss="quadratic",
        l0_coefficient=20.0,
        ste_reaches="threshold",
    )
    trainer = Trainer(settings, DictionaryShape("sae", "resid_post", (0,), 24, 32, 32), batch(500))
    for step in range(400):
        seen = trainer.step(*batch(256), step / 400)
    rows = trainer.parameters.decoder_jfd[0][0] / trainer.normalisation.scale_out_ld[0]
    rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-8)
    found = (planted @ rows.T).max(1).values
    assert (found > 0.99).sum() >= least, found
    assert seen.fvu_l[0] < 0.05
