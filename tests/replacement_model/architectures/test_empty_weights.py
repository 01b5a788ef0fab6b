"""Models made without storage."""

import torch
from torch import nn

from crosstrace.replacement_model.architectures.empty_weights import EmptyWeights


def test_weights_without_storage_are_made_as_torch_makes_them():
    def shapes():
        with torch.device("meta"):
            modules = (nn.Linear(3, 4), nn.Embedding(5, 2))
        return [
            (name, weight.shape, weight.dtype, weight.is_meta) for m in modules for name, weight in m.named_parameters()
        ]

    plain = shapes()
    with EmptyWeights():
        assert shapes() == plain


def test_weights_with_storage_are_drawn_as_ever():
    torch.manual_seed(3)
    plain = nn.Linear(3, 4).weight
    torch.manual_seed(3)
    with EmptyWeights():
        assert torch.equal(nn.Linear(3, 4).weight, plain)
        assert torch.equal(torch.arange(2, 9, 3), torch.tensor([2, 5, 8]))


def test_ranges_are_right_and_copies_keep_shape_and_dtype():
    with EmptyWeights(), torch.device("meta"):
        assert torch.arange(0, 6, 2, dtype=torch.float).tolist() == [0, 2, 4]
        weights = torch.empty(3, 2, dtype=torch.bfloat16)
    with EmptyWeights():
        like = torch.empty_like(weights, device="cpu")
    assert (like.shape, like.dtype, like.device.type) == ((3, 2), torch.bfloat16, "cpu")
