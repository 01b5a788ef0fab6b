"""A small server that answers as OpenAI's chat completions do: in one piece or streamed, with errors, limits and nonsense.

It is no language model: it names a feature after the token that is marked most often, and judges by the letter. `script` says
what becomes of the next requests: a status, a header, a body, a broken connection; then it answers as usual.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MARKED = re.compile(r"«(.*?)»")


@dataclass
class Answer:
    """What a request gets in place of the usual answer."""

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    text: str | None = None
    """The text of an otherwise usual answer."""


class ChatServer:
    """The server.

    Attributes:
        requests: The body of every request so far.
        script: Answers to the next requests, taken in turn.
        stream: Whether answers are streamed.
        key: The key that requests must have; "" for any.
        most_at_once: How many requests were under way at once at most.
        think: Called with each request before it is answered.
    """

    def __init__(self, address: str) -> None:
        self.base_url = address
        self.requests: list[dict[str, Any]] = []
        self.script: list[Answer] = []
        self.stream, self.key, self.most_at_once = False, "", 0
        self.think: Callable[[dict[str, Any]], Answer | None] = lambda body: None
        self.lock, self.under_way = threading.Lock(), 0


def data_of(body: dict[str, Any]) -> dict[str, Any]:
    """The data in a request, read as a careful model would: what is between the marker lines."""
    lines = body["messages"][1]["content"].splitlines()
    assert re.fullmatch(r"<data-[0-9a-f]{16}>", lines[0])
    assert lines[-1] == lines[0].replace("<", "</")
    return json.loads("\n".join(lines[1:-1]))


def usual(body: dict[str, Any]) -> str:
    """The usual answer: a label, or judgements."""
    data = data_of(body)
    if "examples" in data:
        marked = Counter(token.strip() for text in data["examples"] for token in _MARKED.findall(text))
        return json.dumps({"label": marked.most_common(1)[0][0]})
    word = data["label"].casefold()
    texts = data["texts"]
    if any("«" in text for text in texts):
        return json.dumps(
            [int(any(word == token.strip().casefold() for token in _MARKED.findall(text))) for text in texts]
        )
    return json.dumps([int(word in text.casefold()) for text in texts])


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Run a server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are written apart: the second would wait 40 ms for the first

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append(body)
                server.under_way += 1
                server.most_at_once = max(server.most_at_once, server.under_way)
                given = server.script.pop(0) if server.script else Answer()
            try:
                self._answer(body, server.think(body) or given)
            finally:
                with server.lock:
                    server.under_way -= 1

        def _answer(self, body: dict[str, Any], given: Answer) -> None:
            if self.path != "/v1/chat/completions":
                given = Answer(404, '{"error": {"message": "no such path"}}')
            elif server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                given = Answer(401, '{"error": {"message": "Incorrect API key provided"}}')
            if given.drop:
                self.close_connection = True
                self.connection.close()
                return
            text = usual(body) if given.text is None else given.text
            if given.body is not None or given.status != 200:
                self._send(given.status, (given.body or "").encode(), given.headers)
            elif server.stream:
                pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
                events = [{"choices": [{"delta": {"content": piece}}]} for piece in ("", *pieces)]
                lines = [": keep-alive", *(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
                self._send(
                    200, "".join(f"{line}\n\n" for line in lines).encode(), {"Content-Type": "text/event-stream"}
                )
            else:
                whole = {"choices": [{"message": {"role": "assistant", "content": text}}]}
                self._send(200, json.dumps(whole).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # clients that hang up
    server = ChatServer(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
