"""Files by suffix, and a package that is quick and quiet to import."""

import shutil
import subprocess
import sys

import pytest
import torch
from graph_samples import random_graph

from crosstrace.graphs import SUFFIXES, prune, read_graph, write_graph


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_writes_one_file(tmp_path, suffix):
    if suffix in (".svg", ".pdf", ".png") and shutil.which("dot") is None:
        pytest.skip("Graphviz's dot is not installed")
    path = tmp_path / f"g{suffix}"
    write_graph(prune(random_graph()), path)
    assert path.stat().st_size > 0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_folder_is_named(tmp_path, suffix):
    with pytest.raises(OSError, match=r"output folder .*nowhere does not exist"):
        write_graph(random_graph(), tmp_path / "nowhere" / f"g{suffix}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("g.xyz", r"unknown suffix '\.xyz' in .*g\.xyz"), ("graph", "no suffix in"), ("", "no suffix in")],
)
def test_unknown_suffixes_name_the_known_ones(name, message):
    with pytest.raises(
        ValueError, match=rf"{message}.*known are \.safetensors, \.json, \.html, \.dot, \.svg, \.pdf, \.png, \.graphml"
    ):
        write_graph(random_graph(), name)


def test_reading(tmp_path):
    graph = random_graph()
    write_graph(graph, tmp_path / "g.safetensors")
    assert torch.equal(read_graph(tmp_path / "g.safetensors").adjacency, graph.adjacency)
    with pytest.raises(ValueError, match=r"cannot read a graph from .*g\.json.*only \.safetensors"):
        read_graph(tmp_path / "g.json")


def test_importing_is_quiet_and_loads_nothing_heavy():
    code = (
        "import sys, logging; import crosstrace.graphs; assert not logging.root.handlers;"
        "print([m for m in ('networkx', 'safetensors.torch', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
