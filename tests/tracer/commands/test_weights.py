"""`crosstrace weights` at the command line."""

from __future__ import annotations

import pytest
import scipy.sparse
from typer.testing import CliRunner

from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.samples.build import build_sample

RUNNER = CliRunner()
TEXTS = [
    "The capital of the state containing Dallas is Austin",
    "Dallas is a city in Texas",
    "Texas has the capital Austin",
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "sample.safetensors"
    build_sample(ReplacementModel.demo("cpu"), TEXTS * 5, path, progress=False)
    return str(path)


def run(*arguments: str):
    return RUNNER.invoke(app, ["weights", *arguments], catch_exceptions=False, env={"COLUMNS": "100"})


def test_it_prints_both_ways_by_number_and_by_label(sample):
    result = run("L0/120", "--sample", sample, "--show", "3")
    assert result.exit_code == 0
    assert "L0/120 Texas" in result.stdout
    assert "inputs: none" in result.stdout
    assert "L1/112" in result.stdout
    assert "expected" in result.stdout
    assert "L0/120 Texas" in run("Texas", "--sample", sample, "--by", "expected").stdout


def test_it_goes_through_heads_where_asked(sample):
    result = run("L0/120", "--sample", sample, "--head", "1.2", "--show", "2")
    assert "head 1.2" in result.stdout
    assert "together" not in result.stdout


def test_texts_of_ones_own_make_the_sample(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    result = run("L1/112", "--corpus", str(tmp_path / "texts.txt"), "--show", "1")
    assert result.exit_code == 0
    assert "of 20 positions" in result.stdout


def test_all_features_go_to_a_file(sample, tmp_path):
    result = run("--sample", sample, "--top", "2", "--export", str(tmp_path / "w.npz"))
    assert result.exit_code == 0
    assert "3,072 features" in result.stdout
    assert scipy.sparse.load_npz(tmp_path / "w.npz").nnz > 3072


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "name features"),
        (("L0/1", "--by", "size"), 2, "virtual or expected"),
        (("L0/1", "--head", "1.1", "--by", "expected"), 2, "--head goes with"),
        (("L0/1", "--sample", "a", "--corpus", "b"), 2, "exclude each other"),
        (("L0/1", "--export", "w.csv"), 1, ".npz or .safetensors"),
        (("L0/999", "--sample", "SAMPLE"), 1, "there is no feature L0/999"),
        (("Texass", "--sample", "SAMPLE"), 1, "unknown feature label 'Texass'"),
        (("L0/1", "--sample", "SAMPLE", "--head", "7.0"), 1, "there is no head 7.0"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, message, sample):
    result = run(*(sample if word == "SAMPLE" else word for word in arguments))
    assert result.exit_code == code
    assert message in " ".join(result.output.replace("│", " ").split())
