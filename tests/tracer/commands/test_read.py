"""`crosstrace read` and `crosstrace probe`: the demo from the command line, and what is wrong in one line."""

from __future__ import annotations

import json

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from crosstrace.replacement_model import demo
from crosstrace.tracer.commands.app import app

PROMPT = "The capital of the state containing Dallas is"


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1].removeprefix("error: ")


@pytest.mark.parametrize("times", [1, 5])
def test_the_demo_fits_into_80_columns_whatever_its_length(times, tmp_path):
    result = run("read", " ".join([PROMPT] * times), "-o", tmp_path / "r.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if not line.startswith("wrote")]
    assert all(cell_len(line) <= 80 for line in lines)
    assert "crosstrace-demo-sae" in result.stdout
    assert any(line.strip().startswith("resid_post/1/") for line in lines)
    found = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert {latent["layer"] for latent in found["latents"]} == {1, 3}


def test_a_probe_is_fitted_saved_and_read(tmp_path):
    pytest.importorskip("sklearn")
    texas = next(state for state in demo.load_facts().states if state.name == "Texas")
    others = [state for state in demo.load_facts().states if state.name != "Texas"][:3]
    for name, states in (("texas", [texas]), ("others", others)):
        (tmp_path / f"{name}.txt").write_text("\n".join(city for state in states for city in state.cities))
    chosen = ["--positive", tmp_path / "texas.txt", "--negative", tmp_path / "others.txt", "--last", "--sae", "demo"]
    result = run("probe", *chosen, "-o", tmp_path / "p.safetensors")
    assert result.exit_code == 0, result.output
    assert "better than" in result.stdout.splitlines()[0]
    assert "labels shuffled" in result.stdout

    result = run("read", "Dallas", "--probe", tmp_path / "p.safetensors", "-o", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "r.json").read_text("utf-8"))["probe"]
    assert scores["scores"][0] is None
    assert scores["score"] == pytest.approx(scores["scores"][-1])

    (tmp_path / "said.jsonl").write_text('{"text": "Dallas", "claims": false}\n{"text": "Paris", "claims": true}')
    said = ["--prompts", tmp_path / "said.jsonl", "--says", "claims", "--probe", tmp_path / "p.safetensors"]
    result = run("read", *said, "-o", tmp_path / "apart.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "apart.json").read_text("utf-8"))["texts"] == 2
    same = tmp_path / "texas.txt"
    assert "a text cannot be both" in error_of(
        "probe", "--positive", same, "--negative", same, "-o", tmp_path / "q.safetensors"
    )


def test_wrong_usage_and_what_cannot_be(tmp_path):
    for arguments in (
        ["read"],
        ["read", PROMPT, "--says", "x"],
        ["read", "--prompts", "x.jsonl"],
        ["read", PROMPT, "-o", "x.txt"],
        ["read", PROMPT, "--open"],
        ["read", PROMPT, "--model", "somewhere"],
        ["probe", "--positive", "a", "--negative", "b", "-o", "x.json"],
        ["features", "x", "--sae", "a", "--sae", "b"],
    ):
        assert run(*arguments).exit_code == 2, arguments
    assert "SAE folder nowhere does not exist" in error_of("read", PROMPT, "--sae", "nowhere")
    assert "not a probe" in error_of("read", PROMPT, "--probe", demo.CARDS_FILE)
    assert "no such file" in error_of(
        "probe", "--positive", "a.txt", "--negative", "b.txt", "-o", tmp_path / "q.safetensors"
    )
