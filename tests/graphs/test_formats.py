"""Files by suffix, and a package that is quick and quiet to import."""

import subprocess
import sys

import pytest
import torch
from drawing import DOT
from graph_samples import random_graph

import crosstrace.graphs
from crosstrace.graphs import (
    FIGURES,
    PAGES,
    SUFFIXES,
    Figure,
    check_suffix,
    graphviz_program,
    prune,
    read_graph,
    register_exporter,
    unregister_exporter,
    write_atomically,
    write_graph,
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_writes_one_file(tmp_path, suffix):
    if suffix == ".pdf" and DOT is None:
        pytest.skip("Graphviz's own dot is not installed")
    if suffix in (".svg", ".png") and graphviz_program() is None:
        pytest.skip("neither dot nor graphviz-pure is installed")
    path = tmp_path / f"g{suffix}"
    drawn_by = write_graph(prune(random_graph()), path)
    assert drawn_by == (graphviz_program() if suffix in (".svg", ".pdf", ".png") else None)
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


def test_suffixes_of_figures_and_pages():
    assert tuple(FIGURES) == (".dot", ".svg", ".pdf", ".png", ".graphml")
    assert tuple(PAGES) == (".html",)
    assert check_suffix("A.PDF") == ".pdf"


@pytest.fixture
def names_exporter():
    """Descriptions of the nodes that are kept, one a line."""

    def write(graph, path, export):
        shown = (export.figure or Figure()).part_of(graph)
        write_atomically(path, "\n".join(map(shown.describe, shown.kept_nodes())).encode())

    register_exporter(".names", write, takes_figure=True)
    yield write
    unregister_exporter(".names")


def test_an_exporter_of_ones_own(tmp_path, names_exporter):
    graph = prune(random_graph())
    assert write_graph(graph, tmp_path / "g.NAMES") is None
    assert (tmp_path / "g.NAMES").read_text().splitlines() == [graph.describe(node) for node in graph.kept_nodes()]
    write_graph(graph, tmp_path / "few.names", Figure(only=graph.kept_nodes()[:2]))
    assert len((tmp_path / "few.names").read_text().splitlines()) == 2
    assert ".names" in FIGURES
    assert ".names" not in PAGES
    with pytest.raises(ValueError, match=r"known are \.safetensors, .*, \.graphml, \.names$"):
        check_suffix("g.xyz")
    with pytest.raises(ValueError, match=r"there is already an exporter for '\.names'"):
        register_exporter(".names", names_exporter)


def test_an_exporter_is_gone_after_it_was_removed():
    assert ".names" not in SUFFIXES
    with pytest.raises(ValueError, match=r"there is no exporter for '\.names'"):
        unregister_exporter(".names")


@pytest.mark.parametrize("suffix", ["csv", ".CSV", ".", "", ".tar.gz", "a.csv"])
def test_malformed_suffixes_are_refused(suffix):
    with pytest.raises(ValueError, match=r"a suffix is a dot and letters in lower case, such as '\.csv', not"):
        register_exporter(suffix, lambda graph, path, export: None)


def test_reading(tmp_path):
    graph = random_graph()
    write_graph(graph, tmp_path / "g.safetensors")
    assert torch.equal(read_graph(tmp_path / "g.safetensors").adjacency, graph.adjacency)
    write_graph(graph, tmp_path / "g.json")
    assert read_graph(tmp_path / "g.json").settings["max_logits"] == 3
    with pytest.raises(ValueError, match=r"cannot read a graph from .*g\.svg.*expected \.safetensors or \.json"):
        read_graph(tmp_path / "g.svg")


def test_importing_is_quiet_and_loads_nothing_heavy():
    code = (
        "import sys, logging; from crosstrace.graphs import EDGE_THRESHOLD, FIGURES, SUFFIXES, check_suffix;"
        "check_suffix('g.svg'); assert not logging.root.handlers;"
        "print([m for m in ('torch', 'numpy', 'scipy', 'networkx', 'pydot', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_listed_name_is_there():
    assert len(crosstrace.graphs.__all__) > 40
    for name in crosstrace.graphs.__all__:
        assert getattr(crosstrace.graphs, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = crosstrace.graphs.nothing
