"""The sparse type: order, offsets, conversions."""

from __future__ import annotations

import pytest
import torch
from kernel_samples import DEVICE, SIZES, Sizes, sample, strict  # noqa: F401

from crosstrace.kernels import SparseActivations


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_offsets_and_order(sizes):
    acts = sample(sizes).activations
    rows = acts.indices.tolist()
    assert rows == sorted(rows)
    assert len(acts.offsets) == sizes.layers * sizes.positions + 1
    for layer in range(sizes.layers):
        assert set(acts.layers[acts.layer(layer)].tolist()) <= {layer}
        for position in range(sizes.positions):
            group = layer * sizes.positions + position
            start, stop = acts.offsets[group : group + 2].tolist()
            assert rows[start:stop] == [row for row in rows if row[:2] == [layer, position]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_by_position(sizes):
    acts = sample(sizes).activations
    order, offsets = acts.by_position()
    rows = acts.indices[order].tolist()
    assert rows == sorted(rows, key=lambda row: (row[1], row[0], row[2]))
    for position in range(sizes.positions):
        for layer in range(sizes.layers):
            start, stop = offsets[position * sizes.layers + layer :][:2].tolist()
            assert all(row[:2] == [layer, position] for row in rows[start:stop])
    assert offsets[-1] == len(acts)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_round_trips(sizes):
    acts = sample(sizes).activations
    shuffled = torch.randperm(len(acts), device=DEVICE)
    again = SparseActivations.from_indices(acts.indices[shuffled], acts.values[shuffled], sizes.layers, sizes.positions)
    dense = acts.to_dense(sizes.features)
    parts = [
        (acts.positions[acts.layer(layer)], acts.features[acts.layer(layer)], acts.values[acts.layer(layer)])
        for layer in range(sizes.layers)
    ]
    joined = SparseActivations.from_layers(parts, sizes.positions)
    for other in (again, joined):
        assert torch.equal(other.indices, acts.indices)
        assert torch.equal(other.values, acts.values)
        assert torch.equal(other.offsets, acts.offsets)
        assert torch.equal(other.to_dense(sizes.features), dense)
    assert int((dense != 0).sum()) == len(acts)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_single_activations_are_those_of_the_dense_tensor(sizes):
    acts = sample(sizes).activations
    dense = acts.to_dense(sizes.features)
    everywhere = torch.ones_like(dense).nonzero()
    shuffled = everywhere[torch.randperm(len(everywhere), device=DEVICE)]
    assert torch.equal(acts.at(shuffled), dense[tuple(shuffled.T)])
    assert acts.at(shuffled[:0]).shape == (0,)
    assert acts.at(torch.tensor([[0, 0, 10**6]])).tolist() == [0.0]


def test_a_model_without_layers():
    empty = SparseActivations.from_layers([], 4)
    assert (len(empty), empty.n_layers, empty.n_positions) == (0, 0, 4)


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), torch.ones(2), r"indices has shape \(2, 2\).*expected \(N, 3\) int64"),
        (torch.zeros(2, 3), torch.ones(2), r"indices .* dtype torch.float32; expected \(N, 3\) int64"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(3), r"values has shape \(3,\); expected \(2,\)"),
        (torch.tensor([[3, 0, 0]]), torch.ones(1), r"indices holds layer 3; expected 0 to 2"),
        (torch.tensor([[0, 5, 0]]), torch.ones(1), r"indices holds position 5; expected 0 to 4"),
        (torch.tensor([[0, 0, -1]]), torch.ones(1), r"indices holds feature -1; expected 0 or more"),
        (torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.ones(2), r"holds the row \(1, 2, 3\) twice"),
    ],
    ids=["shape", "dtype", "values", "layer", "position", "feature", "twice"],
)
def test_bad_input(indices, values, message):
    with pytest.raises(ValueError, match=message):
        SparseActivations.from_indices(indices, values, Sizes().layers, Sizes().positions)
