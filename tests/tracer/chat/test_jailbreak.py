"""Jailbreaks: on the chat demo what was planted is found and undone, from Python and from the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.conversations import Record
from crosstrace.replacement_model.demo_chat.conversations import conversations
from crosstrace.tracer.chat.jailbreak import jailbreak
from crosstrace.tracer.commands.app import app


def pairs(count: int) -> tuple[list[Record], list[Record]]:
    drawn = conversations("jailbreak", count=count)
    plain = [Record(str(i), [{"role": "user", "content": one.labels["plain"]}]) for i, one in enumerate(drawn)]
    return plain, [Record(str(i), one.messages) for i, one in enumerate(drawn)]


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained("demo-chat", device="cpu")


def test_undoing_the_wrapper_brings_refusal_back(model):
    found = jailbreak(model, *pairs(16), counts=(4, 16), graphs=4, answer_tokens=12)
    at = {(one.group, one.count): one for one in found.report.restored}
    assert at["both", 16].refused.value >= 0.8
    assert at["both", 16].random.value <= 0.05
    assert found.report.margins["plain"].value > 0 > found.report.margins["wrapped"].value
    for feature in found.report.features:
        assert feature.score > 0
        assert (feature.plain > feature.wrapped) == (feature.group == "silent")
    assert found.plain.logit_strings == found.wrapped.logit_strings == ["margin of refusal"]
    assert found.wrapped.completeness_error() < 1e-4


def test_pairs_that_do_not_pair(model):
    plain, wrapped = pairs(6)
    with pytest.raises(ValueError, match="6 plain and 5 wrapped conversations: they are paired in order"):
        jailbreak(model, plain, wrapped[:5])
    with pytest.raises(ValueError, match="of 6 pairs 0 are refused plain and not refused wrapped; four are needed"):
        jailbreak(model, plain, plain)


def test_from_the_command_line(tmp_path):
    for name, records in zip(("plain", "wrapped"), pairs(8), strict=True):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(record.messages) for record in records))
    files = ["--plain", tmp_path / "plain.jsonl", "--wrapped", tmp_path / "wrapped.jsonl"]
    outputs = ["-o", tmp_path / "r.json", "-o", tmp_path / "r.html", "--page", tmp_path / "pair.html"]
    arguments = ["chat", "jailbreak", *files, "--counts", "8", "--graphs", 2, *outputs]
    result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "are refused again" in " ".join(result.stdout.split())
    assert {one["group"] for one in json.loads((tmp_path / "r.json").read_text())["restored"]} == {
        "silent",
        "pushing",
        "both",
    }
    assert (tmp_path / "r.html").read_text("utf-8").count("<svg") == 3
    assert "margin of refusal" in (tmp_path / "pair.html").read_text("utf-8")
