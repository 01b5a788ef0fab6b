"""Runs of labelling against a server of the tests: the same labels however they are asked for, and nothing paid for is lost."""

from __future__ import annotations

import json
import threading

import pytest
from chat_server import Answer, data_of
from typer.testing import CliRunner

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo import DALLAS_PROMPT
from crosstrace.tracer import trace
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.labels.client import ChatClient, LabelServer, ServerError
from crosstrace.tracer.labels.journal import Journal
from crosstrace.tracer.labels.label_set import Label, read_label_set, write_label_set
from crosstrace.tracer.labels.labelling import asked_labels

RUNNER = CliRunner()
KEYS = [(0, 120), (0, 481), (1, 112), (2, 6), (3, 348)]
NAMES = [f"L{layer}/{feature}" for layer, feature in KEYS]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "dallas.safetensors"
    trace(ReplacementModel.demo("cpu"), DALLAS_PROMPT).save(path)
    return path


def ask(contexts, server, path, keys=KEYS, budget=None, resume=False, **settings):
    with ChatClient(LabelServer(server.base_url, "small"), budget, lambda seconds: None) as client:
        journal = Journal(path, {"model": "small"}, resume)
        try:
            return asked_labels(contexts, keys, client, journal, **settings)
        finally:
            journal.close()


def run(sampled, *arguments: str):
    cards = str(sampled / "cards.safetensors")
    return RUNNER.invoke(app, ["label", "--cards", cards, *arguments], catch_exceptions=False, env={"COLUMNS": "120"})


def words(result) -> str:
    return " ".join(result.output.replace("│", " ").split())


def test_labels_are_asked_for_tested_and_compared_with_shuffled_ones(contexts, server, tmp_path):
    found = ask(contexts, server, tmp_path / "j.jsonl")
    assert list(found.labels) == KEYS
    assert found.labels[0, 481].text == "is"
    assert {label.source for label in found.labels.values()} == {"small"}
    tested = [label for label in found.labels.values() if label.score is not None]
    assert len(tested) >= 3
    assert {label.scorer for label in tested} == {"small"}
    assert all(label.shuffled is not None for label in tested)
    assert found.mean_score > found.mean_shuffled
    assert found.requests == len(server.requests)
    assert (found.nonsense, found.missing) == ([], [])


def test_scores_are_those_of_the_answers(contexts, server, tmp_path):
    """Counted again from the requests that the server got, by a few lines of their own."""
    found = ask(contexts, server, tmp_path / "j.jsonl", keys=[(0, 481), (0, 120)], shuffled=0)
    excerpts = contexts.test((0, 481))
    texts = {" ".join(excerpt.tokens): excerpt.active for excerpt in excerpts}
    [judged] = [
        data_of(body)["texts"]
        for body in server.requests
        if data_of(body).get("label") == "is" and not any("«" in text for text in data_of(body)["texts"])
    ]
    right = {True: [], False: []}
    for text in judged:
        right[texts[text]].append(("is" in text.casefold()) == texts[text])
    expected = sum(sum(side) / len(side) for side in right.values()) / 2
    assert found.labels[0, 481].detection == pytest.approx(expected)
    assert found.labels[0, 481].shuffled is None


@pytest.mark.parametrize("concurrency", [1, 3])
def test_order_and_number_of_requests_at_a_time_change_nothing(contexts, server, tmp_path, concurrency):
    met = threading.Barrier(concurrency)
    first = {"left": concurrency}

    def think(body):
        with server.lock:
            first["left"] -= 1
            waits = first["left"] >= 0
        if waits:
            met.wait(timeout=20)  # so many requests are there at once

    server.think = think
    found = ask(contexts, server, tmp_path / "j.jsonl", concurrency=concurrency)
    assert server.most_at_once == concurrency
    server.think = lambda body: None
    assert ask(contexts, server, tmp_path / "other.jsonl", concurrency=2).labels == found.labels


