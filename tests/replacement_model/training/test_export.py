"""Files that are read again give the trainer's own reconstruction and active features."""

from __future__ import annotations

import pytest
import torch
from dense_dictionary import small_data, small_trainer
from safetensors.torch import load_file

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.readers import open_sae, open_transcoders
from crosstrace.replacement_model.dictionaries.saes import Saes
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.training.evaluation import reconstruct
from crosstrace.replacement_model.training.export import export


@pytest.fixture
def trained(request):
    """A trainer after some steps, so that no threshold stands where it began."""
    trainer = small_trainer(request.param)
    for step in range(7):
        trainer.step(*small_data(trainer.shape, 16, seed=10 + step), step / 7)
    return trainer


@pytest.mark.parametrize("trained", ["transcoders", "skip_transcoders", "clt", "skip_clt"], indirect=True)
def test_transcoders_read_again_are_the_trainer_s(trained, tmp_path):
    export(trained, tmp_path / "out", "tiny", dtype=torch.float32)
    inputs, _ = small_data(trained.shape, 300, seed=99)
    active, expected = reconstruct(trained, inputs)

    read = Transcoders(open_transcoders(str(tmp_path / "out")), torch.device("cpu"))
    layers = [read.encode(layer, inputs[layer], excluded_first=0) for layer in range(trained.shape.n_layers)]
    entries = SparseActivations.from_layers(layers, 300)
    got = read.reconstruct(entries, read.decoder_rows_of(entries), inputs)

    assert len(entries) > 500
    assert torch.equal(entries.indices, active.indices)
    assert torch.allclose(entries.values, active.values, rtol=1e-4, atol=1e-4)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert read.cross_layer == trained.shape.cross_layer
    assert read.reader.l0 == trained.settings.l0
    assert (read.skip(0) is not None) == trained.settings.skip


@pytest.mark.parametrize("trained", ["skip_clt"], indirect=True)
def test_bfloat16_files_are_the_weights_rounded_and_keep_the_mean(trained, tmp_path):
    export(trained, tmp_path / "out", "tiny")
    stored = load_file(tmp_path / "out" / "params_layer_1.safetensors")
    assert {name: tensor.dtype for name, tensor in stored.items() if tensor.dtype != torch.bfloat16}.keys() == {
        "b_enc",
        "b_dec",
        "threshold",
    }
    assert not stored["w_dec"][:, 0].any()
    scaling, p = trained.normalisation, trained.parameters
    at_mean = scaling.mean_in_ld[1] @ stored["w_enc"].float() + stored["b_enc"]
    assert torch.allclose(at_mean, p.encoder_bias_lf[1], atol=1e-3)
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize("trained", ["sae"], indirect=True)
def test_saes_read_again_are_the_trainer_s(trained, tmp_path):
    export(trained, tmp_path / "out", "tiny", dtype=torch.float32)
    inputs, _ = small_data(trained.shape, 300, seed=99)
    active, expected = reconstruct(trained, inputs)
    read = Saes(open_sae(tmp_path / "out"), torch.device("cpu"))
    assert read.reads is read.writes is Site.ATTENTION_HEADS
    assert read.layers == list(trained.shape.layers)
    assert read.reader.l0_by_layer == dict.fromkeys(read.layers, trained.settings.l0)
    for i, layer in enumerate(read.layers):
        found = read.encode(layer, inputs[i], 0)
        assert torch.equal(found[1], active.features[active.layer(i)])
        made = read.affine(layer, inputs[i]).clone()
        read.add_decoded(layer, found, made[None])
        assert torch.allclose(made, expected[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", ["clt"], indirect=True)
def test_files_are_readable_as_new_files_are(trained, tmp_path):
    (tmp_path / "any").write_bytes(b"")
    for path in export(trained, tmp_path / "out", "tiny"):
        assert path.stat().st_mode == (tmp_path / "any").stat().st_mode, path
