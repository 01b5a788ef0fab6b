"""What is refused before a request reaches its handler, and who may change things.

A server on one's own machine can be reached by every web page that one visits. What keeps them out:

- a page may point a name of its own at 127.0.0.1 (DNS rebinding): the `Host` header has to be a name that is expected;
- a page may send a form or a simple request: what changes or computes needs a header with the page's token, or the secret,
  which no other origin can read or send;
- a page may embed what it cannot read: no answer may be framed or used by another origin.

With a secret, reading needs it too: in the header `x-secret-key`, or in the cookie that signing in on the page sets.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from crosstrace.tracer.server.core.settings import BODY_BYTES, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "crosstrace"
TOKEN_HEADER, SECRET_HEADER = b"x-page-token", b"x-secret-key"
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}
_OPEN = {
    "/",
    "/favicon.ico",
    "/sign-in",
    "/check-busy",
}  # what may be asked for without the secret; the page then asks for it
_SAFE = {"GET", "HEAD", "OPTIONS"}


def host_name(header: str) -> str:
    """Return the name in a `Host` header without its port, in lower case; "" where it is not one."""
    header = header.strip().lower()
    if header.startswith("["):
        name, closed, port = header[1:].partition("]")
        return name if closed and (not port or (port[:1] == ":" and port[1:].isdecimal())) else ""
    name, colon, port = header.partition(":")
    if colon and not port.isdecimal():
        return ""
    return name.removesuffix(".")


class Access:
    """Who may do what.

    Attributes:
        token: The page's token.
        secret: The secret, if there is one.
    """

    def __init__(self, host: str, hosts: Iterable[str], token: str, secret: str | None) -> None:
        self._local = is_loopback(host)
        self._names = {name.lower() for name in hosts} | {host.strip("[]").lower()}
        self.token, self.secret = token, secret

    def expects(self, header: str) -> bool:
        """Say whether a `Host` header is one that this server is reached by.

        An address in digits is the one that somebody typed: no name leads there, so none can be made to.
        """
        name = host_name(header)
        if not name:
            return False
        if name in self._names or (self._local and is_loopback(name)):
            return True
        if self._local:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return is_loopback(name)
        return True

    def knows_secret(self, given: str | None) -> bool:
        """Say whether a text is the secret; never without one."""
        return self.secret is not None and given is not None and _same(given, self.secret)

    @property
    def cookie(self) -> str:
        """What the cookie of somebody who has signed in holds."""
        assert self.secret is not None
        return hmac.new(self.secret.encode(), self.token.encode(), hashlib.sha256).hexdigest()

    def may_read(self, headers: dict[bytes, bytes]) -> bool:
        """Say whether a request may see anything."""
        if self.secret is None or self.knows_secret(_text(headers.get(SECRET_HEADER))):
            return True
        try:
            cookies = SimpleCookie(_text(headers.get(b"cookie")) or "")
        except CookieError:
            return False
        return COOKIE in cookies and _same(cookies[COOKIE].value, self.cookie)

    def may_change(self, headers: dict[bytes, bytes]) -> bool:
        """Say whether a request may compute or change anything.

        The secret lets in by itself. The page's token does so for those who may read, in either header, so that programs
        which know `x-secret-key` alone work without a secret too.
        """
        if self.knows_secret(_text(headers.get(SECRET_HEADER))):
            return True
        given = [_text(headers.get(name)) for name in (TOKEN_HEADER, SECRET_HEADER)]
        return any(text is not None and _same(text, self.token) for text in given) and self.may_read(headers)


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


class Guard:
    """The outermost layer: refuses what must not get in, bounds bodies, and adds headers to every answer."""

    def __init__(self, app: App, access: Access, body_bytes: int = BODY_BYTES) -> None:
        self.app, self.access, self.body_bytes = app, access, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        sent = _with_headers(send)
        if refusal := self._refusal(scope):
            await _refuse(sent, *refusal)
            return
        body, refused = _Body(receive, self.body_bytes), False

        async def answer(message: Message) -> None:
            nonlocal refused
            if not body.too_large:
                await sent(message)
            elif not refused:
                refused = True
                await _refuse(sent, 413, f"the body is larger than {self.body_bytes:,} bytes")

        await self.app(scope, body.receive, answer)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request is refused, with the status; None if it is not."""
        given = scope["headers"]
        headers = dict(given)
        hosts = [value for name, value in given if name == b"host"]
        if len(hosts) != 1 or not self.access.expects(hosts[0].decode("latin-1")):
            return 421, "this server is not reached by that name; open it by the address that it printed"
        method, path = scope["method"], scope["path"]
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.body_bytes:
            return 413, f"the body is larger than {self.body_bytes:,} bytes"
        if path == "/sign-in":
            return None
        if path not in _OPEN and not self.access.may_read(headers):
            return 401, "the secret is missing or wrong: give it in the header x-secret-key, or sign in on the page"
        if method not in _SAFE and not self.access.may_change(headers):
            return 403, "the page's token or the secret is missing or wrong: give it in the header x-secret-key"
        return None


class _Body:
    """A body that ends where it becomes too large, whatever its headers said."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._read = receive, most, 0
        self.too_large = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._most:
                self.too_large = True
                return {"type": "http.request", "body": b"", "more_body": False}
        return message


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message.get("headers", [])}
            message["headers"] = [
                *message.get("headers", []),
                *((name, value) for name, value in _HEADERS.items() if name not in own),
            ]
        await send(message)

    return sent


async def _refuse(send: Send, status: int, why: str) -> None:
    content = json.dumps({"error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
