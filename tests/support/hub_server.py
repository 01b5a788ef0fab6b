"""A hub to test against: the few endpoints of the Hugging Face hub that loading uses, served from local folders."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Repositories by name, each a folder; ``gated`` ones refuse their files.

    Attributes:
        sent: bytes of file contents sent, by path.
    """

    def __init__(self, repositories: dict[str, Path], gated: frozenset[str] = frozenset()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.gated = repositories, gated
        self.sent: dict[str, int] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written apart: the second would wait 40 ms for the first
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        form = self.rfile.read(length).decode()
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", unquote(self.path))
        if match is None or match[1] not in self.server.repositories:
            return self._refuse(404, "RepoNotFound")
        folder = self.server.repositories[match[1]]
        asked = json.loads(form)["paths"] if form.startswith("{") else re.findall(r"paths=([^&]+)", unquote(form))
        self._json([_entry(folder, folder / path) for path in asked if (folder / path).exists()])

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
        if api:
            repo, kind, revision, inner = api.groups()
            if repo not in self.server.repositories:
                return self._refuse(404, "RepoNotFound")
            if revision not in (None, "main", COMMIT):
                return self._refuse(404, "RevisionNotFound")
            folder = self.server.repositories[repo]
            if kind == "tree":
                return self._json([_entry(folder, at) for at in sorted((folder / (inner or "")).rglob("*"))])
            files = [at for at in sorted(folder.rglob("*")) if at.is_file()]
            siblings = [{"rfilename": str(at.relative_to(folder))} for at in files]
            return self._json({"id": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not resolve or resolve[1] not in self.server.repositories:
            return self._refuse(404, "RepoNotFound")
        if resolve[1] in self.server.gated:
            return self._refuse(403, "GatedRepo")
        file = self.server.repositories[resolve[1]] / resolve[3]
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        self._file(file)

    def _file(self, file: Path) -> None:
        content, status = file.read_bytes(), 200
        headers = {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, stop = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
            content, status = content[start : stop + 1], 206
        if self.command == "GET":
            self.server.sent[file.name] = self.server.sent.get(file.name, 0) + len(content)
        self._send(status, content, headers)

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(folder: Path, at: Path) -> dict[str, object]:
    path = str(at.relative_to(folder))
    if at.is_dir():
        return {"type": "directory", "oid": COMMIT, "size": 0, "path": path}
    return {"type": "file", "oid": _digest(at), "size": at.stat().st_size, "path": path}


@contextmanager
def serving(server: HubServer) -> Iterator[HubServer]:
    """Serve from a thread while the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
