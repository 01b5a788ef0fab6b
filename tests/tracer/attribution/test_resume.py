"""Interrupted traces: what was computed is kept, and going on gives the same graph to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import load_case
from typer.testing import CliRunner

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace
from crosstrace.tracer.attribution.checkpoint import TraceInterrupted
from crosstrace.tracer.attribution.row_file import RowFile
from crosstrace.tracer.attribution.row_store import RowStore
from crosstrace.tracer.commands.app import app

CASE = load_case("clt_affine")


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained(CASE.model, CASE.transcoders, device="cpu")


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, batches: int, problem: type[BaseException] = KeyboardInterrupt
) -> None:
    """Ctrl-C arrives when so many batches have been computed."""
    add, count = RowStore.add, 0

    def counted(self: RowStore, *arguments: object) -> None:
        nonlocal count
        if count == batches:
            raise problem
        count += 1
        add(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RowStore, "add", counted)


def assert_same_bits(one: AttributionGraph, other: AttributionGraph) -> None:
    assert torch.equal(one.selected_features, other.selected_features)
    for name in ("unattributed", "omitted", "omitted_magnitude", "target_values"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.edges != other.edges).nnz == 0


@pytest.mark.parametrize("cap", [None, 60])
@pytest.mark.parametrize("batches", [1, 5, 11])
def test_resumed_is_the_same_to_the_bit(model, tmp_path, monkeypatch, cap, batches):
    settings = {"max_feature_nodes": cap, "batch_size": 4}
    whole = trace(model, CASE.input_ids, **settings)
    path = tmp_path / "rows"
    with monkeypatch.context() as patched:
        interrupt_after(patched, batches)
        with pytest.raises(TraceInterrupted, match=rf"rows are kept in {path}: continue with .*--resume"):
            trace(model, CASE.input_ids, **settings, checkpoint=path)
    with monkeypatch.context() as patched:  # and again, further on
        interrupt_after(patched, 3)
        with pytest.raises(TraceInterrupted):
            trace(model, CASE.input_ids, max_feature_nodes=cap, checkpoint=path, resume=True)
    # The batch size need not be said again: it is the file's.
    kept = sum(len(block.nodes) for block in RowFile.open(path).blocks)
    computed, add = [], RowStore.add
    monkeypatch.setattr(RowStore, "add", lambda self, nodes, *rest: (computed.extend(nodes), add(self, nodes, *rest)))
    resumed = trace(model, CASE.input_ids, max_feature_nodes=cap, checkpoint=path, resume=True)
    assert_same_bits(resumed, whole)
    assert len(computed) + kept == len(whole.selected_features) + len(whole.logit_tokens)
    assert kept > batches
    assert not path.exists()


def test_traces_that_end_in_seconds_write_nothing(model, tmp_path):
    trace(model, CASE.input_ids, checkpoint=tmp_path / "rows")
    assert os.listdir(tmp_path) == []


def test_resume_without_a_file_begins(model, tmp_path):
    assert_same_bits(
        trace(model, CASE.input_ids, checkpoint=tmp_path / "rows", resume=True), trace(model, CASE.input_ids)
    )


def test_other_traces_are_not_mixed_up(model, tmp_path, monkeypatch):
    path = tmp_path / "rows"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        with pytest.raises(TraceInterrupted):
            trace(model, CASE.input_ids, batch_size=9, checkpoint=path)
    before = path.read_bytes()

    def refused(match: str, **settings: object) -> None:
        arguments = {"prompt": CASE.input_ids, "checkpoint": path, "resume": True} | settings
        with pytest.raises(ValueError, match=match) as caught:
            trace(model, **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before

    refused("holds the rows of an interrupted trace; continue it with --resume", resume=False)
    refused("started with different prompt", prompt=CASE.input_ids[:-1])
    refused("started with different targets", targets="w7")
    refused(r"started with different max_feature_nodes \(\d+, now 50\)", max_feature_nodes=50)
    monkeypatch.setattr(model, "name", "other")
    refused("started with different model .*, now other", prompt=CASE.input_ids)
    monkeypatch.undo()
    model = ReplacementModel.from_pretrained(CASE.model, CASE.transcoders, device="cpu")
    monkeypatch.setattr(model.transcoders.reader, "bias", lambda layer: torch.full((model.description.d_model,), 3.0))
    refused("started with different weights")


KILLED = """
import os, signal, sys
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import defaults, trace
from crosstrace.tracer.attribution.row_store import RowStore
defaults.SAVE_EVERY_SECONDS = 0.0
add, count = RowStore.add, 0
def counted(self, *arguments):
    global count
    add(self, *arguments)
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
RowStore.add = counted
model = ReplacementModel.from_pretrained(sys.argv[1], sys.argv[2], device="cpu")
trace(model, [int(i) for i in sys.argv[3].split(",")], batch_size=7, checkpoint=sys.argv[4])
"""


def test_killed_process_leaves_rows_and_no_graph(model, tmp_path):
    path = tmp_path / "graph.safetensors.partial"
    ids = ",".join(str(i) for i in CASE.input_ids)
    arguments = [str(CASE.model), str(CASE.transcoders), ids, str(path)]
    # As many threads as here: with another number, products are summed in another order and the last bit may differ.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, env=environment)
    assert done.returncode == -9
    with pytest.raises((ValueError, OSError)):
        AttributionGraph.load(path)
    # What was being written when the process died.
    path.write_bytes(path.read_bytes() + b"\x40\x00\x00\x00{half a rec")
    model.name, model.transcoders.reader.name = arguments[0], arguments[1]
    assert_same_bits(
        trace(model, CASE.input_ids, checkpoint=path, resume=True), trace(model, CASE.input_ids, batch_size=7)
    )


def test_command_line_says_how_to_go_on_and_does(tmp_path, monkeypatch):
    out = tmp_path / "g.safetensors"
    command = ["trace", "w5 w66 w55 w60 w15", "--model", str(CASE.model), "--transcoders", str(CASE.transcoders)]
    command += ["--device", "cpu", "--batch-size", "5", "-q", "-o", str(out)]
    with monkeypatch.context() as patched:
        interrupt_after(patched, 4)
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert f"rows are kept in {out}.partial: continue with the same command and --resume" in result.stderr
    assert os.listdir(tmp_path) == ["g.safetensors.partial"]
    assert "--resume" in CliRunner().invoke(app, command).stderr
    assert CliRunner().invoke(app, [*command, "--resume"]).exit_code == 0
    assert os.listdir(tmp_path) == ["g.safetensors"]
    again = tmp_path / "again.safetensors"
    assert CliRunner().invoke(app, [*command[:-1], str(again)]).exit_code == 0
    assert_same_bits(AttributionGraph.load(out), AttributionGraph.load(again))
    error = CliRunner().invoke(app, [*command[:-2], "--resume"])
    assert "--resume needs the -o FILE" in error.stderr


def test_file_that_cannot_be_written_is_one_line(model, tmp_path, monkeypatch):
    from crosstrace.tracer import defaults

    monkeypatch.setattr(defaults, "SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(OSError, match=r"cannot keep rows in .*: No such file or directory"):
        trace(model, CASE.input_ids, checkpoint=Path(tmp_path / "no" / "rows"))
