"""Requests that ask for too much get one clear line, and work ends when nobody waits for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

pytest.importorskip("fastapi")

from server_client import PROMPT, finished, traced

from crosstrace.tracer.server.core.settings import Limits
from crosstrace.tracer.server.paths.jobs import Refused, done, events


@pytest.fixture
def small(start):
    return start(limits=Limits(prompt_tokens=12, feature_nodes=40, new_tokens=3, queue=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "Dallas " * 20}, "the prompt has 21 tokens; this server takes at most 12"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"max_feature_nodes": 41}, "max_feature_nodes must be 0 to 40, not 41"),
        ({"max_logits": 0}, "max_logits must be 1 to 40, not 0"),
        ({"node_threshold": 1.5}, "node_threshold must be"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "has no chat template"),
        ({"model": "demo-chat", "messages": [{"role": "wizard", "content": "Hi"}]}, "role 'wizard'"),
        ({"model": "demo-chat", "messages": [{"role": "user", "content": " "}]}, "message 1 (user) is empty"),
    ],
)
def test_a_trace_that_asks_for_too_much_is_one_clear_line(small, change, said):
    answer = small.post("/api/traces", json={"prompt": PROMPT, **change})
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_what_can_only_be_found_later_ends_the_job_with_a_line(small):
    answer = small.post("/api/traces", json={"prompt": PROMPT, "targets": ['" nowhere"']})
    job = finished(small, answer.json())
    assert job["state"] == "failed"
    assert "nowhere" in job["error"]


def test_nodes_are_capped_as_asked(small):
    graph_id = traced(small, max_feature_nodes=30)
    graph = small.app.state.service.store.graph(graph_id)
    assert len(graph.selected_features) == 30


def test_a_full_queue_says_so_and_when_to_come_back(small):
    engine, let_go = small.app.state.service.engine, threading.Event()
    jobs = [engine.submit("held", let_go.wait)]
    while jobs[0].state != "running":
        let_go.wait(0.005)
    jobs += [engine.submit("waits", lambda: None) for _ in range(2)]
    assert small.get("/check-busy").json() == {"busy": True}
    for path, body in (("/api/traces", {"prompt": PROMPT}), ("/forward-pass", {"prompt": PROMPT})):
        answer = small.post(path, json=body)
        assert answer.status_code == 503
        assert "2 requests are waiting already" in answer.json()["error"]
        assert answer.headers["retry-after"]
    let_go.set()
    assert all(job.wait(10) for job in jobs)
    assert small.get("/check-busy").json() == {"busy": False}


def test_work_whose_client_goes_away_is_cancelled(small):
    engine, began = small.app.state.service.engine, threading.Event()
    seen = []

    def work():
        from crosstrace.tracer.progress import row_progress

        with row_progress(10**9) as advance:
            began.set()
            while True:
                advance(1)

    class Gone:
        async def is_disconnected(self):
            return began.is_set()

    async def ask():
        with pytest.raises(Refused) as refused:
            await done(engine, Gone(), "work", work)
        seen.append(refused.value.status_code)

    asyncio.run(ask())
    assert seen == [499]
    deadline = threading.Event()
    while engine.is_busy:
        deadline.wait(0.01)


def test_whoever_follows_a_job_is_counted_until_the_page_is_closed(small):
    engine, let_go = small.app.state.service.engine, threading.Event()
    job = engine.submit("held", let_go.wait)

    async def follow():
        told = events(engine, job)
        assert (await anext(told)).startswith("data: {")
        assert job.watchers == 1
        before = job.unwatched_since
        await told.aclose()  # what the server does when the connection is closed
        assert job.watchers == 0
        assert job.unwatched_since > before

    asyncio.run(follow())
    let_go.set()
    assert job.wait(10)


def test_a_job_can_be_cancelled_and_asked_about(small):
    engine, let_go = small.app.state.service.engine, threading.Event()
    held = engine.submit("held", let_go.wait)
    job = small.post("/api/traces", json={"prompt": PROMPT}).json()
    assert (job["state"], job["before"]) == ("waiting", 1)
    assert small.delete(f"/api/jobs/{job['id']}").status_code == 200
    let_go.set()
    assert held.wait(10)
    assert finished(small, job)["state"] == "cancelled"
    assert small.get(f"/api/jobs/{job['id']}").json()["state"] == "cancelled"
    assert small.get("/api/jobs/none").status_code == 404
    assert small.get("/api/graphs").json()["graphs"] == []
