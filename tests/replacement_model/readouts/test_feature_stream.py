"""Many contexts in one pass give the features that each gives alone."""

from __future__ import annotations

import torch
from cases import Case

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.readouts.feature_stream import stream_features


def test_features_of_a_batch_are_those_of_each_context_alone(case: Case) -> None:
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    ids = case.input_ids
    contexts = [ids, ids[:3], [*ids[:2], *ids[4:]]]
    width, first = len(ids), model.description.excluded_first
    tokens_bw = torch.zeros(3, width, dtype=torch.int64)
    wanted_bw = torch.zeros(3, width, dtype=torch.bool)
    for row, context in enumerate(contexts):
        tokens_bw[row, : len(context)] = torch.tensor(context)
        wanted_bw[row, first : len(context)] = True

    found: dict[tuple[int, int, int, int], float] = {}
    layers = []

    def take(layer: int, places: torch.Tensor, features: torch.Tensor, values: torch.Tensor) -> None:
        layers.append(layer)
        order = features * tokens_bw.numel() + places
        assert (order.diff() > 0).all()
        for place, feature, value in zip(places.tolist(), features.tolist(), values.tolist(), strict=True):
            found[place // width, layer, place % width, feature] = value

    stream_features(model, tokens_bw, wanted_bw, take)
    assert layers == list(range(model.description.n_layers))
    expected = {}
    for row, context in enumerate(contexts):
        active = model.local(context).activations
        for place, value in zip(active.indices.tolist(), active.values.tolist(), strict=True):
            expected[row, *place] = value
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        assert abs(found[place] - value) <= 1e-4 * max(1.0, abs(value))
