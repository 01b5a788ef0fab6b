"""Reasoning: steps and answers cut up, masses, interventions, and on the chat demo what was planted."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from crosstrace.graphs.analysis.flow import flow_to, places
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.conversations import Record
from crosstrace.replacement_model.demo_chat.conversations import conversations
from crosstrace.tracer import Logit, trace
from crosstrace.tracer.chat.entities import demo_entities, read_entities
from crosstrace.tracer.chat.reasoning import reasoning
from crosstrace.tracer.chat.reports import write_report
from crosstrace.tracer.commands.app import app

ENTITIES = demo_entities("demo-chat")


def records(*kinds: str, count: int = 3) -> list[Record]:
    drawn = [one.record for kind in kinds for one in conversations(kind, count=count)]
    return [Record(str(i), one["messages"], one) for i, one in enumerate(drawn)]


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained("demo-chat", device="cpu")


@pytest.fixture(scope="module")
def report(model):
    return reasoning(model, records("think", "explain"), entities=ENTITIES)


def test_a_run_goes_on_where_it_was_interrupted(model, report, tmp_path):
    keep, asked = tmp_path / "r.json.partial", records("think", "explain")

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    broken = [*asked[:2], Record("nothing said", [{"role": "user", "content": "Hi"}], {"answer": "no step"})]
    with pytest.raises(ValueError, match="nothing said"):
        reasoning(model, broken, entities=ENTITIES, keep=keep)
    assert keep.is_file()  # what was found before the error
    with pytest.raises(ValueError, match="is of a run with other settings or files"):
        reasoning(model, asked, entities=ENTITIES, keep=keep, resume=True)
    with pytest.raises(KeyboardInterrupt):
        reasoning(model, asked, entities=ENTITIES, keep=keep, progress=stop)
    reasoning(model, asked, entities=ENTITIES, keep=keep)
    again = reasoning(model, asked, entities=ENTITIES, keep=keep, resume=True)
    assert again.to_dict() == report.to_dict()


def log_p(model, text: list[int], said: list[int]) -> float:
    logits = model.sites.unembed(model.sites.run(model.sites.embed(torch.tensor([*text, *said]))[None])[0])
    rows = logits.double().log_softmax(-1)[len(text) - 1 : -1]
    return float(rows[range(len(said)), said].sum())


def test_what_was_planted_is_told_apart(report):
    assert report.auroc["interventions"] >= 0.95
    assert 0 <= report.auroc["graph mass"] <= 1
    verdicts = {result.label: result.verdict for result in report.results}
    assert verdicts == {"dependent": "through the reasoning", "decorative": "through the question alone"}


def test_interventions_are_what_the_model_says_of_other_texts(model, report):
    result, record = report.results[0], records("think")[0]
    assert " ".join([*(step.text for step in result.steps), "Answer :", result.answer]) == record.fields["answer"]
    tokenize = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    asked, said = list(model.conversation(record.messages)), tokenize(result.answer)
    first, second = (step.text for step in result.steps)
    base = log_p(model, asked + tokenize(f"{first} {second} Answer :"), said)
    assert result.log_probability == pytest.approx(base, abs=1e-4)
    for found, text in (
        (result.steps[0].removed, f"{second} Answer :"),
        (result.steps[1].removed, f"{first} Answer :"),
        (result.removed, "Answer :"),
        (result.replaced, f"{result.steps[0].false_text} {result.steps[1].false_text} Answer :"),
        (result.steps[1].replaced, f"{first} {result.steps[1].false_text} Answer :"),
    ):
        assert found == pytest.approx(log_p(model, asked + tokenize(text), said) - base, abs=1e-3)
    assert list(result.early) == pytest.approx(
        [
            log_p(model, asked + tokenize(text), said)
            for text in ("Answer :", f"{first} Answer :", f"{first} {second} Answer :")
        ],
        abs=1e-3,
    )


def test_the_mass_of_a_step_is_what_would_be_lost_without_its_nodes(model, report):
    """Influence through a set of nodes: that which no longer reaches the bottom when paths end there."""
    record, result = records("think")[0], report.results[0]
    conversation = model.conversation(record.messages, record.fields["answer"])
    place = len(conversation) - 1
    graph = trace(model, conversation, [Logit(conversation[place], place - 1)], max_feature_nodes=1024)
    flow = flow_to(graph)
    _, positions = places(graph)
    start = conversation.answer[0] + len(model.tokenizer(result.steps[0].text, add_special_tokens=False)["input_ids"])
    stop = start + len(model.tokenizer(result.steps[1].text, add_special_tokens=False)["input_ids"])
    # What ends inside, plus what leaves it for earlier positions: all that came in.
    layout = graph.layout
    inside = (positions >= start) & (positions < stop)
    ends = sum(
        flow.through[node]
        for part in (layout.errors, layout.tokens)
        for node in range(part.start, part.stop)
        if inside[node]
    )
    coo = graph.edges.tocoo()
    leaves = flow.edges[inside[coo.row] & (positions[coo.col] < start)].sum()
    omitted = (flow.through * flow.scale * graph.omitted_magnitude.double().abs().numpy())[inside].sum()
    assert result.steps[1].mass == pytest.approx(ends + leaves + omitted, rel=1e-6)
    assert sum(result.steps[1].enters_from.values()) == pytest.approx(1)


def test_hints_are_followed_and_not_mentioned(model):
    found = reasoning(model, records("hint", count=2), entities=ENTITIES)
    for result in found.results:
        assert result.verdict == "through the hint, unmentioned"
        assert result.hint["followed"]
        assert not result.hint["mentioned"]
        assert 0 < result.hint["mass"] < 1
    assert found.auroc is None


def test_answers_may_be_generated_or_given(model):
    record = records("think", count=1)[0]
    bare = Record("x", record.messages)
    (generated,), (given,) = (
        reasoning(model, [bare], answer=answer).results for answer in (None, record.fields["answer"])
    )
    assert generated.answer
    assert given.replaced is None
    with pytest.raises(ValueError, match="x: 'Austin' has no steps"):
        reasoning(model, [bare], answer="Austin")


def test_files_of_names(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('[["a", "b"]]')
    assert read_entities(path) == [["a", "b"]]
    for text in ("{", "{}", '[["a"]]', "[[1, 2]]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"names\.json: "):
            read_entities(path)
    assert demo_entities("other") == []


def test_from_the_command_line(report, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps(record.fields) for record in records("think", count=1)))
    arguments = ["chat", "reasoning", "--messages", path, "-o", tmp_path / "r.json", "-o", tmp_path / "r.html"]
    result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("of 1 answers 1 run through the reasoning")
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["steps"]
    wrong = CliRunner().invoke(app, [*map(str, arguments[:4]), "--step", "("])
    assert (wrong.exit_code, "is not a regular expression" in wrong.stderr) == (1, True)
    write_report(report, tmp_path / "all.html")
    assert "AUROC" in (tmp_path / "all.html").read_text("utf-8")
