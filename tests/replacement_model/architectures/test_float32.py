"""Float32 arithmetic over narrow weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import load_case
from reference import relative_error

from crosstrace.replacement_model.architectures.float32 import float32_arithmetic
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.replacement_model.architectures.sites import ModelSites

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_arithmetic_is_float32_for_narrow_weights(dtype):
    # The same rounded weights, stored narrow or wide, must give the same numbers.
    case = load_case("clt_plain_gqa")
    narrow, _, description = load_model(str(case.model), dtype, CPU)
    wide, _, _ = load_model(str(case.model), dtype, CPU)
    wide = wide.float()
    ids = torch.tensor(case.input_ids)
    narrow_sites, wide_sites = ModelSites(narrow, description), ModelSites(wide, description)
    embedded = narrow_sites.embed(ids)[None]
    assert torch.equal(narrow_sites.run(embedded), wide_sites.run(embedded))
    assert torch.equal(narrow_sites.unembed(embedded), wide_sites.unembed(embedded))


@pytest.mark.parametrize("n_inputs", [1, 70])  # few inputs: the weight passes in pieces
@pytest.mark.parametrize("n_out", [1, 3000])
def test_a_narrow_weight_is_widened_piece_by_piece(n_inputs, n_out):
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(2, n_inputs, 640), torch.randn(n_out, 640).bfloat16(), torch.randn(n_out)
    with float32_arithmetic():
        out = F.linear(inputs, weight, bias)
    assert out.dtype == torch.float32
    expected = inputs.double() @ weight.double().T + bias
    assert relative_error(out, expected) < 1e-6


def test_float32_arithmetic_ends_with_its_block():
    weight, x = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(1, 2)
    with float32_arithmetic():
        assert F.linear(x, weight).dtype == torch.float32
    with pytest.raises(RuntimeError):
        F.linear(x, weight)
