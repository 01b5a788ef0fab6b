"""Attention on the page: what it holds, and in a real browser edges by head, patterns and colours."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess

import pytest
import torch
from graph_samples import random_graph
from places import VIEWER

from crosstrace.graphs import AttentionPlaces, AttributionGraph, GraphAttention, HeadLoadings, prune, write_html
from crosstrace.graphs.page.data import page_data


def graph_with_attention(P: int = 5, H: int = 3, c: int = 2, t: int = 4) -> AttributionGraph:
    """A random graph whose edges pass through random heads."""
    graph = prune(random_graph(P=P), 0.9, 0.9)
    generator = torch.Generator().manual_seed(0)
    kept = graph.kept_edges().tocoo()
    edges = torch.stack([torch.from_numpy(part.astype("int64")) for part in (kept.row, kept.col)], 1)
    heads = torch.randn(len(edges), graph.n_layers, H, generator=generator)
    bypass = torch.from_numpy(kept.data)[:, None] - heads.sum(-1)
    n = graph.layout.n_sources
    nodes = torch.randint(0, n + 1, (c, t, 4), generator=generator)
    terms = torch.randn(3, c, t, generator=generator)
    places = AttentionPlaces(
        where=torch.tensor([[2, 1, P - 1, 1], [0, 0, 2, 2]])[:c],
        carried=torch.tensor([0.3, 0.1], dtype=torch.float64)[:c],
        net=torch.tensor([0.2, -0.1], dtype=torch.float64)[:c],
        scores=torch.tensor([1.5, -2.0], dtype=torch.float64)[:c],
        patterns=torch.randn(c, P, P, generator=generator).softmax(-1).tril(),
        pairs=nodes[..., :2],
        pair_terms=terms[0],
        query_nodes=nodes[..., 2],
        query_terms=terms[1],
        key_nodes=nodes[..., 3],
        key_terms=terms[2],
        fed=torch.tensor([graph.layout.logit_index(0)] * c),
    )
    return dataclasses.replace(graph, attention=GraphAttention(HeadLoadings(edges, heads, bypass), places))


def test_a_page_holds_the_heads_of_its_edges_and_patterns_up_to_the_query():
    graph = graph_with_attention()
    attention = page_data(graph)["attention"]
    assert attention is not None
    assert len(attention["edges"]) == len(graph.attention.loadings)
    for _, _, heads in attention["edges"]:
        assert [abs(value) for *_, value in heads] == sorted((abs(value) for *_, value in heads), reverse=True)
    assert [len(row) for row in attention["heads"][0]["pattern"]] == [1, 2, 3, 4, 5]
    assert page_data(prune(random_graph()))["attention"] is None


def test_edges_by_head_patterns_and_colours_in_a_browser(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or shutil.which("node") is None:
        pytest.skip("chromium or node is not installed")
    if not (VIEWER / "node_modules" / "playwright-core").is_dir():
        pytest.skip("playwright-core is not installed: npm ci --prefix viewer")
    write_html(graph_with_attention(), tmp_path / "page.html")
    script = VIEWER / "test" / "attention.mjs"
    done = subprocess.run(
        ["node", script, tmp_path / "page.html", browser], capture_output=True, text=True, timeout=600, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["problems"]
    assert found["heads"] == 2
    assert found["recoloured"]
    assert found["cells"] == 15
    assert "Head L2.H1" in found["head"]
    assert "strongest pairs" in found["head"].lower()
    assert found["clicked"]
    assert "bypass" in found["edge"]
