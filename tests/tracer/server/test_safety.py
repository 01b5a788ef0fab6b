"""Attacks on a server, each of them tried."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import ssl
import subprocess
import threading
import time
from typing import ClassVar

import pytest

pytest.importorskip("fastapi")

from server_client import asked, traced

from crosstrace.tracer.server.core.safety import Access, host_name
from crosstrace.tracer.server.core.settings import ServeSettings, is_loopback
from crosstrace.tracer.server.core.uploads import Uploads, is_public

PROMPT = "The capital of the state containing Dallas is"
GRAPH = {"model_id": "demo", "slug_identifier": "dallas", "prompt": PROMPT}
CHANGES = [
    ("POST", "/api/traces", {"prompt": PROMPT}),
    ("POST", "/generate-graph", GRAPH),
    ("POST", "/forward-pass", {"prompt": PROMPT}),
    ("POST", "/steer", {"model_id": "demo", "prompt": PROMPT, "features": []}),
    ("POST", "/parse-chat-prompt", {"prompt": PROMPT}),
    ("POST", "/save_graph/crosstrace-demo/dallas", {"qParams": {}}),
    ("POST", "/api/graphs/abc/edits", {"edits": []}),
    ("PUT", "/api/graphs/abc/state", {}),
    ("DELETE", "/api/graphs/abc", None),
    ("DELETE", "/api/jobs/abc", None),
]
READS = [
    "/api/graphs",
    "/api/graphs/abc",
    "/graphs/abc/page",
    "/graphs/abc/file.json",
    "/data/graph-metadata.json",
    "/openapi.json",
    "/api/jobs/abc/events",
]


# DNS rebinding


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "evil.example:5004",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "127.0.0.1:5004@evil.example",
        "[::1",
        "127.0.0.1:",
        "192.168.1.2",
        "0.0.0.0",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/graphs", "/check-busy"])
def test_a_name_that_somebody_else_points_here_is_refused(client, name, path):
    answer = client.get(path, headers={"host": name})
    assert answer.status_code == 421
    assert "not reached by that name" in answer.json()["error"]


@pytest.mark.parametrize(
    "name", ["127.0.0.1:5004", "localhost:9000", "LOCALHOST", "[::1]:5004", "127.0.0.2", "localhost."]
)
def test_this_machine_is_reached_by_its_own_names(client, name):
    assert client.get("/check-busy", headers={"host": name}).status_code == 200


def test_a_second_host_header_does_not_help(client):
    headers = [(b"host", b"127.0.0.1"), (b"host", b"evil.example")]
    assert asked(client.app, "GET", "/check-busy", headers)[0] == 421
    assert asked(client.app, "GET", "/check-busy", [])[0] == 421
    assert asked(client.app, "GET", "/check-busy", headers[:1])[0] == 200


def test_on_a_network_only_addresses_and_named_hosts_lead_here():
    access = Access("0.0.0.0", ["microscope.lab"], "token", "a long secret")
    assert all(access.expects(name) for name in ("192.168.1.2:5004", "microscope.lab", "[fe80::1]", "localhost"))
    assert not any(access.expects(name) for name in ("evil.example", "microscope.lab.evil.example", "lab"))


# Other pages of the same browser


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_nothing_is_changed_or_computed_without_the_token(stranger, method, path, body):
    client = stranger
    before = client.get("/api/graphs").json()["graphs"]
    for headers in (
        {},
        {"x-page-token": "guess"},
        {"x-secret-key": ""},
        {"cookie": "crosstrace=guess"},
        {"origin": "http://evil.example"},
    ):
        answer = client.request(method, path, json=body, headers=headers)
        assert answer.status_code == 403, (headers, answer.text)
    form = client.request(method, path, content=b"prompt=x", headers={"content-type": "text/plain"})
    assert form.status_code == 403
    assert client.get("/api/graphs").json()["graphs"] == before


def test_the_token_is_not_in_what_another_origin_can_read(client):
    token = client.headers["x-page-token"]
    page = client.get("/")
    assert token in page.text
    for answer in (page, client.get("/api/graphs")):
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert all(token not in client.get(path).text for path in ("/api/graphs", "/openapi.json", "/check-busy"))


def test_a_preflight_request_of_another_origin_is_not_allowed(client):
    answer = client.options(
        "/api/traces", headers={"origin": "http://evil.example", "access-control-request-method": "POST"}
    )
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


# The secret


def test_an_address_that_others_reach_needs_a_secret(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.2", "microscope.lab"):
        with pytest.raises(ValueError, match="needs a secret"):
            ServeSettings(tmp_path, host)
        ServeSettings(tmp_path, host, "a long secret")
    with pytest.raises(ValueError, match="fewer than 8"):
        ServeSettings(tmp_path, secret="short")
    assert all(map(is_loopback, ("127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil", "")))


@pytest.mark.parametrize("path", READS)
def test_with_a_secret_nothing_can_be_read_without_it(guarded, path):
    client = guarded
    for headers in (
        {},
        {"x-secret-key": "a long secre"},
        {"x-secret-key": "a long secret "},
        {"cookie": "crosstrace=x"},
    ):
        assert client.get(path, headers=headers).status_code == 401
    assert client.get(path, headers={"x-secret-key": "a long secret"}).status_code in (200, 404)


def test_with_a_secret_the_page_gives_nothing_away_before_one_has_signed_in(start):
    client = start(token=False, secret="a long secret")
    token = client.app.state.service.access.token
    assert token not in client.get("/").text
    assert client.post("/api/traces", json={"prompt": PROMPT}, headers={"x-page-token": token}).status_code == 401
    began = time.monotonic()
    assert client.post("/sign-in", json={"secret": "guess"}).status_code == 401
    assert time.monotonic() - began > 0.9  # guessing is slow
    answer = client.post("/sign-in", json={"secret": "a long secret"})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "a long secret" not in cookie
    assert token in client.get("/").text
    assert client.get("/api/graphs").status_code == 200
    assert client.post("/api/traces", json={"prompt": PROMPT}).status_code == 403  # the cookie alone does not do
    assert client.post("/forward-pass", json={"prompt": PROMPT}, headers={"x-page-token": token}).status_code == 200


def test_the_secret_alone_lets_programs_in(guarded):
    answer = guarded.post("/forward-pass", json={"prompt": PROMPT}, headers={"x-secret-key": "a long secret"})
    assert answer.json()["salient_logits"][0]["token"] == "Austin"


# Paths


@pytest.mark.parametrize(
    "slug",
    ["../graphs", "..%2F..%2Fetc%2Fpasswd", "%2e%2e%2fgraphs", "....//x", "a\x00b", "%00", "C:\\x", "graphs.sqlite"],
)
@pytest.mark.parametrize(
    "path",
    [
        "/graph_data/{}.json",
        "/data/{}.json",
        "/graph_data/{}",
        "/features/{}/1.json",
        "/save_graph/crosstrace-demo/{}",
        "/graphs/{}/page",
        "/compare/{}/{}",
    ],
)
def test_no_name_becomes_a_path(client, slug, path):
    method = "POST" if path.startswith("/save") else "GET"
    headers = [(b"host", b"127.0.0.1"), (b"x-page-token", client.headers["x-page-token"].encode())]
    body = b'{"qParams": {}}' if method == "POST" else b""
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    status, content = asked(client.app, method, path.replace("{}", slug), headers, body)
    assert status in (404, 405, 422)
    assert not {b"SQLite", b"root:"} & {content[:6], content[:5]}


@pytest.mark.parametrize("slug", ["../../x", "a/b", "", "a" * 121, "x\n", 'a"b', "ä"])
def test_a_slug_is_letters_and_digits_or_refused(client, slug):
    answer = client.post("/generate-graph", json={**GRAPH, "slug_identifier": slug})
    assert answer.status_code == 422


def test_a_format_is_looked_up(client):
    graph_id = traced(client)
    for suffix in (".exe", ".safetensor", ".sqlite"):
        assert client.get(f"/graphs/{graph_id}/file{suffix}").status_code == 400
    for suffix in ("", "/../../x", ".%2e/x"):
        assert client.get(f"/graphs/{graph_id}/file{suffix}").status_code in (404, 422)


# Nothing else can be loaded


@pytest.mark.parametrize("name", ["google/gemma-3-27b", "/etc", "../demo", "gemma.gguf", "crosstrace-demo/../x"])
def test_no_request_names_another_model_or_file(client, name):
    for path, body in (
        ("/generate-graph", {**GRAPH, "model_id": name}),
        ("/steer", {"model_id": name, "prompt": PROMPT, "features": []}),
        ("/api/traces", {"model": name, "prompt": PROMPT}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert "is not served here; known are demo, demo-chat" in answer.json()["error"]


def test_a_prompt_that_names_a_file_is_only_text(client, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("Dallas")
    for text in (str(secret), f"@{secret}", "-"):
        answer = client.post("/forward-pass", json={"prompt": text}).json()
        assert "Dallas" not in json.dumps(answer)


# Bodies


def test_a_body_that_is_too_large_is_refused_whatever_its_header_says(client):
    large = b'{"prompt": "' + b"x" * 1_000_001 + b'"}'
    for send in (large, (large[i : i + 65536] for i in range(0, len(large), 65536))):  # the second has no length
        answer = client.post("/forward-pass", content=send, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert "larger than 1,000,000 bytes" in answer.json()["error"]
    lying = client.post("/forward-pass", content=b"{}", headers={"content-length": "99999999999"})
    assert lying.status_code == 413


def test_deep_and_strange_json_is_refused(client):
    for content in (b"[" * 100_000, b'{"prompt": NaN}', b'{"a":' * 50_000, b"\xff\xfe", b'{"prompt": "\\ud800"}', b""):
        answer = client.post("/forward-pass", content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 422), content[:20]
        assert answer.status_code != 200 or "error" in answer.json()


def test_numbers_that_are_none_are_refused(client):
    for value in ("NaN", "Infinity", "1e999", "-1e999"):
        content = f'{{"model_id":"demo","slug_identifier":"a","prompt":"Dallas","node_threshold":{value}}}'
        answer = client.post("/generate-graph", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 422


# Uploads


@pytest.mark.parametrize("url", ["https://example.org/x", "http://example.org/x"])
def test_uploads_are_off_unless_asked_for(client, url):
    answer = client.post("/generate-graph", json={**GRAPH, "signed_url": url})
    assert answer.status_code == 400
    assert "--allow-uploads" in answer.json()["error"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/x", "https"),
        ("ftp://example.org/x", "https"),
        ("file:///etc/passwd", "https"),
        ("https://user:word@example.org/x", "without user name"),
        ("https://127.0.0.1/x", "not on the public network"),
        ("https://localhost/x", "not on the public network"),
        ("https://10.0.0.1/x", "not on the public network"),
        ("https://169.254.169.254/latest/meta-data", "not on the public network"),
        ("https://[::1]/x", "not on the public network"),
        ("https://[::ffff:127.0.0.1]/x", "not on the public network"),
        ("https://0x7f000001/x", "public network|cannot be found"),
        ("https://2130706433/x", "public network|cannot be found"),
        ("https://127.0.0.1:5004/x", "usual port"),
        ("https://example.org:99999/x", "cannot be read"),
        ("https:///x", "https"),
        ("https://8.8.8.8/a\r\nHost: evil", "characters|cannot be read"),
    ],
)
def test_only_public_https_addresses_are_spoken_to(uploading, url, said):
    answer = uploading.post("/generate-graph", json={**GRAPH, "signed_url": url})
    assert answer.status_code == 400
    assert re.search(said, answer.json()["error"])


def test_which_addresses_are_public():
    assert all(map(is_public, ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8")))
    private = (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fc00::1",
        "fe80::1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
    )
    assert not any(map(is_public, private))


class Bucket(http.server.BaseHTTPRequestHandler):
    """Takes what is put under /ok; sends everything else on to a machine that must not be reached."""

    received: ClassVar[list[tuple[str, dict, bytes]]] = []

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        Bucket.received.append((self.path, dict(self.headers), body))
        self.send_response(200 if self.path.startswith("/ok") else 307)
        self.send_header("location", "http://127.0.0.1:1/")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(tmp_path):
    """An https server on this machine, and how it may be spoken to."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run(command, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(certificate, key)
    server.socket = inside.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Bucket.received.clear()
    outside = ssl.create_default_context(cafile=certificate)
    yield server.server_port, lambda permits: Uploads(True, server.server_port, permits, outside)
    server.shutdown()


