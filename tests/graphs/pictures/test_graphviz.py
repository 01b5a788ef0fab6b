"""Pictures through Graphviz, and what happens without it."""

import shutil

import pytest
from graph_samples import random_graph

from crosstrace.graphs import GraphvizMissing, prune, render, to_pydot

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's dot is not installed")
GRAPH = prune(random_graph(), 0.6, 0.8)


@needs_graphviz
@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("PDF", b"%PDF"), ("png", b"\x89PNG")])
def test_pictures(tmp_path, suffix, start):
    path = tmp_path / f"g.{suffix}"
    render(GRAPH, path)
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


@needs_graphviz
def test_dot_already_made_gives_the_same_picture(tmp_path):
    dot = to_pydot(GRAPH)
    for name, content in (("a", GRAPH), ("b", dot), ("c", dot.to_string())):
        render(content, tmp_path / f"{name}.svg")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@needs_graphviz
def test_a_failure_of_graphviz_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match=r"cannot draw .*g\.svg: Graphviz failed: .*syntax error") as caught:
        render("this is not DOT", tmp_path / "g.svg")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_graphviz_the_dot_file_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GraphvizMissing, match=r"apt install.*brew install.*conda install.*wrote .*g\.dot") as caught:
        render(GRAPH, tmp_path / "g.svg")
    assert "\n" not in str(caught.value)
    assert caught.value.dot_file == tmp_path / "g.dot"
    assert (tmp_path / "g.dot").read_text(encoding="utf-8") == to_pydot(GRAPH).to_string()
    assert list(tmp_path.iterdir()) == [tmp_path / "g.dot"]


def test_unknown_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown picture suffix '\.gif'"):
        render(GRAPH, tmp_path / "g.gif")
