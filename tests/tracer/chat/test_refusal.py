"""Refusals: prefixes and the margin, rankings, resuming, and on the chat demo what was planted."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.conversations import Record
from crosstrace.replacement_model.demo_chat.conversations import (
    COMPLIANCE_PREFIXES,
    REFUSAL_PREFIXES,
    conversations,
)
from crosstrace.tracer.chat.asked import Judge, closing
from crosstrace.tracer.chat.passes import Run, answer_all
from crosstrace.tracer.chat.prefixes import DEFAULT, Prefixes, PrefixTokens, prefix_tokens, read_prefixes
from crosstrace.tracer.chat.rankings import effects_on_margin, rank
from crosstrace.tracer.chat.refusal import refusal
from crosstrace.tracer.chat.reports import write_report
from crosstrace.tracer.chat.statistics import mean_of
from crosstrace.tracer.commands.app import app

PREFIXES = Prefixes(REFUSAL_PREFIXES, COMPLIANCE_PREFIXES)
FEW = {"counts": (4, 32), "graphs": 3, "answer_tokens": 12}


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained("demo-chat", device="cpu")


def records(kind: str, count: int = 16) -> list[Record]:
    return [Record(f"{kind} {i}", one.messages) for i, one in enumerate(conversations(kind, count=count))]


@pytest.fixture(scope="module")
def report(model):
    return refusal(model, records("refused"), records("harmless"), PREFIXES, boundary=2, **FEW)


def test_answers_are_told_apart_by_how_they_begin():
    assert DEFAULT.kind_of("I’m sorry, but") == "refused"
    assert DEFAULT.kind_of("  sure ,  here") == "complied"
    assert DEFAULT.kind_of("Austin") == "other"


def test_the_margin_is_that_of_sums_over_whole_prefixes(model):
    tokens = prefix_tokens(PREFIXES, model.tokenizer)
    conversation = model.conversation(records("refused", 1)[0].messages)
    (answered,) = answer_all(model, [Run(conversation.tokens)], 0, [], tokens.all)
    total = {}
    for kind, prefixes in (("refusal", tokens.refusal), ("compliance", tokens.compliance)):
        total[kind] = 0.0
        for prefix in prefixes:
            ids = torch.tensor([*conversation, *prefix])
            log_p = model.sites.unembed(model.sites.run(model.sites.embed(ids)[None])[0]).double().log_softmax(-1)
            places = range(len(conversation) - 1, len(ids) - 1)
            total[kind] += log_p[places, list(prefix)].sum().exp().item()
    expected = torch.tensor(total["refusal"] / total["compliance"]).log().item()
    assert tokens.margin(answered.log_probabilities) == pytest.approx(expected, abs=1e-3)


def test_the_first_step_is_the_margins_gradient():
    tokens = PrefixTokens(((3, 4), (5,)), ((3, 6), (7,)))
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    tails = {(3, 4): -0.3, (5,): 0.0, (3, 6): -1.2, (7,): 0.0}  # what follows does not depend on the first step
    log_p = torch.stack([logits.log_softmax(0)[one[0]] + tails[one] for one in tokens.all])
    margin = log_p[:2].logsumexp(0) - log_p[2:].logsumexp(0)
    assert tokens.margin(log_p.tolist()) == pytest.approx(margin.item())
    (gradient,) = torch.autograd.grad(margin, logits)
    found = tokens.first_step(log_p.tolist())
    assert [found.get(i, 0.0) for i in range(9)] == pytest.approx(gradient.tolist())
    assert PrefixTokens(((1, 2, 3),), ((1, 2, 4),)).shared == (1, 2)


def test_prefixes_that_cannot_be_used(model, tmp_path):
    tokens = prefix_tokens(Prefixes(("No ,", "No , that", "Zounds"), ("Sure ,",)), model.tokenizer)
    assert (len(tokens.refusal), tokens.dropped) == (1, ("Zounds",))
    with pytest.raises(ValueError, match="has no tokens for any of the prefixes of a refusal"):
        prefix_tokens(Prefixes(("Zounds",), ("Sure",)), model.tokenizer)
    with pytest.raises(ValueError, match="do not part"):
        prefix_tokens(Prefixes(("Sure , I",), ("Sure ,",)), model.tokenizer)
    path = tmp_path / "p.json"
    for text, said in (
        ("[]", "expected an object"),
        ("{", "not JSON"),
        ('{"refusal": []}', '"refusal" must be a list'),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_prefixes(path)


def test_effects_are_those_of_the_linear_model(model):
    """What features add to the margin over all paths, and what everything else does, add up to it."""
    tokens = prefix_tokens(PREFIXES, model.tokenizer)
    (one,) = Judge(model, PREFIXES, tokens, 4).ask(records("refused", 1))
    found = effects_on_margin(model, one, tokens, closing(one.conversation), 4000)
    local = model.local(one.conversation)
    active = dict(zip(map(tuple, local.activations.indices.tolist()), local.activations.values.tolist(), strict=True))
    length = len(one.conversation)
    assert {(layer, length + place, feature): value for (layer, place, feature), (_, value) in found.items()} == {
        key: pytest.approx(value) for key, value in active.items() if key[1] >= length - closing(one.conversation)
    }


def test_rankings_by_hand():
    refused, complied = {(0, -1, 7): 2.0, (1, -1, 3): 1.0}, {(1, -1, 3): 1.0, (0, -2, 5): 4.0}
    effects = [{(0, -1, 7): (6.0, 3.0)}, {(0, -1, 7): (2.0, 1.0), (0, -2, 5): (-2.0, 1.0)}]
    found = rank(refused, complied, effects, 2, seed=0)
    assert found.scores["influence"] == {(0, 7): 4.0, (1, 3): 0.0, (0, 5): 8.0}
    assert found.scores["difference"] == {(0, 7): 2.0, (1, 3): 0.0, (0, 5): 4.0}
    assert found.by["influence"] == found.by["difference"] == [(0, 5), (0, 7), (1, 3)]
    assert sorted(found.by["random"]) == [(0, 5), (0, 7), (1, 3)]


def test_a_mean_lies_in_its_interval():
    mean = mean_of([0, 1, 1, 1], seed=0)
    assert mean.low <= mean.value == 0.75 <= mean.high
    assert mean_of([2.0] * 5, seed=1) == type(mean)(2.0, 2.0, 2.0)


def test_what_was_planted_is_found(report):
    at = {by: report.removed[by][-1] for by in report.removed}
    assert at["influence"].complied.value >= 0.9
    assert at["random"].complied.value <= 0.05
    added = {by: report.added[by][-1].refused.value for by in report.added}
    assert added["influence"] >= 0.9 > added["random"]
    assert report.kl["influence"].value < 0.01
    assert report.margins["refused"].value > 0 > report.margins["complied"].value
    assert report.first_line.startswith(f"{report.settings['named']} features carry")
    assert len(report.features) == report.settings["named"]
    assert [abs(row["margin"]) for row in report.boundary] == sorted(abs(row["margin"]) for row in report.boundary)


def test_a_run_goes_on_where_it_was_interrupted(model, report, tmp_path):
    keep = tmp_path / "r.json.partial"

    class StopError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "intervening" and done == 3:
            raise StopError

    chosen = (records("refused"), records("harmless"), PREFIXES)
    with pytest.raises(StopError):
        refusal(model, *chosen, keep=keep, progress=stop, boundary=2, **{**FEW, "counts": (4, 32)})
    if not keep.is_file():  # shorter than the time between two writes
        refusal(model, *chosen, keep=keep, boundary=2, **FEW)
    again = refusal(model, *chosen, keep=keep, resume=True, boundary=2, **FEW)
    assert again.to_dict() == report.to_dict()
    with pytest.raises(ValueError, match="is of a run with other settings or files"):
        refusal(model, *chosen, keep=keep, resume=True, **{**FEW, "counts": (4,)})
    keep.write_text("{")
    with pytest.raises(ValueError, match="not the state of an interrupted run"):
        refusal(model, *chosen, keep=keep, resume=True, **FEW)


def test_reports_are_json_and_pages(report, tmp_path):
    write_report(report, tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    assert set(content["removed"]) == {"influence", "difference", "random"}
    write_report(report, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert page.count("<svg") == 4
    assert "http" not in page
    with pytest.raises(ValueError, match=r"written as \.json or \.html"):
        write_report(report, tmp_path / "r.txt")


def test_too_few_of_a_kind_is_one_line(model):
    with pytest.raises(ValueError, match=r"of 16 conversations that should be refused the model does so with 0; four"):
        refusal(model, records("harmless"), records("harmless"), PREFIXES, **FEW)


def test_from_the_command_line(tmp_path):
    for kind, name in (("refused", "refused"), ("harmless", "complied")):
        lines = [json.dumps(record.messages) for record in records(kind, 8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = ["--refused", tmp_path / "refused.jsonl", "--complied", tmp_path / "complied.jsonl"]
    arguments = ["chat", "refusal", *files, "--counts", "32", "--graphs", 2, "-o", tmp_path / "r.json"]
    result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("32 features carry")
    assert not (tmp_path / "r.json.partial").exists()
    for wrong in (["--counts", "0"], ["--ablate", "half"], ["-o", "x.txt"], ["--resume"]):
        result = CliRunner().invoke(app, list(map(str, ["chat", "refusal", *files, *wrong])))
        assert result.exit_code == 2
