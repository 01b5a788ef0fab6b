"""What tests of the server ask it for."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote

HERE = "http://127.0.0.1:5004"
PROMPT = "The capital of the state containing Dallas is"


def finished(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Follow a job's events to the last one."""
    last = job
    with client.stream("GET", f"/api/jobs/{job['id']}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
    return last


def traced(client: Any, **body: Any) -> str:
    """Trace, wait, and return the graph's id."""
    answer = client.post("/api/traces", json={"prompt": PROMPT, **body} if "messages" not in body else body)
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json())
    assert job["state"] == "done", job
    return str(job["result"]["graph"])


def asked(
    app: Any, method: str, raw_path: str, headers: list[tuple[bytes, bytes]], body: bytes = b""
) -> tuple[int, bytes]:
    """Ask an application as a server hands it a request whose path and headers no client would send."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": method,
        "path": unquote(raw_path, errors="replace"),
        "raw_path": raw_path.encode("latin-1"),
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])
