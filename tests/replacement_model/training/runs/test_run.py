"""Runs: killed and resumed to the same bits, refused by name, stopped whole."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_runs
import torch
from safetensors.torch import load_file
from small_runs import SMALL, write_corpus

from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.dictionaries.readers import open_transcoders
from crosstrace.replacement_model.training.runs import checkpoint, files
from crosstrace.replacement_model.training.runs.record import TrainingRecord
from crosstrace.replacement_model.training.runs.run import DivergedError, TrainingInterrupted, train
from crosstrace.replacement_model.training.runs.watching import Watcher
from crosstrace.replacement_model.training.settings import load_recipe

PATHS = [str(Path(file).parent) for file in (__file__, small_runs.__file__)]
STAGES = ("training", "end to end")


@pytest.fixture(scope="module")
def base():
    return BaseModel.from_pretrained("demo", "cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "sentences.txt")


@pytest.fixture(scope="module")
def whole(base, corpus, tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "clt"
    train(base, corpus, folder, load_recipe("laptop", **SMALL))
    return folder


class Until(Watcher):
    """Does something after a step of a stage."""

    def __init__(self, stage, step, act):
        self.stage, self.step, self.act, self.asked, self.said = stage, step, act, False, []

    def stepped(self, progress):
        if (progress.stage, progress.step) == (self.stage, self.step):
            self.act(self)

    def stop_asked(self):
        return self.asked

    def notice(self, line):
        self.said.append(line)


def ask(watcher):
    watcher.asked = True


def weights(folder):
    return {
        (path.name, name): tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def same(one, other):
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_a_dictionary_and_its_record(whole):
    assert open_transcoders(whole).n_layers == 6
    assert not (whole / checkpoint.FILE).exists()
    record = TrainingRecord.read(whole)
    assert record.finished
    assert record.settings == load_recipe("laptop", **SMALL)
    assert {point["stage"] for point in record.curves.points} == set(STAGES)
    assert record.run["training"]["tokens"] == 1536
    assert len(record.run["training"]["l0"]) == 6
    assert record.machine["versions"]["torch"] == torch.__version__.split("+")[0] or record.machine["versions"]["torch"]


def test_a_record_repeats_its_run_to_the_bit(base, corpus, whole, tmp_path):
    train(base, corpus, tmp_path / "again", load_recipe(whole / "training.json"))
    assert same(whole, tmp_path / "again")
    train(base, corpus, tmp_path / "other", load_recipe(whole / "training.json", seed=1))
    assert not same(whole, tmp_path / "other")


@pytest.mark.parametrize(("stage", "step"), [("training", 5), ("end to end", 2)])
def test_a_run_that_was_asked_to_stop_continues_to_the_same_bits(base, corpus, whole, tmp_path, stage, step):
    settings = load_recipe("laptop", **SMALL)
    with pytest.raises(TrainingInterrupted, match=r"interrupted after .* tokens; the state is kept in .*clt"):
        train(base, corpus, tmp_path / "clt", settings, watcher=Until(stage, step, ask))
    with pytest.raises(ValueError, match=r"holds an interrupted run; continue it with --resume"):
        train(base, corpus, tmp_path / "clt", settings)
    train(base, corpus, tmp_path / "clt", settings, resume=True)
    assert same(whole, tmp_path / "clt")
    before, after = (TrainingRecord.read(folder).curves.points for folder in (whole, tmp_path / "clt"))
    assert [point["loss"] for point in before] == [point["loss"] for point in after]


_KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
sys.path[:0] = {paths!r}
from test_run import SMALL, Until
from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.training.runs.run import train
from crosstrace.replacement_model.training.settings import load_recipe
kill = lambda watcher: os.kill(os.getpid(), signal.SIGKILL)
train(BaseModel.from_pretrained("demo", "cpu"), {corpus!r}, {folder!r}, load_recipe("laptop", **SMALL),
      watcher=Until({stage!r}, {step}, kill))
"""


@pytest.mark.parametrize(("stage", "step"), [("training", 9), ("end to end", 3)])
def test_a_killed_run_continues_to_the_same_bits(base, corpus, whole, tmp_path, stage, step):
    folder = tmp_path / "clt"
    script = _KILLED.format(paths=PATHS, corpus=str(corpus), folder=str(folder), stage=stage, step=step)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (folder / checkpoint.FILE).is_file()
    train(base, corpus, folder, load_recipe("laptop", **SMALL), resume=True)
    assert same(whole, folder)


