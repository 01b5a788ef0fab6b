"""Decoder directions of a graph's features: all that a decoder writes, and only for the graph's own transcoders."""

import dataclasses

import numpy as np
import pytest
import torch
from cases import load_case

from crosstrace.graphs import prune, suggest_supernodes
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import decoder_directions, trace


@pytest.mark.parametrize("name", ["clt_affine", "skip_transcoder"])
def test_directions_are_the_sums_of_decoder_rows(name):
    case = load_case(name)
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    pruned = prune(trace(model, case.input_ids))
    found = decoder_directions(model, pruned)
    kept = [node for node in pruned.kept_nodes() if pruned.layout.kind(node) == "feature"]
    assert set(found) == {pruned.feature_of(node)[::2] for node in kept}
    for (layer, feature), direction in found.items():
        rows = model.transcoders.reader.decoder_rows(layer, torch.tensor([feature])).float()
        assert np.allclose(direction, rows.sum((0, 1)).numpy(), atol=1e-6)
    members = [node for _, nodes in suggest_supernodes(pruned, directions=found) for node in nodes]
    assert len(members) == len(set(members))


def test_a_graph_of_other_transcoders():
    case = load_case("clt_affine")
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu")
    graph = dataclasses.replace(trace(model, case.input_ids), transcoders_name="other")
    with pytest.raises(ValueError, match="the graph was traced with transcoders 'other', not with "):
        decoder_directions(model, graph)
