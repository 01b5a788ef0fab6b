"""The sites of a model: its forward pass, and what passes each site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case, load_case

from crosstrace.replacement_model import ReplacementModel, Site
from crosstrace.replacement_model.architectures.hooks import hooked
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.replacement_model.architectures.sites import ModelSites

CPU = torch.device("cpu")


def test_forward_is_that_of_transformers():
    case = load_case("clt_affine")
    model, _, description = load_model(str(case.model), None, CPU)
    sites, ids = ModelSites(model, description), torch.tensor(case.input_ids)
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    torch.testing.assert_close(sites.unembed(sites.run(sites.embed(ids)[None]))[0], expected, rtol=1e-5, atol=1e-5)


def test_excluded_first_can_be_changed_but_not_below_zero():
    description = load_model(str(load_case("clt_affine").model), None, CPU)[2]
    assert description.excluding(3).excluded_first == 3
    with pytest.raises(ValueError, match="-1"):
        description.excluding(-1)


def test_excluding_leaves_the_model_as_it_was():
    model = ReplacementModel.demo("cpu")
    other = model.excluding(3)
    assert (model.description.excluded_first, other.description.excluded_first) == (1, 3)
    assert other.sites.unembedding is model.sites.unembedding
    assert (other.local("Dallas is in the state of").activations.positions >= 3).all()


@pytest.mark.parametrize("site", Site)
def test_each_site_is_where_the_linear_model_has_it(case: Case, site: Site):
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, CPU)
    local = model.local(case.input_ids)
    residuals, mids = local.residuals_lpd, local.mids_lpd
    normed = torch.stack([layer.pre_feedforward_norm(mid) for layer, mid in zip(model.sites.layers, mids, strict=True)])
    expected = {
        Site.ATTENTION_OUTPUT: mids - residuals[:-1],
        Site.MLP_INPUT: mids,
        Site.MLP_INPUT_NORMED: normed,
        Site.MLP_OUTPUT: residuals[1:] - mids,
        Site.RESIDUAL: residuals[1:],
    }
    seen: list[torch.Tensor] = []

    def read(args: Any, kwargs: Any, output: Any) -> None:
        seen.append(site.value_in(args, output)[0])

    with hooked([(layer.module(site), read) for layer in model.sites.layers]):
        model.sites.run(model.sites.embed(local.tokens_p)[None])
    torch.testing.assert_close(torch.stack(seen), expected[site], rtol=1e-5, atol=1e-4)
