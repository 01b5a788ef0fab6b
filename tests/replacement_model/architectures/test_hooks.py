"""Changes of a model for a while: what they do, and that nothing of them is left."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from cases import load_case

from crosstrace.replacement_model import BaseModel
from crosstrace.replacement_model.architectures.hooks import hooked, without_probabilities


@pytest.mark.parametrize("name", ["clt_affine", "skip_transcoder"])
def test_attention_without_its_probabilities_gives_the_same_vectors(name):
    case = load_case(name)
    base = BaseModel.from_pretrained(case.model, device="cpu")
    ids = torch.tensor(case.input_ids)
    probabilities = []

    def see(args, kwargs, output):
        probabilities.append(output[1])

    def run() -> torch.Tensor:
        with torch.no_grad(), hooked([(base.sites.layers[0].attention, see)]):
            return base.sites.run(base.sites.embed(ids)[None])

    before = run()
    with without_probabilities(base.sites.text_model):
        torch.testing.assert_close(run(), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(), before, rtol=0, atol=0)
    assert [weights is None for weights in probabilities] == [False, True, False]


def test_capped_scores_keep_their_probabilities():
    base = BaseModel.from_pretrained("demo", device="cpu")
    base.model.config.attn_logit_softcapping = 50.0
    with without_probabilities(base.sites.text_model):
        assert base.model.config._attn_implementation == "eager"
    with without_probabilities(torch.nn.Linear(2, 2)):  # nor does what is no model of transformers fail
        pass


def test_probabilities_are_back_after_an_error():
    base = BaseModel.from_pretrained("demo", device="cpu")
    with suppress(KeyError), without_probabilities(base.sites.text_model):
        raise KeyError("anything")
    assert base.model.config._attn_implementation == "eager"
