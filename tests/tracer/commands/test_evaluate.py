"""`crosstrace evaluate`: the demo's transcoders, other dictionaries, the report, and usage errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import load_case
from rich.cells import cell_len
from sae_samples import write_family
from typer.testing import CliRunner, Result

from crosstrace.tracer.commands.app import app

TEXTS = [
    "Dallas is a city in Texas .",
    "",
    "The capital of the state containing Dallas is Austin .",
    "Paris is in France .",
]


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["evaluate", *map(str, arguments)])


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    [line] = result.stderr.strip().splitlines()
    return line.removeprefix("error: ")


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return path


def test_the_demo_by_default(corpus, tmp_path):
    result = run("-c", corpus, "-o", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    assert all(cell_len(line) <= 80 for line in result.stdout.splitlines() if not line.startswith("wrote"))
    for said in (
        "crosstrace-demo-clt in crosstrace-demo",
        "L5",
        "mean",
        "All layers replaced",
        "of the loss recovered",
    ):
        assert said in result.stdout
    assert f"wrote {tmp_path / 'report.json'}" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["tokens"] == 22
    assert [layer["layer"] for layer in report["layers"]] == list(range(6))
    assert "note: the texts have only 22 tokens that count, not 10,000" in result.stderr


def test_an_sae_of_the_demo(corpus, tmp_path):
    family = write_family(tmp_path, (1, 4), "resid_post", 128)
    one, four = (family.parent / f"layer_{layer}_{family.name}" for layer in (1, 4))
    for named in (["--sae", family], ["--sae", one, "--sae", four]):
        result = run(*named, "-c", corpus, "--tokens", 20, "--layer-tokens", 0, "-o", tmp_path / "report.json")
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / "report.json").read_text("utf-8"))
        assert (report["tokens"], report["writes"]) == (20, "output")
        assert [layer["layer"] for layer in report["layers"]] == [1, 4]
        assert report["layers"][0]["ce_delta"] is None


def test_an_l0_far_from_the_config_is_said(corpus, tmp_path):
    family = write_family(tmp_path, (1, 4), "resid_post", 128)
    config = family.parent / f"layer_4_{family.name}" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"l0": 2000}))
    result = run("--sae", family, "-c", corpus, "--layer-tokens", 0)
    assert "layers are far from the L0 in the config, layer 4 most:" in result.stderr
    assert "measured and 2,000 expected" in result.stderr


def test_a_named_model_and_transcoders(corpus, tmp_path):
    case = load_case("skip_transcoder")
    chosen = ["-m", case.model, "-t", case.transcoders, "--device", "cpu"]
    result = run(*chosen, "-c", corpus, "--text-field", "text", "--context-length", 16, "-q", "-o", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert not result.stdout
    assert len(json.loads((tmp_path / "r.json").read_text("utf-8"))["layers"]) == 4


def test_wrong_usage(corpus, tmp_path):
    assert run().exit_code == 2
    for arguments in (
        ["--sae", "a", "--transcoders", "b"],
        ["--model", "somewhere"],
        ["-o", "report.txt"],
        ["--tokens", 0],
    ):
        assert run("-c", corpus, *arguments).exit_code == 2, arguments


def test_what_cannot_be_is_one_line(corpus, tmp_path):
    assert "no such file" in error_of("-c", tmp_path / "none.txt")
    assert "SAE folder nowhere does not exist" in error_of("-c", corpus, "--sae", "nowhere")
    assert "output folder" in error_of("-c", corpus, "-o", tmp_path / "none" / "report.json")
    case = load_case("clt_plain_gqa")
    assert "do not fit model crosstrace-demo" in error_of("-c", corpus, "--transcoders", case.transcoders)
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "nothing to read" in error_of("-c", tmp_path / "empty.txt")
