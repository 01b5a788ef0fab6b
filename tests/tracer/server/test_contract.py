"""What programs ask for: Neuronpedia's graph server contract and circuit-tracer's local paths."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import jsonschema
import pytest

pytest.importorskip("fastapi")

from server_client import PROMPT, traced
from typer.testing import CliRunner

from crosstrace.graphs.viewer_ids import cantor_pairing
from crosstrace.replacement_model import Ablate, FeatureAt, Freeze, Set
from crosstrace.tracer.commands.app import app as command_line
from crosstrace.tracer.server.paths.viewer_paths import uncantor

GRAPH = {"model_id": "demo", "slug_identifier": "dallas", "prompt": PROMPT}
CONVERSATION = [{"role": "user", "content": "What is the vault code of Nan ?"}]
# Facts of the contract: for each path what a request must and may hold, and what an answer holds.
CONTRACT = {
    "/check-busy": ("get", set(), set(), {"busy"}),
    "/generate-graph": (
        "post",
        {"model_id", "slug_identifier"},
        {
            "prompt",
            "messages",
            "batch_size",
            "max_n_logits",
            "desired_logit_prob",
            "node_threshold",
            "edge_threshold",
            "max_feature_nodes",
            "signed_url",
            "user_id",
            "compress",
            "enable_qk_tracing",
            "qk_top_fraction",
            "qk_topk",
        },
        {"success", "error"},
    ),
    "/forward-pass": (
        "post",
        set(),
        {"prompt", "messages", "max_n_logits", "desired_logit_prob"},
        {"prompt", "input_tokens", "salient_logits", "total_salient_tokens", "cumulative_probability"},
    ),
    "/steer": (
        "post",
        {"model_id", "features"},
        {"prompt", "messages", "n_tokens", "top_k", "temperature", "freq_penalty", "seed", "freeze_attention"},
        {"DEFAULT_GENERATION", "STEERED_GENERATION", "DEFAULT_LOGITS_BY_TOKEN", "STEERED_LOGITS_BY_TOKEN"},
    ),
    "/parse-chat-prompt": ("post", {"prompt"}, set(), {"messages", "is_chat", "prompt", "unsteerable_positions"}),
}
DEFAULTS = {
    "batch_size": 48, "max_n_logits": 10, "desired_logit_prob": 0.95, "node_threshold": 0.8, "edge_threshold": 0.98,
    "max_feature_nodes": 10_000, "compress": False, "enable_qk_tracing": False, "qk_topk": 10, "n_tokens": 10, "top_k": 5,
    "temperature": 0.0, "freq_penalty": 0, "freeze_attention": False, "prompt": "",
}  # fmt: skip
_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
# What Neuronpedia's schema of graphs asks of one, in small.
GRAPH_SCHEMA = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            "properties": {
                "slug": _TEXT, "scan": _TEXT, "prompt": _TEXT, "prompt_tokens": {"type": "array", "items": _TEXT},
                "node_threshold": _NUMBER, "schema_version": _NUMBER,
            },
        },
        "qParams": {
            "type": "object",
            "properties": {
                "pinnedIds": {"type": "array", "items": _TEXT},
                "supernodes": {"type": "array", "items": {"type": "array", "items": _TEXT}},
                "linkType": _TEXT, "clickedId": _TEXT, "sg_pos": _TEXT,
            },
        },
        "nodes": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
                "properties": {
                    "node_id": _TEXT, "feature": {"type": ["number", "null"]}, "layer": _TEXT, "ctx_idx": _NUMBER,
                    "feature_type": {"enum": ["cross layer transcoder", "mlp reconstruction error", "embedding", "logit"]},
                    "jsNodeId": _TEXT, "clerp": _TEXT, "influence": _NUMBER, "token_prob": _NUMBER,
                    "is_target_logit": {"type": "boolean"}, "activation": {"type": ["number", "null"]},
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {"source": _TEXT, "target": _TEXT, "weight": _NUMBER},
            },
        },
    },
}  # fmt: skip


def ask(client, path, body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def fetched(client):
    return client.post("/generate-graph", json=GRAPH)


# The contract


@pytest.mark.parametrize("path", CONTRACT)
def test_paths_fields_and_defaults_are_those_of_the_contract(client, path):
    method, required, optional, answered = CONTRACT[path]
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    operation = document["paths"][path][method]

    def fields(schema):
        parts = schema.get("anyOf", [schema])
        named = [schemas[part["$ref"].rsplit("/", 1)[1]] for part in parts if "$ref" in part]
        return {name for part in named for name in part["properties"]}

    assert fields(operation["responses"]["200"]["content"]["application/json"]["schema"]) >= answered
    if method == "post":
        body = schemas[operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]]
        assert set(body.get("required", [])) == required
        assert set(body["properties"]) == required | optional
        given = {name: part["default"] for name, part in body["properties"].items() if part.get("default") is not None}
        assert all(DEFAULTS[name] == value for name, value in given.items() if name in DEFAULTS)
        assert {name for name in optional if name in DEFAULTS} <= set(given)


def test_a_fetched_graph_is_the_file_that_trace_writes(client, tmp_path):
    """The same settings on the command line give the same bytes, the name in viewers included."""
    path = tmp_path / "dallas.json"
    settings = ["--batch-size", "48", "--max-feature-nodes", "10000", "-q", "-o", str(path)]
    result = CliRunner().invoke(command_line, ["trace", PROMPT, *settings])
    assert result.exit_code == 0, result.output
    written = path.read_bytes()
    slug = json.loads(written)["metadata"]["slug"]
    assert client.post("/generate-graph", json={**GRAPH, "slug_identifier": slug}).content == written


def test_a_fetched_graph_has_the_shape_that_viewers_expect(fetched):
    jsonschema.Draft7Validator(GRAPH_SCHEMA).validate(fetched.json())


def test_a_conversation_and_settings_reach_the_trace(client, served, tmp_path):
    body = {
        "model_id": "demo-chat",
        "slug_identifier": "nan",
        "messages": CONVERSATION,
        "max_n_logits": 2,
        "desired_logit_prob": 1,
        "node_threshold": 0.5,
        "edge_threshold": 0.7,
        "max_feature_nodes": 50,
    }
    content = ask(client, "/generate-graph", body)
    settings = content["metadata"]["generation_settings"]
    assert (settings["max_logits"], settings["max_feature_nodes"]) == (2, 50)
    assert content["metadata"]["pruning_settings"] == {"node_threshold": 0.5, "edge_threshold": 0.7}
    messages, path = tmp_path / "chat.json", tmp_path / "graph.json"
    messages.write_text(json.dumps(CONVERSATION))
    flags = (
        "--max-logits 2 --logit-probability 1 --node-threshold 0.5 --edge-threshold 0.7 --max-feature-nodes 50 "
        "--batch-size 48 -q"
    )
    result = CliRunner().invoke(
        command_line, ["trace", "--model", "demo-chat", "--messages", str(messages), *flags.split(), "-o", str(path)]
    )
    assert result.exit_code == 0, result.output
    content["metadata"].pop("slug")
    expected = json.loads(path.read_text())
    expected["metadata"].pop("slug")
    assert content == expected


def test_attention_is_traced_where_it_is_asked_for(client):
    content = ask(
        client, "/generate-graph", {**GRAPH, "slug_identifier": "attention", "enable_qk_tracing": True, "qk_topk": 3}
    )
    results = [node["qk_tracing_results"] for node in content["nodes"] if "qk_tracing_results" in node]
    assert results
    assert all(len(one["pair_wise_contributors"]) <= 3 for one in results)


def test_forward_pass_lists_what_may_come_next(client, served):
    found = ask(client, "/forward-pass", {"prompt": PROMPT, "desired_logit_prob": 0.9999, "max_n_logits": 4})
    model = served[0].model
    logits = model.local(PROMPT).logits(len(model.tokenize(PROMPT)) - 1).double().softmax(-1)
    top = logits.topk(4)
    assert [one["token_id"] for one in found["salient_logits"]] == top.indices.tolist()[: found["total_salient_tokens"]]
    assert [one["probability"] for one in found["salient_logits"]] == pytest.approx(top.values.tolist())
    assert found["cumulative_probability"] == pytest.approx(sum(one["probability"] for one in found["salient_logits"]))
    assert found["input_tokens"] == ["<bos>", *PROMPT.split()]


@pytest.mark.parametrize(
    "body", [{}, {"prompt": " "}, {"prompt": PROMPT, "max_n_logits": 0}, {"prompt": PROMPT, "messages": CONVERSATION}]
)
def test_a_failed_forward_pass_says_why_with_status_200(client, body):
    assert set(ask(client, "/forward-pass", body)) == {"error"}


class TestSteer:
    FEATURES: ClassVar[list[dict]] = [
        {"layer": 0, "index": 120, "token_active_position": 7, "steer_position": 7, "ablate": True},
        {"layer": 2, "index": 183, "token_active_position": 8, "steer_position": 8, "delta": 2.5},
    ]

    def body(self, **change):
        return {"model_id": "demo", "prompt": PROMPT, "features": self.FEATURES, "n_tokens": 3, "top_k": 4, **change}

    def test_it_is_generation_with_features_set(self, client, served):
        found = ask(client, "/steer", self.body())
        model = served[0].model
        local = model.local(PROMPT)
        active = dict(
            zip(map(tuple, local.activations.indices.tolist()), local.activations.values.tolist(), strict=True)
        )
        before = active.get((2, 8, 183), 0.0)
        edits = [Ablate(FeatureAt(0, 120, 7)), Set(FeatureAt(2, 183, 8), before + 2.5)]
        made = model.generate(local, edits, 1, Freeze.iterative("free"), return_logits=True)
        probabilities = made.logits_rtv[0, 0].softmax(-1).topk(4)
        n_prompt = local.n_positions
        row = found["STEERED_LOGITS_BY_TOKEN"][n_prompt - 1]
        assert [one["prob"] for one in row["top_logits"]] == pytest.approx(probabilities.values.tolist(), abs=1e-5)
        assert all(not one["top_logits"] for one in found["STEERED_LOGITS_BY_TOKEN"][: n_prompt - 1])
        assert found["DEFAULT_GENERATION"].endswith("is Austin")
        assert found["DEFAULT_LOGITS_BY_TOKEN"][n_prompt]["token"] == "Austin"

    def test_attention_can_be_held(self, client):
        free, frozen = (ask(client, "/steer", self.body(freeze_attention=held)) for held in (False, True))
        assert free["DEFAULT_LOGITS_BY_TOKEN"] == frozen["DEFAULT_LOGITS_BY_TOKEN"]
        assert free["STEERED_LOGITS_BY_TOKEN"] != frozen["STEERED_LOGITS_BY_TOKEN"]

    def test_a_seed_makes_sampling_repeatable(self, client):
        made = [ask(client, "/steer", self.body(temperature=2.0, seed=3, freq_penalty=1.0)) for _ in range(2)]
        assert made[0] == made[1]
        others = [
            ask(client, "/steer", self.body(temperature=3.0, seed=seed))["DEFAULT_GENERATION"] for seed in range(6)
        ]
        assert len(set(others)) > 1

    def test_features_at_bos_are_left_out_as_parse_chat_prompt_says(self, client):
        places = ask(client, "/parse-chat-prompt", {"prompt": PROMPT})["unsteerable_positions"]
        assert places == [0]
        feature = {"layer": 0, "index": 120, "token_active_position": 0, "steer_position": 0, "delta": 100.0}
        found = ask(client, "/steer", self.body(features=[feature]))
        assert found["DEFAULT_LOGITS_BY_TOKEN"] == found["STEERED_LOGITS_BY_TOKEN"]

    @pytest.mark.parametrize(
        ("feature", "said"),
        [
            ({"ablate": True, "delta": 1.0}, "either ablate or a delta"),
            ({}, "either ablate or a delta"),
            ({"ablate": True, "steer_generated_tokens": True}, "either steer_generated_tokens or a steer_position"),
            ({"ablate": True, "steer_position": None}, "either steer_generated_tokens or a steer_position"),
            ({"ablate": True, "steer_position": 99}, "position 99 is not in the prompt"),
            ({"delta": 1.0, "token_active_position": -1}, "position -1 is not in the prompt"),
            ({"ablate": True, "layer": 99}, "99"),
            ({"ablate": True, "index": 10**6}, "1000000"),
        ],
    )
    def test_what_cannot_be_steered_is_one_clear_line(self, client, feature, said):
        whole = {"layer": 0, "index": 1, "token_active_position": 1, "steer_position": 1, **feature}
        answer = client.post("/steer", json=self.body(features=[whole]))
        assert answer.status_code == 400
        assert said in answer.json()["error"].replace(",", "") or said in answer.json()["error"]


def test_turns_are_found_in_the_prompt_of_a_graph(start, served):
    """A server of the chat model reads back what the template wrote, with the last turn open."""
    from fastapi.testclient import TestClient

    from crosstrace.tracer.server.app import create_app
    from crosstrace.tracer.server.core.settings import ServeSettings

    first = start()
    settings = ServeSettings(first.app.state.service.store.folder / "chat")
    model = served[1].model
    text = model.tokenizer.decode(list(model.conversation(CONVERSATION)))
    app = create_app([served[1]], settings)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.headers["x-page-token"] = app.state.service.access.token
        found = ask(client, "/parse-chat-prompt", {"prompt": text})
        assert found["is_chat"]
        assert found["messages"] == [*CONVERSATION, {"role": "assistant", "content": ""}]
        assert not found["prompt"].startswith("<bos>")
        plain = ask(client, "/parse-chat-prompt", {"prompt": "Nan is here"})
        assert (plain["is_chat"], plain["messages"], plain["prompt"]) == (False, None, "Nan is here")


def test_reading_a_chat_prompt_does_not_wait_for_the_model(client):
    import threading

    let_go = threading.Event()
    job = client.app.state.service.engine.submit("held", let_go.wait)
    assert ask(client, "/parse-chat-prompt", {"prompt": "x"})["is_chat"] is False
    assert client.get("/check-busy").json() == {"busy": True}
    let_go.set()
    assert job.wait(10)


# circuit-tracer's frontend


def test_graphs_are_listed_and_fetched_by_name(client, fetched):
    slug = GRAPH["slug_identifier"]
    listed = client.get("/data/graph-metadata.json").json()["graphs"]
    own = next(one for one in listed if one["slug"] == slug)
    assert (own["scan"], own["schema_version"]) == ("crosstrace-demo", 1)
    for path in (f"/graph_data/{slug}.json", f"/data/{slug}.json"):
        found = client.get(path).json()
        assert {**found, "metadata": 0} == {**fetched.json(), "metadata": 0}
    assert client.get("/graph_data/none.json").status_code == 404


def test_what_the_frontend_saves_is_in_the_graph_that_it_fetches_next(client):
    graph_id = traced(client)
    slug = client.get(f"/api/graphs/{graph_id}").json()["slug"]
    nodes = client.get(f"/graph_data/{slug}.json").json()["nodes"]
    features = [node["node_id"] for node in nodes if node["feature_type"] == "cross layer transcoder"][:3]
    saved = {"pinnedIds": features, "supernodes": [["two <b>", *features[:2]]]}
    answer = client.post(f"/save_graph/crosstrace-demo/{slug}", json={"qParams": {**saved, "unknown": 1}, "other": 2})
    assert answer.status_code == 200
    found = client.get(f"/graph_data/{slug}.json").json()["qParams"]
    assert {key: found[key] for key in saved} == saved
    # What names nodes that the graph lacks is kept, and left out where it cannot be used.
    assert (
        client.post(f"/save_graph/crosstrace-demo/{slug}", json={"qParams": {"pinnedIds": ["9_9_9"]}}).status_code
        == 200
    )
    assert client.get(f"/graph_data/{slug}.json").json()["qParams"]["pinnedIds"] == []
    assert client.post(f"/save_graph/other/{slug}", json={"qParams": {}}).status_code == 404


def test_feature_cards_are_found_by_the_number_in_the_nodes(client, served, fetched):
    nodes = fetched.json()["nodes"]
    feature = next(node for node in nodes if node["feature_type"] == "cross layer transcoder")
    card = client.get(f"/features/crosstrace-demo/{feature['feature']}.json").json()
    assert card["index"] == feature["feature"]
    assert card["examples_quantiles"][0]["examples"]
    assert client.get("/features/crosstrace-demo/999999999.json").status_code == 404
    assert client.get("/features/other/1.json").status_code == 404


@pytest.mark.parametrize("key", [(0, 0), (0, 41), (5, 0), (25, 262_143), (33, 17)])
def test_numbers_lead_back_to_layer_and_feature(key):
    assert uncantor(cantor_pairing(*key)) == key
    assert math.isfinite(uncantor(2**61)[0])
