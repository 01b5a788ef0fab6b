"""Servers of the embedded demo for the tests of this folder: the model is loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer.server.app import create_app
from crosstrace.tracer.server.core.models import Served
from crosstrace.tracer.server.core.settings import ServeSettings

HERE = "http://127.0.0.1:5004"
Start = Callable[..., TestClient]


def load(name: str) -> Served:
    return Served.of(ReplacementModel.from_pretrained(name), name)


@pytest.fixture(scope="session")
def served() -> list[Served]:
    return [load("demo"), load("demo-chat")]


@pytest.fixture
def start(served: list[Served], tmp_path: Path) -> Iterator[Start]:
    """Start a server; by default its client sends the page's token."""
    running: list[TestClient] = []

    def begin(token: bool = True, base: str = HERE, **settings: Any) -> TestClient:
        uploads = settings.pop("uploads", None)
        app = create_app(served, ServeSettings(settings.pop("folder", tmp_path / "kept"), **settings), uploads)
        client = TestClient(app, base_url=base, raise_server_exceptions=False)
        client.__enter__()
        running.append(client)
        if token:
            client.headers["x-page-token"] = app.state.service.access.token
        return client

    yield begin
    for client in running:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(served: list[Served], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server that the tests of a module share."""
    app = create_app(served, ServeSettings(tmp_path_factory.mktemp("kept")))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as found:
        found.headers["x-page-token"] = app.state.service.access.token
        yield found


@pytest.fixture(scope="module")
def stranger(client: TestClient) -> TestClient:
    """Somebody who can reach the shared server and does not know its token."""
    return TestClient(client.app, base_url=HERE, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def guarded(served: list[Served], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server with a secret, and a client that does not give it."""
    app = create_app(served, ServeSettings(tmp_path_factory.mktemp("guarded"), secret="a long secret"))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="module")
def uploading(served: list[Served], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server that may upload."""
    app = create_app(served, ServeSettings(tmp_path_factory.mktemp("uploading"), allow_uploads=True))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as found:
        found.headers["x-page-token"] = app.state.service.access.token
        yield found
