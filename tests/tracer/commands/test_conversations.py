"""Conversations from the command line: graphs of answers, what is marked and hidden, and what is wrong in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from chat_samples import TEMPLATE, write_chat_model
from typer.testing import CliRunner, Result

from crosstrace.graphs import (
    AttributionGraph,
    answer_targets,
    flow_to,
    of_answer,
    prune,
    row_scale,
    spread,
    target_weights,
    without_template,
)
from crosstrace.graphs.analysis.flow import places
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace
from crosstrace.tracer.commands.app import app

ASK = [{"role": "user", "content": "cap of Paris"}]
ANSWER = "Austin Paris Sacramento"


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    model, transcoders = write_chat_model(folder)
    (folder / "chat.json").write_text(json.dumps(ASK))
    (folder / "chat.jinja").write_text(TEMPLATE)
    return folder, ["-m", model, "-t", transcoders, "--device", "cpu"]


@pytest.fixture(scope="module")
def graph(chat, tmp_path_factory) -> AttributionGraph:
    folder, options = chat
    path = tmp_path_factory.mktemp("graph") / "g.safetensors"
    result = run("trace", "--messages", folder / "chat.json", "--answer", ANSWER, *options, "-o", path)
    assert result.exit_code == 0, result.output
    assert "the whole answer: log p" in result.stdout
    return AttributionGraph.load(path)


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1].removeprefix("error: ")


def test_a_graph_of_an_answer_has_a_target_a_token(chat, graph):
    model = ReplacementModel.from_pretrained(chat[1][1], chat[1][3], device="cpu")
    conversation = model.conversation(ASK, ANSWER)
    assert graph.tokens.tolist() == list(conversation)
    start, stop = conversation.answer
    assert graph.logit_positions.tolist() == list(range(start - 1, stop - 1))
    assert graph.logit_tokens.tolist() == list(conversation.answer_tokens)
    assert graph.logit_probabilities.tolist() == [1.0] * (stop - start)
    logits = model.sites.unembed(model.sites.run(model.sites.embed(torch.tensor(list(conversation)))[None])[0])
    log_p = logits.double().log_softmax(-1)[range(start - 1, stop - 1), conversation.answer_tokens]
    assert graph.target_probabilities.tolist() == pytest.approx(log_p.exp().tolist(), rel=1e-4)
    assert list(graph.spans.log_probabilities) == pytest.approx(log_p.tolist(), abs=1e-4)
    assert graph.spans.template == frozenset(conversation.template)
    assert [tuple(turn) for turn in graph.spans.turns] == [(t.role, t.start, t.stop) for t in conversation.turns]
    assert graph.completeness_error() < 1e-4


def test_influence_on_a_part_is_that_on_its_tokens(graph):
    influence = [
        spread(one.edges, row_scale(one.edges), target_weights(one))
        for one in (graph, *(of_answer(graph, i, i + 1) for i in range(len(answer_targets(graph)))))
    ]
    np.testing.assert_allclose(influence[0], sum(influence[1:]), rtol=1e-9)
    span = of_answer(graph, 1, 3)
    np.testing.assert_allclose(
        spread(span.edges, row_scale(span.edges), target_weights(span)), influence[2] + influence[3], rtol=1e-9
    )
    one = flow_to(graph, graph.layout.logit_index(answer_targets(graph)[1]))
    assert one.through[graph.layout.tokens] @ np.ones(len(graph.tokens)) > 0
    with pytest.raises(ValueError, match="the answer has"):
        of_answer(graph, 90)


def test_show_reads_influence_on_one_token(graph, tmp_path):
    graph.save(tmp_path / "g.safetensors")
    one = run("show", tmp_path / "g.safetensors", "--of", "1")
    assert one.exit_code == 0, one.output
    shown = graph.target_name(answer_targets(graph)[1])
    assert f"Strongest paths to {shown}" in one.stdout
    assert "3 for one, 2:5 for several" in error_of("show", tmp_path / "g.safetensors", "--of", "first")
    assert "the answer has" in error_of("show", tmp_path / "g.safetensors", "--of", "7:99")


def test_template_tokens_are_marked_and_hidden(graph, tmp_path):
    names = graph.names()[0]
    assert all(
        (name.startswith("‹") and name.endswith("›")) == (p in graph.spans.template) for p, name in enumerate(names)
    )
    pruned = prune(graph)
    hidden = without_template(pruned)
    _, positions = places(graph)
    kept = [node for node in hidden.kept_nodes() if graph.layout.kind(node) != "logit"]
    assert kept
    assert not {int(positions[node]) for node in kept} & graph.spans.template
    assert {node for node in pruned.kept_nodes() if int(positions[node]) not in graph.spans.template} <= set(
        hidden.kept_nodes()
    )
    pruned.save(tmp_path / "g.safetensors")
    outputs = [tmp_path / "g.svg", tmp_path / "g.html", tmp_path / "g.json"]
    result = run("show", tmp_path / "g.safetensors", "--hide-template", *(x for o in outputs for x in ("-o", o)))
    assert result.exit_code == 0, result.output
    assert '"hideTemplate":true' in outputs[1].read_text("utf-8").replace(" ", "")
    content = json.loads(outputs[2].read_text())
    assert content["metadata"]["generation_settings"]["conversation"]["answer"] == list(graph.spans.answer)
    assert not {node["ctx_idx"] for node in content["nodes"] if node["feature_type"] != "logit"} & graph.spans.template


def test_generate_then_trace(chat, tmp_path):
    folder, options = chat
    path = tmp_path / "g.safetensors"
    result = run("trace", "--messages", folder / "chat.json", "--generate", 3, *options, "-o", path, "-q")
    assert result.exit_code == 0, result.output
    graph = AttributionGraph.load(path)
    model = ReplacementModel.from_pretrained(chat[1][1], chat[1][3], device="cpu")
    asked = model.conversation(ASK)
    expected = model.generate(list(asked), max_new_tokens=3).tokens_rt[0].tolist()
    start, stop = graph.spans.answer
    assert graph.tokens[start:stop].tolist() == expected[: stop - start]
    plain = trace(model, asked.answered(expected[: stop - start]))
    assert plain.logit_tokens.tolist() == graph.logit_tokens.tolist()


def test_a_text_may_be_answered_too(chat):
    result = run("trace", "Paris", "--answer", " Austin", *chat[1])
    assert result.exit_code == 0, result.output
    assert "the whole answer: log p" in result.stdout


def test_other_verbs_read_conversations(chat, tmp_path):
    folder, options = chat
    given = ["--messages", folder / "chat.json"]
    report = tmp_path / "i.json"
    result = run("intervene", *given, "--answer", ANSWER, "--ablate", "L0/3", *options, "-o", report)
    assert result.exit_code == 0, result.output
    answer = json.loads(report.read_text())["answer"]
    assert answer[0]["string"] == "Austin"
    assert "all of it" in result.stdout
    result = run("validate", *given, "--sources", 8, "--features", 4, *options)
    assert result.exit_code == 0, result.output
    read = tmp_path / "r.json"
    result = run("read", *given, *options, "--hide-template", "-o", read)
    assert result.exit_code == 0, result.output
    content = json.loads(read.read_text())
    assert content["template"]
    assert not {latent["position"] for latent in content["latents"]} & set(content["template"])


def test_a_plan_counts_the_tokens_of_a_conversation(chat):
    folder, options = chat
    assert run("trace", "--messages", folder / "chat.json", "--explain", *options).exit_code == 0


def test_what_is_wrong_is_one_line(chat, tmp_path):
    folder, options = chat
    (tmp_path / "broken.json").write_text("[{")
    assert "broken.json: not JSON" in error_of("trace", "--messages", tmp_path / "broken.json", *options)
    messages = ["--messages", folder / "chat.json"]
    assert "the answer is empty" in error_of("trace", *messages, "--answer", " ", *options)
    bare, transcoders = write_chat_model(tmp_path, template=None)
    bare_options = ["-m", bare, "-t", transcoders, "--device", "cpu"]
    assert "has no chat template" in error_of("trace", *messages, *bare_options)
    assert run("read", *messages, *bare_options, "--chat-template", folder / "chat.jinja").exit_code == 0
    assert "no such file" in error_of("read", *messages, *bare_options, "--chat-template", tmp_path / "none")
    assert "leaves room for" in error_of("trace", *messages, "--generate", 10**6, *options)


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace",),
        ("trace", "Paris", "--messages", "x.json"),
        ("trace", "Paris", "--answer", "a", "--generate", 2),
        ("validate",),
        ("validate", "g.safetensors", "--answer", "a"),
        ("read", "Paris", "--messages", "x.json"),
    ],
)
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2
