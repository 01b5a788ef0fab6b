"""DOT, as Graphviz and graphviz-pure read it."""

import dataclasses
import itertools
import json
import re
import subprocess
import unicodedata
from xml.etree import ElementTree

import pytest
from drawing import BOTH
from graph_samples import HOSTILE, case, random_graph

from crosstrace.graphs import Figure, prune, suggest_supernodes, to_pydot, write_dot
from crosstrace.graphs.cards.labels import GUESS_LEGEND
from crosstrace.graphs.pictures.dot import NEGATIVE, POSITIVE, html, quoted, tooltip
from crosstrace.graphs.pictures.drawing import Drawing, DrawnNode, Line
from crosstrace.graphs.pictures.placement import arrange
from crosstrace.graphs.text import short, visible
from crosstrace.graphs.viewer_ids import node_ids

# What Graphviz may say: where fonts lack a script, what stands for its characters may be wider than a node; and
# graphviz-pure does not know how wide letters outside ASCII are (`pictures/graphviz.py` centres them again), nor bold ones
# (of the title, which stands at the left whatever its width).
ALLOWED = (
    b"size too small for label",
    b"no value for width of non-ASCII character",
    b"no hard-coded metrics for 'Helvetica-Bold'",
)


EVERYTHING = Figure(everything=True)


@pytest.fixture(params=BOTH)
def program(request):
    return request.param


def run(program, kind, text):
    return subprocess.run([program, kind], input=text.encode(), capture_output=True, check=True)


def drawn(program, text):
    """Nodes by name and edges as Graphviz lays them out."""
    done = run(program, "-Tjson", text)
    assert not [line for line in done.stderr.splitlines() if not any(words in line for words in ALLOWED)]
    content = json.loads(done.stdout)
    objects = content["objects"]
    nodes = {o["name"]: o for o in objects if "nodes" not in o}
    edges = [(objects[e["tail"]]["name"], objects[e["head"]]["name"], e) for e in content.get("edges", [])]
    return nodes, edges


def shown_texts(program, text):
    """The text that is drawn for each node, its lines joined; from an .svg, as the JSON of graphviz-pure escapes twice."""
    svg = "{http://www.w3.org/2000/svg}"
    groups = [
        g
        for g in ElementTree.fromstring(run(program, "-Tsvg", text).stdout).iter(f"{svg}g")
        if g.get("class") == "node"
    ]
    return {
        g.findtext(f"{svg}title"): "|".join(line.text or "" for line in g.iter(f"{svg}text")).replace("\xa0", " ")
        for g in groups
    }


