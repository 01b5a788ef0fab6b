"""Where weights, rows and attention are held must not change a graph, and what is dropped is not held."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from cases import Case, load_case
from reference import LinearModel, relative_error

from crosstrace.replacement_model import ReplacementModel, open_transcoders
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.local import frozen
from crosstrace.replacement_model.local.frozen import FrozenAttention
from crosstrace.replacement_model.memory import format_bytes, is_out_of_memory, parse_bytes
from crosstrace.tracer import trace

CPU = torch.device("cpu")


def load(case: Case, **settings) -> ReplacementModel:
    return ReplacementModel.from_pretrained(case.model, case.transcoders, device="cpu", **settings)


@pytest.mark.parametrize("budget", [1, "1GB"], ids=["everything streamed", "everything resident"])
def test_streamed_and_resident_give_the_same_edges(case, budget):
    usual = trace(load(case), case.input_ids)
    model = load(case, memory_budget=budget)
    transcoders = model.transcoders
    assert transcoders.keeps_encoders == transcoders.keeps_decoders == (budget != 1)
    local = model.local(case.input_ids)
    assert local.active_rows.place == ("mapped" if budget == 1 else "whole")
    rows = transcoders.decoder_rows_of(local.activations)
    assert (transcoders.encoder(0) is transcoders.encoder(0)) == (budget != 1)
    assert (rows.rows_ujd[0] is local.active_rows.rows_ujd[0]) == (budget != 1)
    again = trace(model, case.input_ids, batch_size=64)  # such a budget by itself allows one row at a time
    assert torch.equal(again.active_features, usual.active_features)
    assert relative_error(again.adjacency, usual.adjacency) < 1e-6
    assert again.completeness_error() < 1e-5


@pytest.mark.parametrize("place", ["memory", "entries", "mapped", "host"])
def test_rows_in_every_place_decode_and_score_alike(case, place):
    model = load(case)
    local = model.local(case.input_ids)
    rows = model.transcoders.decoder_rows_of(local.activations, place)
    assert rows.place == place
    torch.testing.assert_close(
        rows.decode(local.activations), local.active_rows.decode(local.activations), rtol=1e-5, atol=1e-6
    )
    size = (3, local.n_positions - 2, model.description.n_layers - 1, model.description.d_model)
    gradients = torch.randn(size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        rows.scores(local.activations, gradients),
        local.active_rows.scores(local.activations, gradients),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_feature_that_fires_often_is_stored_once(case):
    model = load(case)
    activations = model.local(case.input_ids).activations
    for layer, rows in enumerate(model.transcoders.decoder_rows_of(activations, "memory").rows_ujd):
        features = activations.features[activations.layer(layer)]
        assert len(rows) == len(features.unique()) < len(features)


def test_few_entries_have_float32_rows_of_their_own_on_a_cpu(case):
    model = load(case)
    n_bytes = model.local(case.input_ids).active_rows.nbytes
    budgets = {"entries": 8 * n_bytes, "memory": 8 * n_bytes - 8}
    for place, budget in budgets.items():
        transcoders = Transcoders(model.transcoders.reader, torch.device("cpu"), memory_budget=budget)
        transcoders.keeps_decoders = False
        assert transcoders.decoder_rows_of(model.local(case.input_ids).activations).place == place


def test_rounded_rows_are_not_read_where_they_lie():
    # Stored in float32, wanted in bfloat16: the mapped file does not hold what is used.
    case = load_case("clt_plain_gqa")
    model = load(case, dtype=torch.bfloat16, memory_budget=1)
    assert model.local(case.input_ids).active_rows.place == "host"
    usual = load(case, dtype=torch.bfloat16)
    edges = trace(model, case.input_ids, max_feature_nodes=40, batch_size=64).adjacency
    assert relative_error(edges, trace(usual, case.input_ids, max_feature_nodes=40).adjacency) < 1e-6


@pytest.mark.parametrize(("window", "blocks"), [(None, 3), (4, 3), (1, 1), (5, 100)])
def test_attention_is_kept_without_what_the_mask_makes_zero(window, blocks, monkeypatch):
    monkeypatch.setattr(frozen, "BLOCK_KEYS", blocks)
    n = 11
    seen = torch.ones(n, n).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    dense = torch.rand(2, n, n, generator=torch.Generator().manual_seed(0)) * seen
    kept = FrozenAttention.from_dense(dense, window)
    assert torch.equal(kept.dense(), dense)
    assert kept.n_positions == n
    if blocks < n:
        assert kept.nbytes < dense.numel() * 4


@pytest.mark.parametrize("blocks", [1, 4, 5])
def test_blocks_of_attention_do_not_change_edges(case, blocks, monkeypatch):
    whole = trace(load(case), case.input_ids)
    monkeypatch.setattr(frozen, "BLOCK_KEYS", blocks)
    assert relative_error(trace(load(case), case.input_ids).adjacency, whole.adjacency) < 1e-6


def test_prompt_longer_than_the_window_is_exact(case, monkeypatch):
    monkeypatch.setattr(frozen, "BLOCK_KEYS", 16)
    model = load(case)
    windows = [window for window in model.description.windows if window is not None]
    generator = torch.Generator().manual_seed(1)
    n_positions = max(windows) + 9 if windows else 24
    ids = [2, *torch.randint(5, 90, (min(n_positions, 40) - 1,), generator=generator).tolist()]
    graph = trace(model, ids, max_feature_nodes=40)
    assert graph.completeness_error() < 1e-5
    reference = LinearModel(case.model, open_transcoders(case.transcoders), ids, torch.float32)
    assert graph.active_features.tolist() == [list(entry) for entry in reference.active]


OUT_OF_MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace
model = ReplacementModel.from_pretrained(sys.argv[1], sys.argv[2], device="cpu")
ids = [2] + torch.randint(5, 90, (299,), generator=torch.Generator().manual_seed(0)).tolist()
fits = trace(model, ids, max_feature_nodes=300, batch_size=16)
with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[3]), -1))
try:
    less = trace(model, ids, max_feature_nodes=300, batch_size=512)
except MemoryError as error:
    print(error)
else:
    assert torch.equal(fits.selected_features, less.selected_features)
    print(float((fits.edges - less.edges).power(2).sum() ** 0.5 / fits.edges.power(2).sum() ** 0.5))
"""


