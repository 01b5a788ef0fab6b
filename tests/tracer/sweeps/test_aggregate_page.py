"""The page of an aggregate in a real browser: thresholds cut as Python's do, boxes and prompts open, light and dark."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from places import VIEWER
from sweep_samples import cities

from crosstrace.graphs.aggregates.defaults import MIN_INFLUENCE
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer.sweeps.aggregate_files import write_aggregate
from crosstrace.tracer.sweeps.aggregating import aggregate
from crosstrace.tracer.sweeps.prompts import SweepPrompt
from crosstrace.tracer.sweeps.run import sweep


def test_the_page_in_a_browser(tmp_path):
    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if chromium is None or shutil.which("node") is None or not (VIEWER / "node_modules" / "playwright-core").is_dir():
        pytest.skip("needs chromium, node and playwright-core")
    prompts = [SweepPrompt(row["city"], row["prompt"], metadata=row) for row in cities(5)]
    sweep(ReplacementModel.demo(), prompts, tmp_path / "sweep", progress=False)
    found = aggregate(tmp_path / "sweep", ["The capital of the state containing {city} is"], resamples=20, splits=2)
    write_aggregate(found, tmp_path / "a.html")
    script = VIEWER / "test" / "aggregate.mjs"
    done = subprocess.run(
        ["node", script, tmp_path / "a.html", chromium], capture_output=True, text=True, timeout=300, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["complaints"] == []
    assert shown["axe"] == []
    for said, share in zip(shown["counts"], (0.25, 1.0, 0.05), strict=True):
        # The slider of edges stands at a whole number, 14 of 100: (14 / 100)² / 4.
        nodes, edges = found.circuit(share, MIN_INFLUENCE, 0.0049)
        assert said == f"{len(nodes)} of {len(found.nodes)} boxes, {len(edges)} of {len(found.edges)} edges"
    assert "Prompts, most influence first" in shown["box"]
    assert shown["prompt"].startswith("<bos> The capital of the state containing")
    assert "of the influence, in" in shown["next"]