def test_a_finished_run_is_left_as_it_is(base, corpus, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert train(base, corpus, whole, load_recipe("laptop", **SMALL), resume=True).finished
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before
    with pytest.raises(ValueError, match=r"holds a finished run, or name another folder|holds a finished run"):
        train(base, corpus, whole, load_recipe("laptop", **SMALL))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": 48}, r"cannot be resumed with features = 48: it was started with 32"),
        ({"learning_rate": 0.5}, r"cannot be resumed with learning_rate = 0\.5: it was started with 0\.0015"),
        ({"tokens": None, "minutes": 1.0}, r"cannot be resumed with tokens = none: it was started with 1500"),
    ],
)
def test_changed_settings_are_refused_by_name(base, corpus, whole, changes, said):
    settings = load_recipe("laptop", **SMALL).changed(**changes)
    with pytest.raises(ValueError, match=said):
        train(base, corpus, whole, settings, resume=True)


def test_another_corpus_is_refused_by_name(base, corpus, whole, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Dallas is a city in Texas\n")
    with pytest.raises(ValueError, match=r"another corpus: .*other\.txt was not read before, or has changed"):
        train(base, other, whole, load_recipe("laptop", **SMALL), resume=True)


def test_a_folder_with_something_else_is_left_alone(base, corpus, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else; name a folder of its own"):
        train(base, corpus, tmp_path, load_recipe("laptop", **SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(base, corpus, tmp_path):
    settings = load_recipe("laptop", **SMALL, learning_rate=1e30, warmup_steps=4)
    with pytest.raises(
        DivergedError, match=r"the loss is (nan|inf) .*the run has diverged; the checkpoint before it is kept"
    ):
        train(base, corpus, tmp_path / "clt", settings)
    _, state = checkpoint.read_checkpoint(tmp_path / "clt")
    assert checkpoint.is_finite(state)
    assert not TrainingRecord.read(tmp_path / "clt").finished


def test_a_full_disk_is_named_before_the_run_and_during_it(base, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "room_left", lambda folder: 1000)
    with pytest.raises(OSError, match=r"no room in .*: a checkpoint beside the one before it takes"):
        train(base, corpus, tmp_path / "clt", load_recipe("laptop", **SMALL))
    monkeypatch.undo()
    whole_file = tmp_path / "state"
    files.write_whole(whole_file, lambda file: file.write(b"before"))
    with pytest.raises(OSError, match=r"cannot write .*state: No space left on device"):
        files.write_whole(whole_file, write_to_full_disk)
    assert whole_file.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def write_to_full_disk(file):
    with open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


def test_a_damaged_checkpoint_is_named(base, corpus, tmp_path):
    settings = load_recipe("laptop", **SMALL)
    with pytest.raises(TrainingInterrupted):
        train(base, corpus, tmp_path / "clt", settings, watcher=Until("training", 2, ask))
    path = tmp_path / "clt" / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        train(base, corpus, tmp_path / "clt", settings, resume=True)


def test_a_small_budget_is_named_with_what_is_needed(base, corpus, tmp_path):
    with pytest.raises(MemoryError, match=r"a memory budget of 1\.0 MB is too small: weights and moments take"):
        train(base, corpus, tmp_path / "clt", load_recipe("laptop", **SMALL), memory_budget="1MB")


def test_the_clock_decides_where_minutes_are_given(base, corpus, tmp_path):
    settings = load_recipe("laptop", **(SMALL | {"tokens": None, "minutes": 0.05, "checkpoint_minutes": 9.0}))
    began = time.monotonic()
    record = train(base, corpus, tmp_path / "clt", settings)
    assert record.run["seconds"] >= 3
    assert time.monotonic() - began >= 3
    assert {point["stage"] for point in record.curves.points} == set(STAGES)


@pytest.mark.parametrize("kind", ["transcoders", "sae"])
def test_every_kind_runs(base, corpus, tmp_path, kind):
    settings = load_recipe("laptop", kind=kind, **SMALL, **({"layers": [1, 4]} if kind == "sae" else {}))
    record = train(base, corpus, tmp_path / kind, settings)
    assert record.finished
    assert len(list((tmp_path / kind).glob("layer_*"))) == (2 if kind == "sae" else 6)
    assert json.loads((tmp_path / kind / "training.json").read_text())["settings"]["kind"] == kind
    assert ("end to end" in record.run) == (kind != "sae")


_TOGETHER = """
import os, sys, torch
torch.set_num_threads(1)
sys.path[:0] = {paths!r}
from test_run import SMALL
from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.training.runs.run import train
from crosstrace.replacement_model.training.settings import load_recipe
record = train(BaseModel.from_pretrained("demo", "cpu"), {corpus!r}, {folder!r}, load_recipe("laptop", **SMALL))
assert record.finished and record.machine["processes"] == 2
"""


def test_two_processes_give_the_single_process_result(corpus, whole, tmp_path):
    folder = tmp_path / "clt"
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER.format(paths=PATHS, corpus=str(corpus), folder=str(folder)), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(whole, folder)