@pytest.mark.parametrize("layout", ["positions", "layers"])
def test_a_picture_with_weak_guesses_says_what_they_are(program, layout, tmp_path):
    graph = prune(case("clt_affine")[0])
    for guess, told in (("→ AG, ag", False), ("→? AG, ag", True)):
        named = dataclasses.replace(graph, feature_labels=[guess] * graph.layout.n_features)
        write_dot(named, tmp_path / "g.dot", Figure(everything=True, layout=layout))
        svg = run(program, "-Tsvg", (tmp_path / "g.dot").read_text(encoding="utf-8")).stdout.decode()
        texts = " ".join(" ".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ").split())
        assert guess in texts
        assert (GUESS_LEGEND in texts) is told


def test_graphviz_reads_every_node_and_edge(program, tmp_path):
    graph = prune(case("clt_affine")[0])
    write_dot(graph, tmp_path / "g.dot", EVERYTHING)
    nodes, edges = drawn(program, (tmp_path / "g.dot").read_text(encoding="utf-8"))
    ids = node_ids(graph)
    assert {name for name in nodes if not name.startswith("note_")} == {ids[i] for i in graph.kept_nodes()}
    kept = graph.kept_edges().tocoo()
    expected = {(ids[s], ids[t]): w for t, s, w in zip(kept.row, kept.col, kept.data.tolist(), strict=True)}
    assert {(tail, head) for tail, head, _ in edges} == set(expected)
    # Widths are by the target's row.
    inputs = dict(zip(ids, abs(graph.edges).sum(axis=1).tolist(), strict=True))
    by_share = sorted(edges, key=lambda edge: abs(expected[edge[0], edge[1]]) / inputs[edge[1]])
    widths = [float(edge["penwidth"]) for *_, edge in by_share]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    for tail, head, edge in edges:
        assert edge["color"][:7] == (POSITIVE if expected[tail, head] > 0 else NEGATIVE)
        assert (edge.get("style") == "dashed") == (expected[tail, head] < 0)


def test_rows_are_layers_and_columns_are_positions(program):
    graph = prune(case("skip_transcoder")[0], 0.95, 0.9)
    nodes, _ = drawn(program, to_pydot(graph, EVERYTHING).to_string())
    ids = node_ids(graph)
    places = {i: tuple(map(float, nodes[ids[i]]["pos"].split(","))) for i in graph.kept_nodes()}
    for axis in (0, 1):
        groups = {}
        for i, place in places.items():
            layer, position = graph.place_of(i)
            groups.setdefault(position if axis == 0 else layer, []).append(place[axis])
        ordered = [groups[key] for key in sorted(groups)]
        assert all(max(a) < min(b) for a, b in itertools.pairwise(ordered))
    boxes = [(x, y, *(36 * float(nodes[ids[i]][side]) for side in ("width", "height"))) for i, (x, y) in places.items()]
    for n, (x, y, w, h) in enumerate(boxes):
        assert not any(abs(x - a) < w + c and abs(y - b) < h + d for a, b, c, d in boxes[:n]), "boxes overlap"


def test_edges_of_a_column_do_not_run_along_one_line(program):
    """Token, features and output of the last position: wherever three follow one another, the middle one stands aside."""
    graph = prune(case("skip_transcoder")[0], 0.95, 0.9)
    nodes, _ = drawn(program, to_pydot(graph, EVERYTHING).to_string())
    ids, last = node_ids(graph), len(graph.tokens) - 1
    rows = {}
    for i in graph.kept_nodes():
        layer, position = graph.place_of(i)
        if position == last and graph.layout.kind(i) != "error":
            rows.setdefault(layer, []).append(tuple(map(float, nodes[ids[i]]["pos"].split(","))))
    centres = [
        tuple(sum(axis) / len(places) for axis in zip(*places, strict=True)) for _, places in sorted(rows.items())
    ]
    assert len(centres) > 3
    for (x0, y0), (x1, y1), (x2, y2) in zip(centres, centres[1:], centres[2:], strict=False):
        on_the_line = x0 + (x2 - x0) * (y1 - y0) / (y2 - y0)
        assert x1 > on_the_line + 2


def test_a_node_stands_above_its_own_token():
    """However tall the picture: a bent column does not reach the next."""
    nodes = [DrawnNode(f"t{p}", "token", -1, p, (Line("state"),), "") for p in range(4)]
    nodes += [DrawnNode(f"f{p}_{r}", "feature", r, p, (Line("L3/4170"),), "") for p in range(4) for r in range(12)]
    boxes = arrange(Drawing("", 12, nodes, [], [])).boxes
    for node in nodes:
        if node.position < 3:  # the last column has nothing at its right
            nearest = min(range(4), key=lambda p: abs(boxes[f"t{p}"].x - boxes[node.name].x))
            assert nearest == node.position


def test_hostile_strings_come_through(program):
    k = len(HOSTILE)
    graph = random_graph(
        L=3, P=k, per_layer=10, k=k, density=0.05, token_strings=HOSTILE, logit_strings=HOSTILE, prompt="".join(HOSTILE)
    )
    graph.feature_labels = [HOSTILE[i % k] for i in range(len(graph.feature_labels))]
    text = to_pydot(graph, EVERYTHING).to_string()
    drawn(program, text)
    texts = shown_texts(program, text)
    ids, layout = node_ids(graph), graph.layout
    for i, token in enumerate(HOSTILE):
        assert texts[ids[layout.token_index(i)]] == short(token)
        assert texts[ids[layout.logit_index(i)]].split("|p = ")[0] == short(token)
    for i, label in enumerate(graph.feature_labels):
        layer, _, feature = graph.feature_of(i)
        lines = texts[ids[i]].split("|")
        words, name = "".join(lines[:-1]), lines[-1]
        assert name == f"L{layer}/{feature}"
        if label.strip():
            expected = re.sub(r"[\s|]", "", visible(label))
            found = re.sub(r"[\s|]", "", words).removesuffix("…")
            assert found
            assert expected.startswith(found)
    # And the picture is well-formed, tooltips included.
    svg = run(program, "-Tsvg", text).stdout
    titles = [e.get("{http://www.w3.org/1999/xlink}title") or "" for e in ElementTree.fromstring(svg).iter()]
    assert any(title.startswith('token say "hi", id E_10_0, ') for title in titles)
    assert any(title.startswith("token ∖N ∖G ∖L ∖n, ") for title in titles)


@pytest.mark.parametrize("text", HOSTILE)
def test_quoted_labels_are_shown_as_they_are(program, text):
    source = f"digraph {{ a [label={quoted(text)}] b -> a }}"
    drawn(program, source)
    assert shown_texts(program, source)["a"] == visible(text)


def nasty_tokens():
    """Two of each Unicode category in every kind of place, and every ASCII sign alone, doubled, and beside the others'."""
    ascii_signs = [chr(code) for code in range(128)]
    found = [sign * count for sign in ascii_signs for count in (1, 2, 3)]
    special = "]&<>\"'\\[{}|;:#%!-/"
    found += [first + second for first in special for second in special]
    found += [
        f"{sign}{entity}"
        for sign in special
        for entity in ("&amp;", "&#93;", "]]>", "<![CDATA[", "-->", "\\N", "<br/>")
    ]
    by_category = {}
    for code in range(0x80, 0x20000):
        signs = by_category.setdefault(unicodedata.category(chr(code)), [])
        signs.append(chr(code))
    for signs in by_category.values():
        some = signs[:: max(len(signs) // 40, 1)]
        found += [form for sign in some for form in (sign, f"{sign}]", f" {sign}{sign}")]
    return list(dict.fromkeys(found))


def test_any_token_is_shown_in_labels_of_both_kinds(program):
    tokens = nasty_tokens()
    assert len(tokens) > 2000
    for start in range(0, len(tokens), 800):
        part = tokens[start : start + 800]
        lines = [
            f'n{i} [pos="0,{i}", label={html((Line(token), Line(token, True)))}, tooltip={tooltip(token)}];\n'
            f'm{i} [pos="9,{i}", label={quoted(token)}];'
            for i, token in enumerate(part)
        ]
        text = "\n".join(["digraph {layout=nop; node [shape=plaintext];", *lines, "}"])
        said = run(program, "-Tsvg", text).stderr.splitlines()
        assert not [line for line in said if not any(words in line for words in ALLOWED)]
        texts = shown_texts(program, text)
        for i, token in enumerate(part):
            shown = visible(token).replace("\xa0", " ").strip()
            assert [one.strip() for one in texts[f"n{i}"].split("|")] == [*f"{shown}|{shown}".split("|")] or not shown
            assert texts[f"m{i}"].strip() == shown or not shown


@pytest.mark.parametrize(
    "graph", [random_graph(per_layer=0), random_graph(k=0), random_graph(density=0.0)], ids=["K=0", "k=0", "no edges"]
)
def test_poor_graphs_are_drawn_too(program, graph):
    nodes, edges = drawn(program, to_pydot(graph, EVERYTHING).to_string())
    assert len([name for name in nodes if not name.startswith("note_")]) == graph.n
    assert len(edges) == graph.edges.nnz


@pytest.mark.parametrize("layout", ["positions", "layers", "force"])
@pytest.mark.parametrize("merged", [False, True])
def test_every_layout_draws_the_same_graph_with_its_supernodes(program, layout, merged):
    graph = prune(case("clt_affine")[0])
    supernodes = suggest_supernodes(graph)
    assert supernodes
    text = to_pydot(graph, Figure(supernodes, merged=merged, layout=layout)).to_string()
    content = json.loads(run(program, "-Tjson", text).stdout)
    objects = content["objects"]
    ids = node_ids(graph)
    members = {ids[node] for _, nodes in supernodes for node in nodes}
    singles = {ids[node] for node in graph.kept_nodes()}
    drawn_nodes = {o["name"] for o in objects if "nodes" not in o and not o["name"].startswith("note_")}
    if merged:
        assert drawn_nodes == singles - members | {f"supernode-{i}" for i in range(len(supernodes))}
    else:
        assert drawn_nodes == singles
        frames = [o for o in objects if o["name"].startswith("cluster")]
        assert {objects[i]["name"] for frame in frames for i in frame["nodes"]} == members
        assert all("_draw_" in frame for frame in frames)
    if layout == "layers":
        tokens = sorted((o for o in objects if o["name"].startswith("E_")), key=lambda o: int(o["name"].split("_")[2]))
        across = [float(token["pos"].split(",")[0]) for token in tokens]
        assert across == sorted(across)


def test_a_frame_holds_its_members_and_nothing_else(program):
    graph = prune(random_graph(4, L=6, P=4, per_layer=12, density=0.2), 0.95, 0.9)
    supernodes = suggest_supernodes(graph, min_similarity=0.2)
    assert len(supernodes) > 3
    text = to_pydot(graph, Figure(supernodes)).to_string()
    done = run(program, "-Tjson", text)
    said = done.stderr.splitlines()
    assert not [line for line in said if b"size too small" in line or not any(words in line for words in ALLOWED)]
    objects = json.loads(done.stdout)["objects"]
    nodes = [o for o in objects if "nodes" not in o]
    names = node_ids(graph)
    for frame in (o for o in objects if o["name"].startswith("cluster")):
        left, bottom, right, top = map(float, frame["bb"].split(","))
        inside = set()
        for node in nodes:
            x, y = map(float, node["pos"].split(","))
            w, h = 36 * float(node["width"]), 36 * float(node["height"])
            if left < x + w and x - w < right and bottom < y + h and y - h < top:
                inside.add(node["name"])
                assert left <= x - w <= x + w <= right
                assert bottom <= y - h <= y + h <= top
        assert inside == {objects[i]["name"] for i in frame["nodes"]}
        groups = [{names[n] for n in members} for _, members in supernodes]
        assert any(inside <= group for group in groups)


def test_one_rank_a_layer():
    graph = random_graph()
    groups = to_pydot(graph, EVERYTHING).get_subgraphs()
    assert [group.get_rank() for group in groups] == ["same"] * (graph.n_layers + 2)
    assert sum(len(group.get_nodes()) for group in groups) == graph.n
