"""Every Triton kernel, in Triton's interpreter: a run of the kernel tests in a process that starts with it switched on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_samples import PATHS
from places import ROOT

from crosstrace.kernels.dispatch import triton_interpreted

HERE = Path(__file__).parent
FILES = ("test_encoding.py", "test_decoding.py", "test_scoring.py", "test_offsets.py", "backward/test_backward.py")


@pytest.mark.skipif("triton" in PATHS, reason="the Triton kernels are tested in this process already")
def test_triton_paths_equal_the_reference():
    files = [HERE / name for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", *map(str, files)]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout
    assert int(passed[1]) > 150
    assert not triton_interpreted()
