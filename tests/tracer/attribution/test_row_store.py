"""The row store: in memory or in a file, ranking by influence through the rows known so far, assembling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from crosstrace.graphs import NodeLayout
from crosstrace.graphs.analysis.influence import row_scale, spread
from crosstrace.replacement_model import Rows
from crosstrace.tracer.attribution.row_file import RowFile
from crosstrace.tracer.attribution.row_store import RowStore

LAYOUT = NodeLayout(n_features=6, n_layers=2, n_positions=3, n_logits=2)
LAYERS = np.array([0, 0, 0, 0, 1, 1])


def rows(features: list[list[float]], seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    count = len(features)
    return Rows(
        torch.tensor(features),
        torch.rand(count, 2, 3, generator=generator),
        torch.rand(count, 3, generator=generator),
        torch.rand(count, generator=generator),
    )


def values(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32) + 1


def random_store(seed: int, **settings) -> tuple[RowStore, scipy.sparse.csr_array, NodeLayout]:
    """A store with rows of all targets and half of the features, in several batches, and the same as one matrix."""
    generator = torch.Generator().manual_seed(seed)
    layout = NodeLayout(n_features=60, n_layers=4, n_positions=5, n_logits=3)
    layers = np.sort(torch.randint(0, 4, (60,), generator=generator).numpy())
    store = RowStore(layout, layers, **settings)
    dense = np.zeros((layout.n, layout.n), dtype=np.float32)
    half = torch.randperm(60, generator=generator)[:30].numpy()
    for nodes in (np.arange(layout.logits.start, layout.n), *(np.sort(part) for part in np.split(half, 3))):
        heights = np.where(nodes < 60, layers[np.minimum(nodes, 59)], 4)
        below = torch.from_numpy(layers[None] < heights[:, None])
        features = (
            torch.randn(len(nodes), 60, generator=generator) * below * (torch.rand(60, generator=generator) < 0.7)
        )
        batch = Rows(
            features,
            torch.randn(len(nodes), 4, 5, generator=generator),
            torch.randn(len(nodes), 5, generator=generator),
            torch.randn(len(nodes), generator=generator),
        )
        store.add(nodes, batch, values(len(nodes)))
        parts = (batch.features_bn, batch.errors_blp.flatten(1), batch.tokens_bp)
        dense[nodes, : layout.n_sources] = torch.cat(parts, 1).numpy()
    return store, scipy.sparse.csr_array(dense), layout


@pytest.mark.parametrize("memory", [10**9, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("at_a_time", [1 << 22, 7])
def test_influence_and_assembly_are_those_of_the_whole_matrix(memory, at_a_time):
    store, edges, layout = random_store(1, memory=memory, edges_at_a_time=at_a_time)
    weights = np.zeros(layout.n)
    weights[layout.logits] = [0.5, 0.3, 0.2]
    np.testing.assert_allclose(
        store.influence(weights), spread(edges, row_scale(edges), weights), rtol=1e-12, atol=1e-15
    )
    kept = np.flatnonzero(store.known[:60])[::2]
    kept = np.concatenate([kept, np.arange(60, layout.n)])
    out = np.setdiff1d(np.arange(layout.n), kept)
    assembled = store.assemble(kept)
    np.testing.assert_array_equal(assembled.edges.toarray(), edges[kept][:, kept].toarray())
    assembled.edges.check_format(full_check=True)
    np.testing.assert_allclose(assembled.omitted, edges[kept][:, out].sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(assembled.omitted_magnitude, abs(edges[kept][:, out]).sum(1), rtol=1e-5, atol=1e-5)


def test_rows_come_back_in_their_places_whatever_the_order():
    store = RowStore(LAYOUT, LAYERS)
    top, low = rows([[0, 1, 2, 0, 0, 3.0]], 1), rows([[1, 0, 0, 0, 0, 0.0], [0, 3, 0, 0, 0, 0.0]], 2)
    store.add(np.array([15]), top, values(1))
    store.add(np.array([4, 5]), low, values(2))
    assert store.known.nonzero()[0].tolist() == [4, 5, 15]
    assembled = store.assemble(np.arange(LAYOUT.n))
    dense = assembled.edges.toarray()
    assert dense.shape == (LAYOUT.n, LAYOUT.n)
    assert dense[15, :6].tolist() == [0, 1, 2, 0, 0, 3]
    assert dense[5, :6].tolist() == [0, 3, 0, 0, 0, 0]
    np.testing.assert_array_equal(dense[4, 6:12], low.errors_blp[0].flatten())
    np.testing.assert_array_equal(dense[5, 12:15], low.tokens_bp[1])
    assert assembled.unattributed[5] == low.unattributed_b[1]
    assert assembled.values[[4, 5, 15]].tolist() == [1, 2, 1]
    assert not dense[[0, 1, 3, 2, 16]].any()


def test_most_influential_follow_known_rows_and_leave_out_known_ones():
    store = RowStore(LAYOUT, LAYERS)
    # The target takes 10 from feature 5 and 1 from feature 3; feature 5 takes all it has from feature 1.
    empty = torch.zeros(1, 2, 3), torch.zeros(1, 3), torch.zeros(1)
    store.add(np.array([15]), Rows(torch.tensor([[0, 0, 0, 1, 0, 10.0]]), *empty), values(1))
    weights = np.zeros(LAYOUT.n)
    weights[15] = 1
    assert store.most_influential(1, weights).tolist() == [5]
    store.add(np.array([5]), Rows(torch.tensor([[0, 2.0, 0, 0, 0, 0]]), *empty), values(1))
    assert store.most_influential(1, weights).tolist() == [1]
    assert store.most_influential(2, weights).tolist() == [1, 3]


@pytest.mark.parametrize("count", [4, 6])
def test_asking_for_all_gives_all_without_rows(count):
    store = RowStore(LAYOUT, LAYERS)
    store.add(np.array([15, 16]), rows([[1, 1, 1, 1, 1, 1.0], [0, 0, 0, 0, 0, 0]]), values(2))
    weights = np.zeros(LAYOUT.n)
    weights[15:] = 0.5
    assert store.most_influential(count, weights).tolist() == list(range(count))


def filled_file(path: Path) -> RowStore:
    store, _, _ = random_store(2, file=RowFile(path, {"of": "a test"}))
    assert not path.exists()  # nothing is written before there is a reason to
    store.save()
    return store


def test_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "rows"
    store = filled_file(path)
    opened = RowFile.open(path)
    assert opened.header == {"of": "a test"}
    assert len(opened.blocks) == len(store.blocks) == 4
    for block, original in zip(opened.blocks, store.blocks, strict=True):
        for one, other in zip(block.arrays(), original.arrays(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_file_cut_short_anywhere_keeps_its_whole_blocks_and_can_be_added_to(tmp_path):
    whole = tmp_path / "whole"
    last = filled_file(whole).blocks[-1]
    content = whole.read_bytes()
    found = set()
    for length in range(len(content) - 1, 60, -97):
        path = tmp_path / f"cut{length}"
        path.write_bytes(content[:length])
        opened = RowFile.open(path)
        found.add(len(opened.blocks))
        opened.append(last)
        opened.close()
        again = RowFile.open(path).blocks
        assert len(again) == len(opened.blocks) + 1
        np.testing.assert_array_equal(again[-1].data, last.data)
    assert found == {0, 1, 2, 3}


def test_changed_block_is_noticed(tmp_path):
    path = tmp_path / "rows"
    filled_file(path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert len(RowFile.open(path).blocks) == 3
    path.write_bytes(content[:30])
    with pytest.raises(ValueError, match="not a complete file of traced rows"):
        RowFile.open(path)


def test_full_disk_is_one_line_and_leaves_whole_blocks(tmp_path):
    # /dev/full fails every write as a full disk does.
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot keep rows in .*No space left"):
        RowFile(path, {}).append(random_store(3)[0].blocks[0])
