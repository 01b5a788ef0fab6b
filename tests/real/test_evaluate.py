"""An evaluation on the real model equals its dense recomputation in float64; the command's table fits 80 columns."""

from __future__ import annotations

import json

import pytest
import real_model
from dense_evaluation import DenseEvaluation, DenseLayer
from rich.cells import cell_len
from typer.testing import CliRunner

from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import evaluate
from crosstrace.tracer.commands.app import app

pytestmark = pytest.mark.real

BOUND = 1e-4


def test_every_figure_of_a_cross_layer_transcoder(model: ReplacementModel, folder, clt, tokenizer):
    texts = [real_model.PASSAGE[90:130]]  # one: every layer alone is a pass in float64
    report = evaluate(model, model.transcoders, texts, progress=False).to_dict()
    layers = {
        layer: DenseLayer.read(clt / f"params_layer_{layer}.safetensors", layer)
        for layer in range(model.description.n_layers)
    }
    contexts = [tokenizer(text)["input_ids"] for text in texts]
    expected = DenseEvaluation(folder, layers, "mlp").report(contexts)
    assert report["tokens"] == expected["tokens"] == len(contexts[0]) - 1
    assert report["all"] == pytest.approx(expected["all"], abs=BOUND, rel=BOUND)
    for mine, other in zip(report["layers"], expected["layers"], strict=True):
        assert {key: mine[key] for key in other} == pytest.approx(other, abs=BOUND, rel=BOUND), mine["layer"]


def test_the_command(gguf_file, clt, tmp_path):
    (tmp_path / "texts.txt").write_text(real_model.PASSAGE.replace("\n", " "), encoding="utf-8")
    arguments = ["-m", str(gguf_file), "-t", str(clt), "--device", "cpu", "-c", str(tmp_path / "texts.txt")]
    arguments += ["--tokens", "60", "--layer-tokens", "0", "-o", str(tmp_path / "report.json")]
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["evaluate", *arguments])
    assert result.exit_code == 0, result.output
    assert all(cell_len(line) <= 80 for line in result.stdout.splitlines() if not line.startswith("wrote "))
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["tokens"] == 60
    assert len(report["layers"]) == 18
    # These transcoders were made of this very passage: they explain most of it, and zeros do worse than they do.
    assert sum(layer["fvu"] for layer in report["layers"]) / 18 < 0.5
    assert report["all"]["ce_model"] < report["all"]["ce_replaced"] < report["all"]["ce_zero"]
