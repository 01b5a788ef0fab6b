"""Latents as targets: the row is complete, and equal to that of the direction that the encoder is.

Letters: D d_model.
"""

from __future__ import annotations

import pytest
import torch
from sae_samples import write_sae

from crosstrace.replacement_model import ReplacementModel, open_sae
from crosstrace.replacement_model.dictionaries.base import TokenScaling
from crosstrace.replacement_model.dictionaries.saes import Saes
from crosstrace.tracer import Direction, trace
from crosstrace.tracer.attribution.targets import parse_target

PROMPT = "The capital of the state containing Dallas is"


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.demo("cpu")


def test_the_row_is_that_of_the_encoders_direction_and_complete(model, tmp_path):
    reader = open_sae(write_sae(tmp_path / "layer_2_width_1k_l0_small", 2, "resid_post", 128))
    direction = Direction(reader.encoder(2).w_enc_df[:, 7], 3, 6)
    graph = trace(model, PROMPT, ["resid_post/2/7@6", direction], saes=[reader], max_feature_nodes=0, progress=False)
    rows = graph.edges.toarray()[graph.layout.logits]
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)
    assert graph.completeness_error() < 1e-4
    assert graph.logit_strings[0].startswith("resid_post/2/7@6")


@pytest.mark.parametrize("scaling", [TokenScaling.NORM, TokenScaling.LAYER_NORM])
def test_where_tokens_are_scaled_the_gradient_gives_the_pre_activation(scaling, model, tmp_path):
    reader = open_sae(write_sae(tmp_path / "layer_2_width_1k_l0_small", 2, "resid_post", 128))
    reader.token_scaling = scaling
    sae, x_d = Saes(reader, torch.device("cpu")), torch.randn(128, generator=torch.Generator().manual_seed(0)) * 5
    at, feature = torch.tensor([0]), torch.tensor([7])
    h = sae.pre_activations(2, x_d[None], at, feature).item() - sae.encoder(2).b_enc_f[7].item()
    assert torch.dot(sae.gradient(2, 7, x_d), x_d).item() == pytest.approx(h, rel=1e-4)


def test_what_cannot_be_traced_is_one_line(model, tmp_path):
    residual = open_sae(write_sae(tmp_path / "a" / "layer_2_width_1k_l0_small", 2, "resid_post", 128))
    mlp = open_sae(write_sae(tmp_path / "b" / "layer_2_width_1k_l0_small", 2, "mlp_out", 128))
    for target, saes, message in (
        ("resid_post/4/7", [residual], "no SAE of resid_post at layer 4 is given; there is resid_post/2"),
        ("resid_post/2/7", [], "there are none (--sae names them)"),
        ("resid_post/2/7", [residual, residual], "several SAEs are of that site and layer"),
        ("resid_post/2/96", [residual], "has latents 0 to 95 at layer 2"),
        ("mlp_out/2/7", [mlp], "latents of mlp_out cannot be traced"),
        ("resid_post/2/7@0", [residual], "the first 1 positions carry no latents"),
    ):
        with pytest.raises(ValueError, match=r"resid_post|mlp_out") as caught:
            trace(model, PROMPT, target, saes=saes, progress=False)
        assert message in str(caught.value)
    assert parse_target("resid_post/2/7@-1").position == -1
