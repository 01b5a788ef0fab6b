"""`crosstrace serve`: wrong options are one line before anything is loaded, and a process starts, answers and stops."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from crosstrace.tracer.commands.app import app

fastapi = pytest.importorskip("fastapi")


@pytest.fixture
def unloaded(monkeypatch):
    """A model that is loaded is a mistake."""
    from crosstrace.replacement_model import ReplacementModel

    monkeypatch.setattr(ReplacementModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--host", "0.0.0.0"], 1, "needs a secret"),
        (["--secret", "short"], 1, "fewer than 8 characters"),
        (["--keep", "much"], 1, "much"),
        (["--host", "203.0.113.7", "--secret", "a long secret"], 1, "cannot listen on 203.0.113.7"),
        (["--model", "google/gemma"], 2, "--model and --transcoders go together"),
        (["--port", "70000"], 2, "65535"),
    ],
)
def test_wrong_options_are_one_line_before_anything_is_loaded(unloaded, tmp_path, options, code, said):
    result = CliRunner().invoke(app, ["serve", "--folder", str(tmp_path), *options])
    assert result.exit_code == code
    assert said in re.sub(r"\s+", " ", re.sub("[│╭╮╰╯─]", "", result.output))


def test_a_taken_port_is_one_line(unloaded, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "--folder", str(tmp_path), "--port", str(port)])
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in result.output


def test_without_its_packages_a_line_says_how_to_install_them(unloaded, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "fastapi" else found(name, *rest)
    )
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 1
    assert 'serve needs fastapi; install with: pip install "crosstrace[serve]"' in result.output


def test_a_process_serves_within_its_budget_and_stops_when_told(tmp_path):
    start = "from crosstrace.tracer.commands.app import main; main()"
    options = [
        "--model",
        "demo",
        "--port",
        "0",
        "--folder",
        str(tmp_path),
        "--memory-budget",
        "50MB",
        "--secret",
        "a long secret",
    ]
    process = subprocess.Popen([sys.executable, "-c", start, "serve", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        port = int(re.search(r":(\d+)/", said)[1])
        assert said.startswith("serving demo at")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps(
            {"model_id": "demo", "slug_identifier": "a", "prompt": "The capital of the state containing Dallas is"}
        )
        connection.request(
            "POST", "/generate-graph", body, {"x-secret-key": "a long secret", "content-type": "application/json"}
        )
        answer = connection.getresponse()
        assert (answer.status, bool(json.loads(answer.read())["links"])) == (200, True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert [path.name for path in tmp_path.iterdir()] == ["graphs.sqlite"]