def test_a_spent_budget_keeps_what_was_paid_for_and_a_later_run_goes_on(contexts, server, tmp_path):
    whole = ask(contexts, server, tmp_path / "whole.jsonl")
    needed, path = whole.requests, tmp_path / "j.jsonl"
    sent, budgets = 0, [2, 5, needed]
    for budget in budgets:
        before = len(server.requests)
        found = ask(contexts, server, path, budget=budget, resume=sent > 0, concurrency=2)
        sent += len(server.requests) - before
        assert len(server.requests) - before <= budget
    assert found.missing == []
    assert found.labels == whole.labels
    assert sent == needed


def test_what_was_reached_is_returned_when_the_budget_is_spent(contexts, server, tmp_path):
    found = ask(contexts, server, tmp_path / "j.jsonl", budget=2, concurrency=1)
    assert list(found.labels) == KEYS[:2]
    assert found.missing == KEYS[2:]
    assert found.tested == 0


def test_nonsense_is_asked_about_twice_and_then_left(contexts, server, tmp_path):
    server.think = lambda body: Answer(text="I would rather not.\nReally.") if "examples" in data_of(body) else None
    found = ask(contexts, server, tmp_path / "j.jsonl", keys=KEYS[:2])
    assert found.nonsense == KEYS[:2]
    assert found.labels == {}
    assert found.requests == 4


def test_nonsense_in_tests_costs_the_score_and_not_the_label(contexts, server, tmp_path):
    server.think = lambda body: None if "examples" in data_of(body) else Answer(text="[1, 1]")
    found = ask(contexts, server, tmp_path / "j.jsonl", keys=KEYS[:2], shuffled=0)
    assert len(found.labels) == 2
    assert found.tested == 0
    assert found.missing == []


def test_a_refusal_ends_the_run_and_keeps_the_answers(contexts, server, tmp_path):
    server.script = [Answer(), Answer(), Answer(400, '{"error": {"message": "too long"}}')]
    path = tmp_path / "j.jsonl"
    with pytest.raises(ServerError, match="too long"):
        ask(contexts, server, path, concurrency=1)
    before = len(server.requests)
    found = ask(contexts, server, path, resume=True)
    assert len(found.labels) == len(KEYS)
    asked = [data_of(body) for body in server.requests[before:]]
    assert sum("examples" in data for data in asked) == len(KEYS) - 2


def test_a_journal_that_was_cut_off_loses_one_answer(contexts, server, tmp_path):
    path = tmp_path / "j.jsonl"
    whole = ask(contexts, server, path, concurrency=1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:-5])
    before = len(server.requests)
    assert ask(contexts, server, path, resume=True).labels == whole.labels
    assert len(server.requests) - before == 1


def test_journals_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, {"model": "a", "seed": 0}, False).close()
    with pytest.raises(ValueError, match="holds an interrupted run; continue it with --resume"):
        Journal(path, {"model": "a", "seed": 0}, False)
    with pytest.raises(ValueError, match=r"started with different model \(a, now b\)"):
        Journal(path, {"model": "b", "seed": 0}, True)
    path.write_text("something else\n")
    with pytest.raises(ValueError, match="is not the journal of a run"):
        Journal(path, {"model": "a", "seed": 0}, True)


def test_hostile_labels_of_a_server_stay_one_line_of_text(contexts, server, tmp_path):
    hostile = '{"label": "<img src=x onerror=alert(1)> [red]x[/red]"}'
    server.think = lambda body: Answer(text=hostile) if "examples" in data_of(body) else None
    found = ask(contexts, server, tmp_path / "j.jsonl", keys=KEYS[:1], tests=False)
    write_label_set(tmp_path / "labels.json", found.labels)
    assert read_label_set(tmp_path)[KEYS[0]].text == "<img src=x onerror=alert(1)> [red]x[/red]"


def test_the_command_labels_a_graphs_features_and_says_what_feeds_them(sampled, server, graph, tmp_path):
    out = tmp_path / "labels.json"
    result = run(
        sampled, "--graph", str(graph), "--base-url", server.base_url, "--model", "small", "-o", str(out), "--no-test"
    )
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output
    labels = read_label_set(out)
    assert len(labels) == len(server.requests) >= 10
    fed = [data_of(body).get("fed_by", []) for body in server.requests]
    assert any("token Dallas" in names for names in fed)
    assert not (tmp_path / "labels.json.partial.jsonl").exists()


