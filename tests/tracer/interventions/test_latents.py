"""Steering along a latent's decoder: what is added is what comes out, and it is undone by its opposite."""

from __future__ import annotations

import pytest
import torch
from sae_samples import write_sae

from crosstrace.replacement_model import Ablate, Add, DirectionAt, Freeze, ReplacementModel, open_sae
from crosstrace.replacement_model.dictionaries.saes import Saes
from crosstrace.tracer import with_latents

PROMPT = "The capital of the state containing Dallas is"


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


def sae(folder, site: str = "resid_post", layer: int = 5) -> Saes:
    return Saes(open_sae(write_sae(folder / f"layer_{layer}_width_1k_l0_small", layer, site, 128)), torch.device("cpu"))


def test_after_the_last_layer_it_is_the_decoder_through_the_norm(model, tmp_path):
    used, local = sae(tmp_path), model.local(PROMPT)
    [edit] = with_latents([Add("resid_post/5/7@-1", 3.0)], model, [used])
    row_d = used.decoder_rows(5, torch.tensor([7]))[0, 0]
    residual_d = local.residuals_lpd[-1, -1] + 3 * row_d
    wanted_v = model.sites.unembed(model.sites.final_norm(residual_d))
    got_v = model.intervene(local, [edit]).logits_v
    assert got_v.flatten() == pytest.approx(wanted_v.detach(), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("free_attention", [False, True])
def test_a_steered_pass_is_the_model_with_the_residual_changed(free_attention, model, tmp_path):
    used = sae(tmp_path, layer=2)
    [plus, minus] = with_latents([Add("resid_post/2/7@5:", 4.0), Add("resid_post/2/7@5:", -4.0)], model, [used])
    before = model.intervene(PROMPT, []).logits_v
    freeze = Freeze.iterative(attention="free") if free_attention else "iterative"
    assert not torch.allclose(model.intervene(PROMPT, [plus], freeze).logits_v, before, atol=1e-2)
    assert torch.allclose(model.intervene(PROMPT, [plus, minus], freeze).logits_v, before, atol=1e-4)


def test_what_cannot_be_steered_is_one_line(model, tmp_path):
    used = sae(tmp_path, layer=2)
    with pytest.raises(ValueError, match="a direction can be added to, not ablate"):
        model.intervene(PROMPT, with_latents([Ablate("resid_post/2/7@5")], model, [used]))
    with pytest.raises(ValueError, match="position 40 is outside the prompt"):
        model.intervene(PROMPT, with_latents([Add("resid_post/2/7@40", 1.0)], model, [used]))
    with pytest.raises(ValueError, match="must not be recomputed"):
        model.intervene(PROMPT, with_latents([Add("resid_post/2/7@5", 1.0)], model, [used]), errors="recomputed")
    with pytest.raises(ValueError, match=r"expected \(128,\), all finite"):
        model.intervene(PROMPT, [Add(DirectionAt("mine", 2, torch.zeros(4), 5), 1.0)])
    with pytest.raises(ValueError, match="no SAE of mlp_out at layer 2 is given"):
        with_latents([Add("mlp_out/2/7", 1.0)], model, [used])
    assert with_latents([Add("L3/417@7", 1.0)], model, []) == [Add("L3/417@7", 1.0)]
