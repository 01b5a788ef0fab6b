"""The sites of a model: its forward pass, and what passes each site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case, load_case

from crosstrace.replacement_model import ReplacementModel, Site
from crosstrace.replacement_model.architectures.hooks import changed, hooked
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
    frozen = [layer.attention_norm for layer in local.layers]
    attended = (mids - residuals[:-1]) / torch.stack([norm.gain_d * norm.inverse_rms_p1 for norm in frozen])
    expected = {
        Site.ATTENTION_HEADS: attended,  # through the output projection, below
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
    found = torch.stack(seen)
    assert found.shape[-1] == site.width(model.description)
    if site is Site.ATTENTION_HEADS:
        found = torch.stack([layer.output(heads) for layer, heads in zip(model.sites.layers, found, strict=True)])
    torch.testing.assert_close(found, expected[site], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("first", [1, 3])
def test_a_pass_may_start_at_a_layer(case: Case, first: int):
    sites = ReplacementModel.from_pretrained(case.model, case.transcoders, CPU).sites
    embedded = sites.embed(torch.tensor(case.input_ids))[None]
    entering: list[torch.Tensor] = []
    with changed([(sites.layers[first - 1].whole, False, entering.append)]):
        whole = sites.run(embedded)
    assert torch.equal(sites.run(entering[0], first_layer=first), whole)
    assert torch.equal(sites.run(embedded), whole)  # nothing is left of it


@pytest.mark.parametrize("is_input", [True, False])
def test_a_change_takes_the_place_of_what_a_module_is_given_or_returns(is_input):
    layer = torch.nn.Linear(3, 3)
    x = torch.randn(2, 3)
    with changed([(layer, is_input, lambda tensor: 2 * tensor), (layer, is_input, lambda tensor: None)]):
        found = layer(x)
    torch.testing.assert_close(found, layer(2 * x) if is_input else 2 * layer(x))
