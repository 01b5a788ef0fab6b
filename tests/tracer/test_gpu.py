"""The whole of crosstrace on a GPU gives what it gives on the CPU: exact cases, the demo through its verbs, training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import SMALL, write_corpus
from typer.testing import CliRunner

from crosstrace.graphs import AttributionGraph
from crosstrace.replacement_model import ReplacementModel, demo
from crosstrace.replacement_model.base_model import BaseModel
from crosstrace.replacement_model.training.runs.run import train
from crosstrace.replacement_model.training.settings import load_recipe
from crosstrace.tracer import head_loadings, trace
from crosstrace.tracer.commands.app import app

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# Nothing is reset and no checkpoint written: those depend on the clock, and on which feature is just under a bound.
SMALL_RUN = SMALL | {"reset_every_steps": 10**6, "dead_after_tokens": 1000, "checkpoint_minutes": 5.0}
_NOT_COMPARED = {"device", "seconds", "crosstrace_version", "memory_budget", "created"}


def run(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def differences(one: Any, other: Any, rtol: float, atol: float, at: str = "") -> list[str]:
    """Where two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{at}: keys {sorted(one.keys() ^ other.keys())}"]
        return [
            text
            for key in one
            if key not in _NOT_COMPARED
            for text in differences(one[key], other[key], rtol, atol, f"{at}.{key}")
        ]
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return [f"{at}: {len(one)} and {len(other)} items"]
        return [
            text
            for i, (a, b) in enumerate(zip(one, other, strict=True))
            for text in differences(a, b, rtol, atol, f"{at}[{i}]")
        ]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    if numbers:
        return [] if math.isclose(one, other, rel_tol=rtol, abs_tol=atol) else [f"{at}: {one} and {other}"]
    return [] if one == other else [f"{at}: {one!r} and {other!r}"]


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    one, other = one.double().cpu(), other.double().cpu()
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def test_the_cases(case):
    graphs = {}
    for device in ("cpu", DEVICE):
        model = ReplacementModel.from_pretrained(case.model, case.transcoders, device=device)
        graphs[device] = graph = trace(model, case.input_ids)
        edges = np.stack(graph.edges.nonzero(), 1)[:200]
        graphs[device, "heads"] = head_loadings(model, graph, edges).heads
    one, other = graphs[DEVICE], graphs["cpu"]
    assert torch.equal(one.active_features, other.active_features)
    close(torch.from_numpy(one.edges.toarray()), torch.from_numpy(other.edges.toarray()), 1e-5)
    close(one.unattributed, other.unattributed, 1e-5)
    close(graphs[DEVICE, "heads"], graphs["cpu", "heads"], 1e-5)


@pytest.fixture(scope="module")
def dallas(tmp_path_factory) -> dict[str, Path]:
    files = {}
    for device in ("cpu", DEVICE):
        files[device] = tmp_path_factory.mktemp("dallas") / "graph.safetensors"
        run("trace", demo.DALLAS_PROMPT, "--attention", "--device", device, "-o", files[device])
    return files


def test_the_demo_is_traced_with_its_heads(dallas):
    one, other = (AttributionGraph.load(dallas[device]) for device in (DEVICE, "cpu"))
    assert torch.equal(one.active_features, other.active_features)
    close(torch.from_numpy(one.edges.toarray()), torch.from_numpy(other.edges.toarray()), 1e-5)
    assert int((one.node_mask != other.node_mask).sum()) == 0
    assert torch.equal(one.attention.loadings.edges, other.attention.loadings.edges)
    close(one.attention.loadings.heads, other.attention.loadings.heads, 1e-4)


def test_the_rows_kept_on_the_host_give_the_same_graph(dallas, tmp_path):
    budgeted = tmp_path / "small.safetensors"
    run("trace", demo.DALLAS_PROMPT, "--device", DEVICE, "--memory-budget", "4MB", "-o", budgeted)
    close(
        torch.from_numpy(AttributionGraph.load(budgeted).edges.toarray()),
        torch.from_numpy(AttributionGraph.load(dallas["cpu"]).edges.toarray()),
        1e-5,
    )


@pytest.mark.parametrize(
    "verb",
    [
        ["intervene", demo.DALLAS_PROMPT, "--ablate", "Texas", "--generate", "3"],
        ["intervene", demo.DALLAS_PROMPT, "--ablate", "Texas", "--freeze", "constrained:3", "--free-attention"],
        ["validate", "GRAPH"],
        ["attention", "GRAPH"],
        ["attention", "GRAPH", "--head", "2.3"],
        ["read", demo.DALLAS_PROMPT],
        ["evaluate", "--corpus", "CORPUS", "--tokens", "2000"],
        ["evaluate", "--corpus", "CORPUS", "--tokens", "2000", "--sae", "demo"],
    ],
    ids=lambda verb: " ".join(word[:12] for word in verb if word != demo.DALLAS_PROMPT),
)
def test_the_verbs_report_the_same(verb, dallas, corpus, tmp_path):
    reports = []
    for device in (DEVICE, "cpu"):
        words = [str({"GRAPH": dallas["cpu"], "CORPUS": corpus}.get(word, word)) for word in verb]
        run(*words, "--device", device, "-o", tmp_path / f"{device}.json")
        reports.append(json.loads((tmp_path / f"{device}.json").read_text("utf-8")))
    found = differences(*reports, rtol=2e-3, atol=2e-4)
    assert not found, "\n".join(found[:20])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "sentences.txt")


def test_cards_hold_the_same_contexts(corpus, tmp_path):
    tensors = {}
    for device in (DEVICE, "cpu"):
        path = tmp_path / f"{device}.safetensors"
        run("features", "--corpus", corpus, "-o", path, "--device", device)
        tensors[device] = load_file(path)
    assert tensors[DEVICE].keys() == tensors["cpu"].keys()
    for name, expected in tensors["cpu"].items():
        if expected.is_floating_point():
            close(tensors[DEVICE][name], expected, 1e-3)


@pytest.mark.parametrize("kind", ["clt", "transcoders", "sae"])
def test_training_follows_the_cpus_losses(kind, corpus, tmp_path):
    losses = []
    for device, folder in (("cpu", tmp_path / "one"), (DEVICE, tmp_path / "two")):
        settings = load_recipe("laptop", kind=kind, **SMALL_RUN)
        train(BaseModel.from_pretrained("demo", device), corpus, folder, settings)
        curves = json.loads((folder / "training.json").read_text("utf-8"))["curves"]
        losses.append({point["step"]: point["loss"] for point in curves["points"]})
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_training_gives_the_same_bits_again(corpus, tmp_path):
    for name in ("one", "two"):
        train(BaseModel.from_pretrained("demo", DEVICE), corpus, tmp_path / name, load_recipe("laptop", **SMALL_RUN))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("params*.safetensors"))
    assert files
    for file in files:
        one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        assert [key for key in one if not torch.equal(one[key], two[key])] == [], file
