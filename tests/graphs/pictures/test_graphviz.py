"""Pictures through Graphviz's own dot and through graphviz-pure, and what happens without either."""

import re
import warnings
from xml.etree import ElementTree

import pytest
from drawing import needs_dot, needs_graphviz, needs_pure
from graph_samples import HOSTILE, random_graph
from typer.testing import CliRunner

from crosstrace.graphs import Figure, GraphvizMissing, graphviz_program, prune, render, suggest_supernodes, to_pydot
from crosstrace.graphs.pictures import graphviz
from crosstrace.tracer.commands.app import app

GRAPH = prune(random_graph(), 0.6, 0.8)
PROGRAMS = [pytest.param("dot", marks=needs_dot), pytest.param("graphviz-pure", marks=needs_pure)]


@needs_dot
@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("PDF", b"%PDF"), ("png", b"\x89PNG")])
def test_pictures(tmp_path, suffix, start):
    path = tmp_path / f"g.{suffix}"
    assert re.fullmatch(r"dot \d+\.\d+\.\d+", render(GRAPH, path))
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


@needs_pure
@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("PNG", b"\x89PNG")])
@pytest.mark.parametrize("layout", ["positions", "layers", "force"])
def test_pictures_without_graphviz(tmp_path, monkeypatch, suffix, start, layout):
    monkeypatch.setenv("PATH", "")  # a machine without dot
    path = tmp_path / f"g.{suffix}"
    assert re.fullmatch(r"graphviz-pure \d+\.\d+\.\d+", render(GRAPH, path, Figure(layout=layout)))
    assert graphviz_program().startswith("graphviz-pure")
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


@needs_graphviz
def test_dot_already_made_gives_the_same_picture(tmp_path):
    dot = to_pydot(GRAPH)
    for name, content in (("a", GRAPH), ("b", dot), ("c", dot.to_string())):
        assert render(content, tmp_path / f"{name}.svg") == graphviz_program()
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_failure_of_graphviz_is_one_line_and_leaves_nothing(tmp_path, program):
    with pytest.raises(OSError, match=r"cannot draw .*g\.svg: Graphviz failed: .*syntax error") as caught:
        render("this is not DOT", tmp_path / "g.svg", programs=[program])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_graphviz_is_stopped_where_it_takes_too_long(tmp_path, monkeypatch, program):
    monkeypatch.setattr(graphviz, "TIME_LIMIT", 0.001)
    with pytest.raises(
        TimeoutError, match=r"cannot draw .*g\.svg: Graphviz was not done with [\d,]+ edges after"
    ) as caught:
        render(GRAPH, tmp_path / "g.svg", Figure(layout="layers"), programs=[program])
    for remedy in ("prune more", "--top-paths", "--layout positions", ".dot"):
        assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert render(GRAPH, tmp_path / "g.svg", programs=[program])  # places are known: only drawing is left


@needs_graphviz
def test_a_picture_that_takes_too_long_keeps_no_other_output_away(tmp_path, monkeypatch):
    GRAPH.save(tmp_path / "g.safetensors")
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(graphviz, "TIME_LIMIT", 0.001)
    outputs = [tmp_path / f"out.{suffix}" for suffix in ("svg", "json", "png", "dot")]
    options = [part for path in outputs for part in ("-o", str(path))]
    result = CliRunner().invoke(app, ["prune", str(tmp_path / "g.safetensors"), "--layout", "layers", *options])
    assert result.exit_code == 1
    assert set(tmp_path.iterdir()) - before == {outputs[1], outputs[3]}
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: cannot draw")]) == 2


@pytest.mark.parametrize(
    ("name", "programs", "message"),
    [
        ("g.svg", ["dot"], "Graphviz's `dot` is not installed"),
        ("g.svg", [], "Graphviz's `dot` is not installed"),
        ("g.pdf", ["dot", "graphviz-pure"], r"\.pdf needs Graphviz's own `dot`, which is not installed"),
    ],
)
def test_without_graphviz_the_dot_file_is_there(tmp_path, monkeypatch, name, programs, message):
    monkeypatch.setenv("PATH", "")
    expected = rf"{message} \(apt install.*brew install.*conda install.*wrote .*g\.dot"
    with pytest.raises(GraphvizMissing, match=expected) as caught:
        render(GRAPH, tmp_path / name, programs=programs)
    assert "\n" not in str(caught.value)
    assert caught.value.dot_file == tmp_path / "g.dot"
    assert (tmp_path / "g.dot").read_text(encoding="utf-8") == to_pydot(GRAPH).to_string()
    assert list(tmp_path.iterdir()) == [tmp_path / "g.dot"]


def labels(svg):
    """For each node of a picture: its box's middle, and (anchor, x, text) of its lines."""
    found = {}
    for group in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        if group.get("class") != "node":
            continue
        elements = {}
        for element in group.iter():
            elements.setdefault(element.tag.rpartition("}")[2], []).append(element)
        outline = next(
            (s.get("points") or s.get("d") for kind in ("polygon", "path") for s in elements.get(kind, [])), None
        )
        across = [float(x) for x in re.findall(r"(-?[\d.]+),", outline or "")]
        lines = [(t.get("text-anchor"), float(t.get("x")), t.text) for t in elements.get("text", [])]
        found[elements["title"][0].text] = ((min(across) + max(across)) / 2 if across else None, lines)
    return found


@needs_pure
@pytest.mark.parametrize("layout", ["positions", "layers", "force"])
def test_without_graphviz_labels_of_any_script_are_in_the_middle_of_their_nodes(tmp_path, layout):
    k = len(HOSTILE)
    graph = random_graph(L=2, P=k, per_layer=6, k=k, density=0.1, token_strings=HOSTILE, logit_strings=HOSTILE)
    figure = Figure(suggest_supernodes(graph), layout=layout, everything=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an .svg can show everything
        render(graph, tmp_path / "g.svg", figure, programs=["graphviz-pure"])
    found = labels((tmp_path / "g.svg").read_bytes())
    checked = 0
    for name, (middle, lines) in found.items():
        if not name.startswith("note_"):
            assert all(anchor == "middle" and abs(x - middle) < 0.02 for anchor, x, _ in lines), name
            checked += len(lines)
    assert checked > 3 * k


@needs_pure
def test_what_a_png_cannot_show_without_graphviz_is_said(tmp_path):
    graph = prune(random_graph(token_strings=["中文", "é", "עברית", "\n", "<bos>"]))
    with pytest.warns(
        UserWarning, match=r"g\.png: graphviz-pure .* has no letters for 中 文 and .* write \.svg"
    ) as caught:
        render(graph, tmp_path / "g.png", programs=["graphviz-pure"])
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(GRAPH, tmp_path / "g.png", programs=["graphviz-pure"])


def test_unknown_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown picture suffix '\.gif'"):
        render(GRAPH, tmp_path / "g.gif")
