"""Shared by all tests: markers and the cases with exact answers."""

from __future__ import annotations

import os

import pytest
import torch
from cases import CASE_NAMES, Case, load_case

# The models here are tiny: a second thread gains nothing, and spins wherever the machine is busy with something else.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so are those in the processes that tests start
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses deterministic algorithms


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests marked slow too")
    parser.addoption("--real", action="store_true", help="run tests on the real Gemma 3 270M too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if "real" in item.keywords and not config.getoption("--real"):
            item.add_marker(pytest.mark.skip(reason="on the real Gemma 3 270M; run with make test-real"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(params=CASE_NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return load_case(request.param)
