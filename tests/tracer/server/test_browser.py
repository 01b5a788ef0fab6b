"""The page in a real browser, with a real server that is killed on the way.

`viewer/test/serve.mjs` does all checks in one go; each is a test here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("fastapi")

from places import VIEWER

SCRIPT = VIEWER / "test" / "serve.mjs"
CHECKS = re.findall(r'^  async "(.+)"\(\)', SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or shutil.which("node") is None:
        pytest.skip("chromium or node is not installed")
    if not (VIEWER / "node_modules" / "playwright-core").is_dir():
        pytest.skip("playwright-core is not installed: npm ci --prefix viewer")
    start = "from crosstrace.tracer.commands.app import main; main()"
    command = json.dumps([sys.executable, "-c", start, "serve"])
    folder = tmp_path_factory.mktemp("kept")
    done = subprocess.run(
        ["node", SCRIPT, command, folder, browser], capture_output=True, text=True, timeout=600, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return {result["check"]: result for result in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("check", CHECKS)
def test_page(results, check):
    assert not results[check]["problem"], results[check]["problem"]
