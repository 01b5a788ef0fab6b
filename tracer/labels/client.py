"""Requests to a server that speaks OpenAI's chat completions: llama.cpp, vLLM, Ollama, or a hosted one.

What a server refuses for now (429, 5xx) or does not answer is asked again, after what its `Retry-After` says or twice as long
each time; what it refuses for good ends the run in one line. Every request counts against the budget, repeated ones too.
"""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_MOST_BYTES = 4 * 2**20  # of an answer
_SAID = 200


class BudgetSpentError(Exception):
    """There are no requests left; what is known is kept."""


class StoppedError(Exception):
    """The run ends; other requests are not worth waiting for."""


class ServerError(OSError):
    """The server cannot be used; one line that names it and what it said."""


@dataclass(frozen=True)
class LabelServer:
    """Where to ask.

    Attributes:
        base_url: Up to `/chat/completions`, such as `http://localhost:8080/v1`.
        model: What the server calls the model.
        api_key: Sent as a bearer token; "" for none.
        timeout: Seconds to wait for an answer.
        retries: How often a request is repeated.
    """

    base_url: str
    model: str
    api_key: str = ""
    timeout: float = 120.0
    retries: int = 6

    @property
    def url(self) -> str:
        """The address of chat completions."""
        return f"{self.base_url.rstrip('/')}/chat/completions"


class ChatClient:
    """Asks a server; may be used by several threads.

    Attributes:
        server: The server.
        sent: Requests sent so far.
    """

    def __init__(
        self, server: LabelServer, budget: int | None = None, sleep: Callable[[float], object] | None = None
    ) -> None:
        """
        Args:
            server: The server.
            budget: The most requests; None for any number.
            sleep: Waits a number of seconds; None waits until then or until `stop` is called.

        Raises:
            ValueError: The address is not one of HTTP.
            ImportError: httpx is not installed.
        """
        try:
            import httpx
        except ImportError:
            raise ImportError('asking a server needs httpx: pip install "crosstrace[labels]"') from None
        if not server.base_url.startswith(("http://", "https://")):
            raise ValueError(f"--base-url {server.base_url!r} is not an address; write it as http://localhost:8080/v1")
        self.server, self.sent = server, 0
        self._budget, self._lock, self._stopped = budget, threading.Lock(), threading.Event()
        self._sleep = self._stopped.wait if sleep is None else sleep
        headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
        self._http = httpx.Client(timeout=server.timeout, headers=headers, follow_redirects=False)

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._http.close()

    def stop(self) -> None:
        """Let requests that wait for their turn give up."""
        self._stopped.set()

    def ask(self, system: str, user: str, most_tokens: int = 400) -> str:
        """Ask, and return the text of the answer.

        Args:
            system: What the model is to do.
            user: What it is about.
            most_tokens: The longest answer.

        Raises:
            BudgetSpentError: There are no requests left.
            StoppedError: `stop` was called.
            ServerError: The server refuses, or does not answer after all repetitions.
        """
        import httpx

        body = {
            "model": self.server.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": 0,
            "max_tokens": most_tokens,
            "stream": False,
        }
        problem = ""
        for turn in range(self.server.retries + 1):
            self._count()
            wait = None
            try:
                with self._http.stream("POST", self.server.url, json=body) as response:
                    if response.status_code == 200:
                        kind = response.headers.get("content-type", "")
                        return (
                            _streamed(response.iter_lines()) if "event-stream" in kind else _whole(_bounded(response))
                        )
                    said = _said(_bounded(response))
                    problem = f"{response.status_code} {response.reason_phrase}{said and ': ' + said}"
                    if response.status_code not in _AGAIN:
                        raise ServerError(f"{self.server.url} refuses: {problem}{self._hint(response.status_code)}")
                    wait = _retry_after(response.headers.get("retry-after"))
            except httpx.InvalidURL as wrong:
                raise ServerError(f"{self.server.url} is not an address: {wrong}") from None
            except httpx.HTTPError as failed:
                problem = str(failed) or type(failed).__name__
            except _BrokenAnswerError as broken:
                problem = str(broken)
            if turn < self.server.retries:
                backoff = min(_FIRST_WAIT * 2**turn, _LONGEST_WAIT) * (0.75 + random.random() / 2)
                self._sleep(backoff if wait is None else wait)
        raise ServerError(f"{self.server.url} does not answer after {self.server.retries + 1} requests: {problem}")

    def _count(self) -> None:
        if self._stopped.is_set():
            raise StoppedError
        with self._lock:
            if self._budget is not None and self.sent >= self._budget:
                raise BudgetSpentError
            self.sent += 1

    def _hint(self, status: int) -> str:
        if status == 401:
            return "; name the variable that holds the key with --api-key-env"
        return "; the address should end before /chat/completions" if status == 404 else ""


class _BrokenAnswerError(Exception):
    """What came back is not an answer."""


def _bounded(response: Any) -> bytes:
    parts, size = [], 0
    for part in response.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise _BrokenAnswerError(f"an answer of more than {_MOST_BYTES:,} bytes")
    return b"".join(parts)


def _whole(body: bytes) -> str:
    """The text of an answer that comes in one piece."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _BrokenAnswerError(f"not a chat completion: {_line(body)!r}") from None
    return text if isinstance(text, str) else ""


def _streamed(lines: Iterable[str]) -> str:
    """The text of an answer that comes as events, which some servers send unasked."""
    parts: list[str] = []
    size = 0
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return "".join(parts)
        if not data:
            continue
        try:
            event = json.loads(data)
            if event.get("error"):
                raise _BrokenAnswerError(f"an error in the stream: {_line(json.dumps(event['error']).encode())}")
            delta = event["choices"][0]["delta"].get("content") if event["choices"] else ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _BrokenAnswerError(f"not an event of a chat completion: {data[:_SAID]!r}") from None
        parts.append(delta if isinstance(delta, str) else "")
        size += len(parts[-1])
        if size > _MOST_BYTES:
            raise _BrokenAnswerError(f"an answer of more than {_MOST_BYTES:,} bytes")
    raise _BrokenAnswerError("the stream ended early")


def _said(body: bytes) -> str:
    """What an error says, on one line."""
    try:
        error = json.loads(body)
        error = error.get("error", error) if isinstance(error, dict) else error
        return _line(str(error.get("message", error) if isinstance(error, dict) else error).encode())
    except ValueError:
        return _line(body)


def _line(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:_SAID]


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait: a number, or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else None
