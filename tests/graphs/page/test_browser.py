"""The interactive page in a real browser: Debian's Chromium, headless, driven by playwright-core from node.

`viewer/test/browser.mjs` does all checks in one go; each is a test here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from graph_samples import HOSTILE, capped, random_graph
from places import VIEWER

from crosstrace.graphs import compare, prune, view, write_comparison, write_comparison_html, write_html, write_json
from crosstrace.graphs.conversations.spans import KEY, Spans

SCRIPT = VIEWER / "test" / "browser.mjs"
CHECKS = re.findall(r'^  async "(.+)"\(\)', SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("chromium is not installed")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    browser = chromium()
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (VIEWER / "node_modules" / "playwright-core").is_dir():
        pytest.skip("playwright-core is not installed: npm ci --prefix viewer")
    folder = tmp_path_factory.mktemp("pages")
    write_pages(folder)
    done = subprocess.run(
        ["node", SCRIPT, folder, browser], capture_output=True, text=True, timeout=900, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return {result["check"]: result for result in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("check", CHECKS)
def test_page(results, check):
    assert not results[check]["problem"], results[check]["problem"]


def write_pages(folder: Path) -> None:
    story = story_graph()
    card = {
        "promoted": [[" Austin", 1.25], " Texas"],
        "suppressed": [" Paris"],
        "contexts": [{"tokens": ["in", " Texas", "\n"], "activations": [0.0, 3.5, 0.25]}],
        "histogram": {"counts": [90, 12, 3], "edges": [0, 1, 2, 3]},
        "firing_rate": 0.0123,
        "latents": [["resid_post/3/417", 0.75]],
    }
    cards = {(layer, feature): card for layer, _, feature in story.active_features.tolist()}
    write_html(prune(story, 0.9, 0.98), folder / "story.html", cards=cards)
    write_json(prune(story), folder / "story.json")
    view(folder / "story.json", folder / "foreign.html")
    write_comparison_html(prune(story, 0.9, 0.98), prune(changed(story), 0.9, 0.98), folder / "both.html", cards=cards)
    a, b = prune(capped(story, range(0, 30, 4))), prune(capped(changed(story), range(1, 30, 5)))
    write_comparison_html(a, b, folder / "capped.html")
    write_comparison(compare(a, b), folder / "capped.json")
    contrast = dataclasses.replace(story, logit_tokens=-torch.ones_like(story.logit_tokens))
    write_html(contrast, folder / "contrast.html")
    hostile = hostile_graph()
    write_comparison_html(hostile, hostile, folder / "hostile_both.html", names=ATTACKS[:2], cards=hostile_cards())
    write_html(hostile, folder / "hostile.html", cards=hostile_cards())
    frames = "".join(graph._repr_html_() for graph in (story, hostile))
    (folder / "notebook.html").write_text(
        f"<!doctype html><meta charset='utf-8'><body>{frames}</body>", encoding="utf-8"
    )
    write_html(prune(random_graph(5, L=26, P=40, per_layer=82, k=8, density=0.03), 1, 1), folder / "large.html")
    write_html(prune(random_graph(6, L=12, P=40, per_layer=250, k=4, density=0.08), 0.99, 0.98), folder / "dense.html")
    write_html(prune(long_graph()), folder / "long.html")
    write_html(prune(answered_graph(), 1, 1), folder / "answer.html")


def story_graph():
    tokens = ["<bos>", "The", " capital", " of", " the", " state", " containing", " Dallas", " is"]
    labels = ["Texas", "say Austin", "", "capital", "state"]
    graph = random_graph(2, L=6, P=9, per_layer=9, k=3, density=0.4, token_strings=tokens)
    return random_graph(
        2,
        L=6,
        P=9,
        per_layer=9,
        k=3,
        density=0.4,
        token_strings=tokens,
        prompt="".join(tokens),
        logit_strings=[" Austin", " Dallas", " Texas"],
        feature_labels=[labels[i % 5] for i in range(len(graph.selected_features))],
    )


def answered_graph():
    """An answer of four tokens, each a target at the position before it, all of the same weight."""
    P, answer = 12, (8, 12)
    spans = Spans(
        (("user", 3, 6), ("assistant", *answer)), answer, frozenset({0, 1, 2, 6, 7}), (-0.5, -0.25, -1.0, -0.1)
    )
    return random_graph(
        9,
        L=4,
        P=P,
        per_layer=14,
        k=4,
        density=0.5,
        logit_tokens=torch.arange(*answer) + 10,  # the prompt's own
        logit_positions=torch.arange(answer[0] - 1, answer[1] - 1),
        logit_probabilities=torch.full((4,), 0.25),
        settings={"max_logits": 4, KEY: spans.as_settings()},
    )


def long_graph(P=32_000):
    """A few features, active at many places of a long prompt."""
    few = random_graph(7, L=4, P=20, per_layer=12, k=2, density=0.4)
    layout, K = few.layout, few.layout.n_features
    long = type(layout)(K, few.n_layers, P, 2)
    moved = np.empty(few.n, dtype=np.int64)
    moved[layout.features] = np.arange(K)
    grid = np.arange(few.n_layers)[:, None] * P + np.arange(20)[None]
    moved[layout.errors] = K + grid.ravel()
    moved[layout.tokens] = long.tokens.start + np.arange(20)
    moved[layout.logits] = long.logits.start + np.arange(2)
    entries = few.edges.tocoo()
    edges = scipy.sparse.csr_array(
        (entries.data, (moved[entries.row], moved[entries.col])), shape=(long.n, long.n), dtype=np.float32
    )

    def spread_out(values):
        found = torch.zeros(long.n, dtype=values.dtype)
        found[torch.from_numpy(moved)] = values
        return found

    return dataclasses.replace(
        few,
        tokens=torch.arange(P),
        token_strings=[f" word{i % 500}" for i in range(P)],
        edges=edges,
        **{
            name: spread_out(getattr(few, name))
            for name in ("unattributed", "omitted", "omitted_magnitude", "target_values")
        },
    )


def changed(graph):
    """Other weights, and at one position another token with other features."""
    rng = np.random.default_rng(0)
    edges = graph.edges.copy()
    edges.data = edges.data * rng.normal(size=edges.nnz).astype(np.float32)
    tokens = graph.tokens.clone()
    tokens[7] = 999
    active = graph.active_features.clone()
    active[active[:, 1] == 7, 2] += 1000
    strings = [*graph.token_strings[:7], " Oakland", *graph.token_strings[8:]]
    return dataclasses.replace(
        graph, active_features=active, edges=edges, tokens=tokens, token_strings=strings, prompt="".join(strings)
    )


ATTACKS = [
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "<!--<script>",
    "{{DATA}} {{CSP}} $& $1",
    "javascript:window.pwned=1",
    "\u2028\u2029</style>",
    "__proto__",
]


def hostile_graph():
    strings = ATTACKS + HOSTILE
    graph = random_graph(1, L=4, P=6, per_layer=10, k=3)
    n = len(graph.selected_features)
    return random_graph(
        1,
        L=4,
        P=6,
        per_layer=10,
        k=3,
        token_strings=strings[:6],
        logit_strings=strings[6:9],
        feature_labels=[strings[i % len(strings)] for i in range(n)],
        prompt="".join(strings),
        model_name=ATTACKS[0],
        transcoders_name=ATTACKS[1],
    )


def hostile_cards():
    card = {
        "label": ATTACKS[0],
        "promoted": HOSTILE + [[text, 1.0] for text in ATTACKS],
        "contexts": [{"tokens": ATTACKS + HOSTILE, "activations": [1.0] * (len(ATTACKS) + len(HOSTILE))}],
    }
    return {(layer, feature): card for layer, _, feature in hostile_graph().active_features.tolist()}
