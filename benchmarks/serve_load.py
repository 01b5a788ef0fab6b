"""A server under load: many clients at once on the embedded demo, and a long prompt that must not hold up `/check-busy`.

    python benchmarks/serve_load.py [--clients 50] [--seconds 60]
    python benchmarks/serve_load.py --long 300 --model MODEL --transcoders T

The server is a process of its own, started as `crosstrace serve`. First an answer is checked, then it is timed. Every client
asks for a graph, the next token, a steered generation, the history and a page, in turn, each as soon as it has an answer.
Prints latencies and the server's memory; ends with 1 if any request failed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import machine

CITIES = ("Dallas", "Oakland", "Chicago", "Seattle", "Miami", "Houston", "Denver", "Atlanta")
PROMPT = "The capital of the state containing {} is"
KEPT = "20MB"  # so that old graphs go while it runs
LOOK_SECONDS = 0.05


class Server:
    """A `crosstrace serve` process."""

    def __init__(self, options: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="crosstrace-load-")
        command = [
            sys.executable,
            "-c",
            "from crosstrace.tracer.commands.app import main; main()",
            "serve",
            "--port",
            "0",
        ]
        command += ["--folder", self._folder.name, "--keep", KEPT, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port, self.key = 0, ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"at http://[^:]+:(\d+)/", line):
                self.port = int(found[1])
            if found := re.search(r"x-secret-key: (\S+)", line):
                self.key = found[1]
                return
        raise SystemExit("the server did not start")

    def memory(self, what: str = "VmRSS") -> int:
        """Bytes that the process holds, or held at most (`VmHWM`)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    @property
    def kept(self) -> int:
        """Bytes of its folder."""
        return sum(path.stat().st_size for path in Path(self._folder.name).iterdir())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self._folder.cleanup()


class Client:
    """One connection, which stays open."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        headers = {"x-secret-key": self._server.key, "content-type": "application/json"}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def requests(number: int) -> list[tuple[str, str, Any]]:
    """What a client asks for in turn."""
    prompt = PROMPT.format(CITIES[number % len(CITIES)])
    feature = {"layer": 0, "index": 120, "token_active_position": 7, "steer_position": 7, "ablate": True}
    return [
        ("POST", "/generate-graph", {"model_id": "demo", "slug_identifier": f"client-{number}", "prompt": prompt}),
        ("POST", "/forward-pass", {"prompt": prompt}),
        ("POST", "/steer", {"model_id": "demo", "prompt": prompt, "features": [feature], "n_tokens": 2}),
        ("GET", "/api/graphs", None),
        ("GET", "/", None),
    ]


def load(clients: int, seconds: float) -> int:
    """Many clients at once."""
    server = Server([])
    try:
        status, content = Client(server).ask(*requests(0)[0])
        assert status == 200, content[:300]
        assert json.loads(content)["links"]
        taken: dict[str, list[float]] = defaultdict(list)
        failures: list[str] = []
        memory: list[int] = []
        stop = time.monotonic() + seconds

        def run(number: int) -> None:
            client, own = Client(server), requests(number)
            turn = number
            while time.monotonic() < stop:
                method, path, body = own[turn % len(own)]
                began = time.monotonic()
                try:
                    status, content = client.ask(method, path, body)
                except (OSError, http.client.HTTPException) as problem:
                    failures.append(f"{path}: {problem!r}")
                    client = Client(server)
                    continue
                taken[path].append(time.monotonic() - began)
                if status != 200 or b'"error"' in content[:10]:
                    failures.append(f"{path}: {status} {content[:200]!r}")
                turn += 1

        def look() -> None:
            client = Client(server)
            while time.monotonic() < stop:
                began = time.monotonic()
                client.ask("GET", "/check-busy")
                taken["/check-busy"].append(time.monotonic() - began)
                memory.append(server.memory())
                time.sleep(LOOK_SECONDS)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(clients)] + [threading.Thread(target=look)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{clients} clients, {seconds:.0f} s, {machine()}")
        show(taken, seconds)
        third = len(memory) // 3
        print(
            f"memory of the server: {max(memory[:third]) / 1e6:,.0f} MB in the first third, "
            f"{max(memory[-third:]) / 1e6:,.0f} MB in the last, {server.memory('VmHWM') / 1e6:,.0f} MB at most; "
            f"its folder: {server.kept / 1e6:,.1f} MB (--keep {KEPT})"
        )
        print(f"{len(failures)} of {sum(map(len, taken.values())):,} requests failed")
        for failure in failures[:5]:
            print(" ", failure)
        return 1 if failures else 0
    finally:
        server.close()


def long_prompt(n_tokens: int, features: int, options: list[str]) -> int:
    """One long prompt, and `/check-busy` all the while."""
    server = Server([*options, "--max-tokens", str(n_tokens + 8)])
    try:
        words = (
            " the of and to in a is that for it as was with be by on not he I this are or his from at which but have an"
        )
        text = (words * (n_tokens // 28 + 1)).strip()
        client = Client(server)
        _, parsed = client.ask("POST", "/forward-pass", {"prompt": text[:60]})
        assert b"salient_logits" in parsed, parsed[:300]
        tokens = " ".join(text.split(" ")[: n_tokens - 1])
        taken: list[float] = []
        result: list[tuple[int, int, float]] = []
        name = options[options.index("--model") + 1]

        def trace() -> None:
            began = time.monotonic()
            body = {"model_id": name, "slug_identifier": "long", "prompt": tokens, "max_feature_nodes": features}
            status, content = Client(server).ask("POST", "/generate-graph", body)
            graph = json.loads(content)
            n_read = len(graph["metadata"]["prompt_tokens"]) if status == 200 else 0
            result.append((status, n_read, time.monotonic() - began))
            if status != 200:
                print(content[:300])

        tracing = threading.Thread(target=trace)
        tracing.start()
        busy = 0
        while tracing.is_alive():
            began = time.monotonic()
            _, content = client.ask("GET", "/check-busy")
            taken.append(time.monotonic() - began)
            busy += json.loads(content)["busy"]
            time.sleep(LOOK_SECONDS)
        tracing.join()
        status, n_read, seconds = result[0]
        print(f"one prompt of {n_read} tokens, {features:,} features, {machine()}: {seconds:.1f} s, status {status}")
        print(f"the server was busy in {busy} of {len(taken)} answers of /check-busy")
        show({"/check-busy": taken}, seconds)
        print(f"memory of the server: {server.memory('VmHWM') / 1e6:,.0f} MB at most")
        return 0 if status == 200 else 1
    finally:
        server.close()


def show(taken: dict[str, list[float]], seconds: float) -> None:
    """Print latencies by path."""
    print(f"{'path':20} {'answers':>8} {'a second':>9} {'median':>9} {'95 %':>9} {'99 %':>9} {'most':>9}")
    for path, values in taken.items():
        at = [f"{np.percentile(values, share) * 1000:,.0f} ms" for share in (50, 95, 99, 100)]
        print(f"{path:20} {len(values):8,} {len(values) / seconds:9.1f} {at[0]:>9} {at[1]:>9} {at[2]:>9} {at[3]:>9}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--long", type=int, metavar="TOKENS", help="one prompt of this length instead")
    parser.add_argument("--features", type=int, default=1000, help="features of its graph that get a row")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--transcoders")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.long is None:
        return load(given.clients, given.seconds)
    options = ["--model", given.model, *(["--transcoders", given.transcoders] if given.transcoders else [])]
    return long_prompt(given.long, given.features, options)


if __name__ == "__main__":
    sys.exit(main())
