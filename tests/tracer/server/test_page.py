"""What the page asks for: graphs that are kept, interventions with what the graph predicts, files in every format."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("fastapi")

from server_client import PROMPT, finished, traced
from typer.testing import CliRunner

from crosstrace.graphs import read_graph
from crosstrace.graphs.formats import SUFFIXES
from crosstrace.tracer.commands.app import app as command_line
from crosstrace.tracer.server.computing.edits import predicted_change
from crosstrace.tracer.validation.total_effects import total_effects


@pytest.fixture(scope="module")
def graph_id(client):
    return traced(client)


@pytest.fixture(scope="module")
def graph(client, graph_id):
    return client.app.state.service.store.graph(graph_id)


def edit(client, graph_id, edits, **settings):
    answer = client.post(f"/api/graphs/{graph_id}/edits", json={"edits": edits, **settings})
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json())
    assert job["state"] == "done", job
    return job["result"]


def strongest(graph, n=3):
    """The features with the largest direct effect on the first target, as they are written."""
    row = np.abs(graph.edges[[graph.layout.logits.start]].toarray()[0][graph.layout.features])
    return [graph.feature_of(int(node)) for node in np.argsort(-row)[:n]]


def written(layer, position, feature):
    return f"L{layer}/{feature}@{position}"


def test_a_trace_is_followed_kept_and_shown_as_its_file(client, graph_id, tmp_path):
    entry = client.get(f"/api/graphs/{graph_id}").json()
    assert (entry["about"]["answer"], entry["about"]["model"], entry["scan"]) == ("Austin", "demo", "crosstrace-demo")
    assert entry["about"]["asked"]["prompt"] == PROMPT
    assert client.get("/api/graphs").json()["graphs"][0]["id"] == graph_id
    path = tmp_path / "graph.html"
    assert CliRunner().invoke(command_line, ["trace", PROMPT, "-q", "-o", str(path)]).exit_code == 0
    shown = client.get(f"/graphs/{graph_id}/page")
    assert shown.headers["content-type"].startswith("text/html")
    assert shown.content == path.read_bytes()


@pytest.mark.parametrize("suffix", list(SUFFIXES))
def test_every_format_is_saved_under_a_name(client, graph_id, graph, suffix, tmp_path):
    answer = client.get(f"/graphs/{graph_id}/file{suffix}")
    assert answer.status_code == 200, answer.text
    name = re.fullmatch(r'attachment; filename="([A-Za-z0-9_.-]+)"', answer.headers["content-disposition"])
    assert name is not None
    assert name[1].endswith(suffix)
    begins = {".json": b"{", ".html": b"<!doctype html>", ".png": b"\x89PNG", ".pdf": b"%PDF", ".dot": b"digraph"}
    assert answer.content.lstrip().startswith(begins.get(suffix, b""))
    if suffix == ".safetensors":
        (tmp_path / "graph.safetensors").write_bytes(answer.content)
        assert (read_graph(tmp_path / "graph.safetensors").edges != graph.edges).nnz == 0


def test_state_is_kept_and_goes_into_the_files(client, graph):
    graph_id = traced(client)
    ids = [f"{layer}_{feature}_{position}" for layer, position, feature in strongest(graph)]
    state = {"qParams": {"pinnedIds": ids, "supernodes": [["<b>two</b>", *ids[:2]]]}, "fragment": "view=graph"}
    assert client.put(f"/api/graphs/{graph_id}/state", json=state).json() == {"saved": True}
    assert client.get(f"/api/graphs/{graph_id}").json()["state"] == state
    content = client.get(f"/graphs/{graph_id}/file.json").json()
    assert content["qParams"]["supernodes"] == [["<b>two</b>", *ids[:2]]]
    assert "&lt;b&gt;two" in client.get(f"/graphs/{graph_id}/file.svg").text
    assert client.delete(f"/api/graphs/{graph_id}").json() == {"deleted": True}
    for path in ("", "/state", "/edits"):
        assert (
            client.request(
                "PUT" if path == "/state" else "GET", f"/api/graphs/{graph_id}{path}", json=state
            ).status_code
            == 404
        )


def test_removing_what_carries_the_answer_changes_it(client, graph_id, graph):
    place = strongest(graph, 1)[0]
    result = edit(client, graph_id, [{"verb": "ablate", "features": [written(*place)]}], new_tokens=2)
    before, after = result["before"][0], next(row for row in result["after"] if True)
    assert before["string"] == "Austin"
    assert result["before"][0]["after"] < result["before"][0]["before"]
    assert result["generated_before"].strip().startswith("Austin")
    assert after["after"] == max(row["after"] for row in result["after"])
    kept = client.get(f"/api/graphs/{graph_id}/edits").json()["edits"]
    assert kept[0]["id"] == result["id"]
    assert kept[0]["edits"][0]["features"] == [written(*place)]


@pytest.mark.parametrize(
    ("verb", "value"), [("ablate", 0), ("scale", 0.5), ("scale", 2), ("scale", -1), ("add", 0.3), ("set", 0.1)]
)
def test_with_all_else_held_the_graph_predicts_exactly_what_is_measured(client, graph_id, graph, verb, value):
    """Direct effects are the edges: prediction and measurement come from different code and have to agree."""
    features = [written(*place) for place in strongest(graph)]
    edits = [{"verb": verb, "features": features, "name": "group", "value": value}]
    (row,) = edit(client, graph_id, edits, freeze="direct")["predicted"]
    assert row["string"] == "Austin"
    assert row["predicted"] == pytest.approx(row["measured"], rel=1e-3, abs=1e-3)
    assert abs(row["measured"]) > 0.05


def test_the_prediction_over_all_paths_is_that_of_validation(served, graph):
    model = served[0].model
    found = total_effects(model, model.local(graph.tokens), graph, 0, 6, 0)
    from crosstrace.replacement_model import Ablate, FeatureAt

    places = {graph.describe(node): graph.feature_of(node) for node in range(graph.layout.n_features)}
    for source, is_group, predicted in zip(found.sources, found.is_supernode, found.predicted, strict=True):
        if not is_group:
            layer, position, feature = places[source]
            change = predicted_change(graph, 0, [Ablate(FeatureAt(layer, feature, position))])
            assert change == pytest.approx(-predicted)


def test_what_the_graph_cannot_predict_is_left_open(client, graph_id):
    absent = [{"verb": "add", "features": ["L5/1"], "value": 5.0}]
    assert edit(client, graph_id, absent)["predicted"][0]["predicted"] is None
    swapped = [{"verb": "swap-in", "features": ["L0/120@7"], "prompt": PROMPT.replace("Dallas", "Oakland")}]
    assert edit(client, graph_id, swapped)["predicted"][0]["predicted"] is None


@pytest.mark.parametrize(
    ("edits", "settings", "said"),
    [
        ([], {}, "give 1 to 50 interventions"),
        ([{"verb": "melt", "features": ["L0/1"]}], {}, "unknown intervention 'melt'"),
        ([{"verb": "ablate", "features": []}], {}, "names 1 to 1,000 features, not 0"),
        ([{"verb": "ablate", "features": ["Texas <b>"]}], {}, "cannot be read; write L3/417"),
        ([{"verb": "ablate", "features": ["L0/x"]}], {}, "cannot be read"),
        ([{"verb": "swap-in", "features": ["L0/1"], "prompt": ""}], {}, "the prompt is empty"),
        ([{"verb": "ablate", "features": ["L0/1"]}], {"new_tokens": 65}, "new_tokens must be 0 to 64"),
        ([{"verb": "ablate", "features": ["L0/1"]}], {"top": 0}, "top must be 1 to 100"),
    ],
)
def test_changes_that_cannot_be_made_are_one_clear_line(client, graph_id, edits, settings, said):
    answer = client.post(f"/api/graphs/{graph_id}/edits", json={"edits": edits, **settings})
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("feature", "freeze", "said"),
    [("L99/1", "iterative", "99"), ("L0/1@99", "iterative", "99"), ("L0/1", "melted", "unknown freeze")],
)
def test_changes_that_the_model_refuses_end_with_a_line(client, graph_id, feature, freeze, said):
    body = {"edits": [{"verb": "ablate", "features": [feature]}], "freeze": freeze}
    job = finished(client, client.post(f"/api/graphs/{graph_id}/edits", json=body).json())
    assert (job["state"], said in job["error"]) == ("failed", True)


def test_two_graphs_are_on_one_page(client, graph_id):
    other = traced(client, prompt=PROMPT.replace("Dallas", "Oakland"))
    page = client.get(f"/compare/{graph_id}/{other}")
    assert page.status_code == 200
    assert "Oakland" in page.text
    chat = traced(client, model="demo-chat", messages=[{"role": "user", "content": "Which state is Dallas in ?"}])
    refused = client.get(f"/compare/{graph_id}/{chat}")
    assert refused.status_code == 400
    assert client.get(f"/compare/{graph_id}/none").status_code == 404


def test_an_answer_that_is_read_is_explained_and_its_changes_measured_token_by_token(client):
    messages = [{"role": "user", "content": "Which state is Dallas in ?"}]
    graph_id = traced(client, model="demo-chat", messages=messages, answer="Dallas is in Texas .")
    graph = client.app.state.service.store.graph(graph_id)
    place = strongest(graph, 1)[0]
    result = edit(client, graph_id, [{"verb": "ablate", "features": [written(*place)]}], new_tokens=5)
    assert [row["string"] for row in result["answer"]] == ["Dallas", "is", "in", "Texas", "."]
    assert result["generated_after"] is None


def test_the_page_holds_its_data_as_text_and_lets_only_its_own_script_run(client):
    page = client.get("/").text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    content = json.loads(data[1])
    assert [model["name"] for model in content["models"]] == ["demo", "demo-chat"]
    assert content["suffixes"] == list(SUFFIXES)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1].replace("&#x27;", "'")
    assert "unsafe" not in policy[1]


def test_a_server_that_is_started_anew_knows_the_graphs_and_the_page_that_is_open(start, tmp_path):
    first = start(folder=tmp_path / "same")
    graph_id, token = traced(first), first.headers["x-page-token"]
    first.app.state.service.store.close()
    second = start(folder=tmp_path / "same")
    assert second.headers["x-page-token"] == token
    assert second.get(f"/graphs/{graph_id}/page").status_code == 200
    assert traced(second) != graph_id