def test_a_graph_is_sent_whole_and_redirects_are_not_followed(start, bucket):
    import gzip

    port, uploads = bucket
    client = start(uploads=uploads(lambda address: address == "127.0.0.1"))
    url = f"https://localhost:{port}/ok?signature=a%2Fb"
    answer = client.post("/generate-graph", json={**GRAPH, "signed_url": url, "compress": True})
    assert answer.json() == {"success": "the graph was uploaded"}
    path, headers, body = Bucket.received[0]
    assert (path, headers["Content-Encoding"]) == ("/ok?signature=a%2Fb", "gzip")
    assert json.loads(gzip.decompress(body)) == client.post("/generate-graph", json=GRAPH).json()
    refused = client.post("/generate-graph", json={**GRAPH, "signed_url": f"https://localhost:{port}/elsewhere"})
    assert refused.status_code == 400
    assert "answered 307" in refused.json()["error"]
    assert len(Bucket.received) == 2


def test_a_name_that_changes_its_address_gains_nothing(bucket, monkeypatch):
    """The address that was checked is the one that is connected to, whatever the name leads to a moment later."""
    import socket

    port, uploads = bucket
    answers = iter(["127.0.0.1", "10.9.9.9", "10.9.9.9"])
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, **_: (
            [(0, 0, 0, "", (next(answers), port))] if host == "localhost" else pytest.fail(f"looked up {host}")
        ),
    )
    connected = []
    create = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda place, timeout=None: connected.append(place) or create_raw(place)
    )

    def create_raw(place):
        found = socket.socket()
        found.connect(place)
        return found

    del create
    sender = uploads(lambda address: address == "127.0.0.1")
    sender.put(f"https://localhost:{port}/ok", b"{}", False)
    assert connected == [("127.0.0.1", port)]
    with pytest.raises(ValueError, match="not on the public network"):
        sender.put(f"https://localhost:{port}/ok", b"{}", False)


def test_a_certificate_of_another_name_is_refused(bucket):
    port, uploads = bucket
    with pytest.raises(OSError, match="the upload failed"):
        uploads(lambda address: True).put(f"https://127.0.0.1:{port}/ok", b"{}", False)
    assert not Bucket.received


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("a.b:80", "a.b"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("A.B.", "a.b"),
        ("a:b", ""),
        ("[::1]x", ""),
        ("[::1", ""),
    ],
)
def test_the_name_in_a_host_header(header, name):
    assert host_name(header) == name
