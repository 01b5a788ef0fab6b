"""Graph files: what is saved comes back, and nothing else is taken for a graph."""

import dataclasses
import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from graph_samples import HOSTILE, case, random_graph
from places import SUPPORT

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.graphs.storage import FORMAT


def assert_same(found, expected):
    for field in dataclasses.fields(AttributionGraph):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype, field.name
            assert torch.equal(a, b), field.name
        elif hasattr(b, "indptr"):
            assert a.dtype == b.dtype, field.name
            assert a.shape == b.shape, field.name
            assert (a != b).nnz == 0, field.name
        else:
            assert a == b, field.name


def hostile_graph():
    L, P = 2, len(HOSTILE)
    graph = random_graph(5, L=L, P=P, per_layer=6, k=3, token_strings=list(HOSTILE), prompt="\x00".join(HOSTILE))
    labels = [HOSTILE[i % P] for i in range(len(graph.feature_labels))]
    return dataclasses.replace(
        graph, logit_strings=HOSTILE[:3], feature_labels=labels, settings={"x": [None, 1.5, "é"]}
    )


@pytest.mark.parametrize(
    "graph",
    [
        random_graph(),
        prune(random_graph(1), 0.6, 0.8),
        hostile_graph(),
        prune(case("clt_affine")[0]),
        random_graph(per_layer=0, k=0),
        random_graph(density=0.0),
    ],
    ids=["raw", "pruned", "hostile", "case", "no features", "no edges"],
)
def test_a_saved_graph_comes_back(graph, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    graph.save(first)
    loaded = AttributionGraph.load(first)
    assert_same(loaded, graph)
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "g.safetensors"
    random_graph().save(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"g\.safetensors: damaged") as caught:
        AttributionGraph.load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.9999])
def test_a_flipped_bit_is_found(saved, share):
    content = bytearray(saved.read_bytes())
    content[int(share * len(content))] ^= 4
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"g\.safetensors: ") as caught:
        AttributionGraph.load(saved)
    assert "\n" not in str(caught.value)


def test_foreign_files_are_refused(saved):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, saved)
    with pytest.raises(ValueError, match=r"g\.safetensors: not a crosstrace graph"):
        AttributionGraph.load(saved)
    saved.write_text("hello")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        AttributionGraph.load(saved)


def rewrite(path, drop_tensor=None, **changes):
    with safetensors.safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()[FORMAT]) | changes
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if name != drop_tensor}  # noqa: SIM118
    header = {name: value for name, value in header.items() if value is not None}
    safetensors.torch.save_file(tensors, path, {FORMAT: json.dumps(header)})


def test_missing_keys_newer_versions_and_changed_texts_are_named(saved):
    whole = saved.read_bytes()
    for changes, message in (
        ({"drop_tensor": "edges.data"}, "incomplete graph file: it lacks edges.data"),
        ({"prompt": None}, "incomplete graph file: it lacks prompt"),
        ({"version": 2}, "written by a newer crosstrace: format 2, this version reads up to 1"),
        ({"version": None}, "no format version"),
        ({"prompt": "another"}, "checksum"),
    ):
        saved.write_bytes(whole)
        rewrite(saved, **changes)
        with pytest.raises(ValueError, match=rf"g\.safetensors: .*{message}"):
            AttributionGraph.load(saved)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such graph file"):
        AttributionGraph.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        AttributionGraph.load(tmp_path)


def test_settings_that_are_not_json_are_refused(tmp_path):
    for value in ({1, 2}, float("nan")):
        with pytest.raises(ValueError, match="settings cannot be written as JSON"):
            random_graph(settings={"bad": value}).save(tmp_path / "g.safetensors")
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import pathlib, resource, sys
sys.path.insert(0, sys.argv[1])
from graph_samples import case
graph = case("clt_affine")[0]
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    graph.save(sys.argv[2])
except OSError as problem:
    print(problem)
"""


def test_a_full_disk_leaves_nothing_and_is_one_line(tmp_path):
    path = tmp_path / "graph.safetensors"
    arguments = [sys.executable, "-c", FULL_DISK, str(SUPPORT), str(path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"cannot write {path}: ")
    assert len(result.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_graph_may_be_read_by_whoever_may_read_other_files(tmp_path):
    random_graph().save(tmp_path / "graph.safetensors")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "graph.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