@pytest.mark.slow
def test_batch_is_made_smaller_when_memory_runs_out():
    case = load_case("clt_affine")
    arguments = [str(case.model), str(case.transcoders), str(60 * 10**6)]
    result = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-6


def test_batches_that_do_not_fit_are_halved_and_the_graph_is_the_same(case):
    # Memory really asked for and refused: a tensor too large for any machine, in the words of torch's own allocator.
    model = load(case)
    usual = trace(model, case.input_ids, batch_size=40)
    local = model.local(case.input_ids)
    compute, sizes = local.adjoint.rows, []

    def little_memory(targets):
        sizes.append(len(targets))
        if len(targets) > 10:
            torch.empty(2**60)
        return compute(targets)

    local.adjoint.rows = little_memory  # type: ignore[method-assign]
    model.local = lambda prompt: local  # type: ignore[method-assign]
    again = trace(model, case.input_ids, batch_size=40)
    assert sizes[:2] != sizes[1:3]
    assert max(sizes[3:]) <= 10
    assert relative_error(again.adjacency, usual.adjacency) < 1e-6


def test_memory_for_not_even_one_row_is_one_line(case):
    model = load(case)
    local = model.local(case.input_ids)
    local.adjoint.rows = lambda targets: torch.empty(2**60)  # type: ignore[method-assign, assignment, return-value]
    model.local = lambda prompt: local  # type: ignore[method-assign]
    with pytest.raises(MemoryError, match=r"not enough memory for a single row .*use a shorter prompt"):
        trace(model, case.input_ids, batch_size=4)


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("512 MiB", 512 * 2**20), ("0.5g", 5 * 10**8), ("100", 100), (7, 7), ("2kb", 2000)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "eight", "-1GB", "0", "8 GBit", 0, "3PB"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="memory budget"):
        parse_bytes(text)
    with pytest.raises(ValueError, match="memory budget"):
        Transcoders(open_transcoders(load_case("clt_affine").transcoders), CPU, memory_budget=text)


def test_sizes_as_they_are_written():
    assert [format_bytes(n) for n in (12, 1500, 3.2e9, 4.56e11)] == ["12 B", "1.5 kB", "3.2 GB", "456 GB"]
