"""Sweeps by workers of Ray: the same bits as in one process; workers and drivers that die."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import sweep_samples
from sweep_samples import DyingDemo, cities, files_of

from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer.sweeps.folder import Manifest
from crosstrace.tracer.sweeps.prompts import SweepPrompt
from crosstrace.tracer.sweeps.run import sweep

ray = pytest.importorskip("ray")

N = 6


@pytest.fixture(scope="module")
def prompts():
    return [SweepPrompt(row["city"], row["prompt"], metadata=row) for row in cities(N)]


@pytest.fixture(scope="module")
def alone(prompts, tmp_path_factory):
    """What one process makes of the prompts."""
    folder = tmp_path_factory.mktemp("alone")
    sweep(ReplacementModel.demo(), prompts, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def ray_here():
    """Ray, started once: sweeps use it and leave it running. Workers import the samples, too."""
    path = [str(Path(sweep_samples.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_two_workers_make_the_same_bits_though_one_is_killed(ray_here, prompts, alone, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    (marks / "one").touch()
    city = prompts[2].metadata["city"]
    folder = tmp_path / "sweep"
    report = sweep(DyingDemo(city, str(marks)), prompts, folder, workers=2, progress=False)
    assert not list(marks.iterdir())  # a worker died of that prompt, which another one traced
    assert (report.done, report.failures) == (N, ())
    assert files_of(folder) == files_of(alone)
    for table in ("graphs", "nodes", "edges"):
        assert (folder / f"{table}.parquet").read_bytes() == (alone / f"{table}.parquet").read_bytes()


@pytest.mark.slow  # four workers load the model, one after the other: ten seconds of a core
def test_a_prompt_that_kills_every_worker_has_failed_and_the_others_have_not(ray_here, prompts, alone, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    for number in range(10):
        (marks / str(number)).touch()
    folder = tmp_path / "sweep"
    city = prompts[0].metadata["city"]
    report = sweep(DyingDemo(city, str(marks)), prompts[:2], folder, workers=2, progress=False)
    assert len(list(marks.iterdir())) == 7
    assert report.done == 1
    ((place, why),) = report.failures
    assert place == city
    assert why.startswith("its worker died 3 times")
    assert Manifest.read(folder / "manifest.json").row(1)["state"] == "failed"
    assert files_of(folder).items() <= files_of(alone).items()


@pytest.mark.slow  # workers that never come up: twenty seconds
def test_a_model_that_cannot_be_loaded_is_said_in_its_own_words(ray_here, prompts, tmp_path):
    load = partial(ReplacementModel.from_pretrained, str(tmp_path / "model"), str(tmp_path / "transcoders"))
    with pytest.raises(OSError, match=r"transcoders"):
        sweep(load, prompts, tmp_path / "sweep", workers=2, progress=False)
    assert not list(tmp_path.glob("sweep/manifest*"))


@pytest.mark.slow  # starts a cluster of two nodes, each with its raylet: half a minute
def test_a_cluster_of_two_nodes_makes_the_same_bits(prompts, alone, tmp_path):
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        report = sweep(ReplacementModel.demo, prompts, tmp_path, ray_address=cluster.address, progress=False)
        assert report.done == N
        assert files_of(tmp_path) == files_of(alone)
    finally:
        ray.shutdown()
        cluster.shutdown()
