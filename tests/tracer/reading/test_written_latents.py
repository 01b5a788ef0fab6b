"""Latents that features write to: what adding the features' decoders to the stream does to the latents."""

from __future__ import annotations

import pytest
import torch

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.graphs.page.data import page_data
from crosstrace.replacement_model import ReplacementModel, demo, open_sae
from crosstrace.replacement_model.dictionaries.latents import parse_latent
from crosstrace.tracer import trace, with_written_latents
from crosstrace.tracer.attribution.tracing import saes_in_use


@pytest.fixture(scope="module")
def model():
    return ReplacementModel.demo()


@pytest.fixture(scope="module")
def sae(model):
    return saes_in_use(model, [open_sae(demo.SAES_DIR)])[0]


@pytest.fixture(scope="module")
def graph(model, sae):
    return with_written_latents(prune(trace(model, demo.DALLAS_PROMPT)), model, [sae], top=4)


def test_effects_are_what_a_unit_of_activation_does(model, sae, graph):
    stream_d = torch.randn(model.description.d_model, generator=torch.Generator().manual_seed(0))
    assert graph.settings["latents"]
    for name, rows in graph.settings["latents"].items():
        layer, feature = (int(part) for part in name[1:].split("/"))
        rows_jd = model.transcoders.decoder_rows(layer, torch.tensor([feature]))[0]
        effects = [abs(effect) for _, effect in rows]
        assert effects == sorted(effects, reverse=True)
        for text, effect in rows:
            latent = parse_latent(text)
            assert latent is not None
            assert latent.layer >= layer
            after_d = stream_d.clone()
            for j in range(latent.layer - layer + 1):
                after_d += rows_jd[j]
            before, after = sae.pre_activations(
                latent.layer,
                torch.stack([stream_d, after_d]),
                torch.tensor([0, 1]),
                torch.tensor([latent.feature, latent.feature]),
            ).tolist()
            assert after - before == pytest.approx(effect, abs=1e-4)


def test_the_largest_of_every_layer_are_kept(model, sae, graph):
    name, rows = next(iter(graph.settings["latents"].items()))
    layer, feature = (int(part) for part in name[1:].split("/"))
    rows_jd = model.transcoders.decoder_rows(layer, torch.tensor([feature]))[0].float()
    for read in sae.layers:
        effects_f = rows_jd[: read - layer + 1].sum(0) @ sae.encoder(read).w_enc_df.float()
        wanted = {f"resid_post/{read}/{i}" for i in effects_f.abs().topk(4).indices.tolist()}
        assert {text for text, _ in rows if text.startswith(f"resid_post/{read}/")} == wanted


def test_files_and_pages_keep_them(graph, tmp_path):
    graph.save(tmp_path / "g.safetensors")
    back = AttributionGraph.load(tmp_path / "g.safetensors")
    name, rows = next(iter(back.settings["latents"].items()))
    cards = page_data(back)["cards"]
    assert [list(row) for row in rows] == cards[name[1:]]["latents"]