def test_the_command_resumes_after_its_budget(sampled, server, tmp_path):
    arguments = [*NAMES, "--base-url", server.base_url, "--model", "small", "-o", str(tmp_path / "labels.json")]
    result = run(sampled, *arguments, "--budget", "3", "--concurrency", "1")
    assert result.exit_code == 0
    assert "the budget of 3 requests is spent; 2 features are left" in words(result)
    assert "holds an interrupted run" in words(run(sampled, *arguments))
    other = [*arguments[:-4], "--model", "large", *arguments[-2:]]
    assert "started with different model" in words(run(sampled, *other, "--resume"))
    result = run(sampled, *arguments, "--resume")
    assert result.exit_code == 0
    assert "another feature's label on the same contexts" in words(result)
    assert len(read_label_set(tmp_path)) == len(KEYS)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_the_command_uses_a_prompt_and_a_key_of_the_users(sampled, server, tmp_path, monkeypatch):
    server.key = "sesame"
    (tmp_path / "prompt.txt").write_text("Name it in Latin.")
    monkeypatch.setenv("SOME_KEY", "sesame")
    arguments = [
        "L0/120",
        "--base-url",
        server.base_url,
        "--model",
        "m",
        "-o",
        str(tmp_path / "labels.json"),
        "--no-test",
    ]
    result = run(sampled, *arguments, "--prompt", str(tmp_path / "prompt.txt"), "--api-key-env", "SOME_KEY")
    assert result.exit_code == 0
    assert server.requests[0]["messages"][0]["content"] == "Name it in Latin."
    assert "name the variable that holds the key" in words(run(sampled, *arguments))
    assert "sesame" not in (tmp_path / "labels.json").read_text()


def test_without_a_server_the_automatic_labels_are_tested(sampled, tmp_path):
    result = run(sampled, *NAMES, "-o", str(tmp_path / "labels.json"))
    assert result.exit_code == 0
    assert "tested on held-out contexts" in words(result)
    assert read_label_set(tmp_path)[0, 481].scorer == "literal"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "name features, or give --graph, or --all"),
        (("L0/120", "--all"), 2, "name features, or give --graph, or --all"),
        (("L0/120", "--base-url", "http://x"), 2, "--base-url and --model go together"),
        (("L0/120", "--budget", "3"), 2, "go with --base-url"),
        (("L0/999",), 1, "there is no feature L0/999"),
        (("Texas",), 1, "feature 'Texas' cannot be read"),
        (("L0/120", "--base-url", "x", "--model", "m"), 1, "'x' is not an address"),
        (("L0/120", "--base-url", "http://x", "--model", "m", "--api-key-env", "NO_SUCH"), 1, "NO_SUCH"),
        (("L0/120", "-o", "no/folder/labels.json"), 1, "does not exist"),
    ],
)
def test_wrong_usage_is_one_line(sampled, arguments, code, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = run(sampled, *arguments)
    assert result.exit_code == code
    assert message in words(result)
    assert not (sampled / "labels.json").exists()


def test_labels_are_imported_tested_and_compared(sampled, tmp_path):
    rows = [{"layer": "0-clt", "index": 481, "description": "is"}, {"layer": 0, "index": 120, "description": "a state"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["labels", "import", str(tmp_path / "x.jsonl"), "-o", str(tmp_path / "labels.json")]
    result = RUNNER.invoke(app, [*arguments, "--cards", str(sampled / "cards.safetensors")])
    assert result.exit_code == 0, result.output
    found = read_label_set(tmp_path)
    assert found[0, 481].source == "neuronpedia"
    assert found[0, 481].fuzzing == 1
    write_label_set(tmp_path / "mine.json", {(0, 481): Label("IS"), (0, 120): Label("Texas")})
    result = RUNNER.invoke(app, ["labels", "diff", str(tmp_path / "labels.json"), str(tmp_path / "mine.json")])
    assert "2 features in both, 1 called otherwise" in words(result)
    assert "Texas" in result.output
    assert "L0/481" not in result.output
    rows[0]["index"] = 600
    (tmp_path / "x.jsonl").write_text(json.dumps(rows[0]))
    result = RUNNER.invoke(app, [*arguments, "--cards", str(sampled / "cards.safetensors")])
    assert "names L0/600, which the transcoders" in words(result)
