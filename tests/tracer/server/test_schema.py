"""Requests made up from the server's own OpenAPI document, valid and not: no fault of the program, no undocumented answer."""

from __future__ import annotations

import contextlib

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from crosstrace.tracer.server.app import create_app
from crosstrace.tracer.server.core.settings import Limits, ServeSettings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_made_up_requests(served, tmp_path, mode):
    limits = Limits(prompt_tokens=16, feature_nodes=60, new_tokens=2)
    app = create_app(served, ServeSettings(tmp_path, limits=limits))
    headers = {"host": "127.0.0.1", "x-page-token": app.state.service.access.token}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    asked = 0
    with TestClient(app):
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(
                max_examples=3,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                nonlocal asked
                asked += 1
                case.call_and_validate(headers=headers, checks=CHECKS)

            with contextlib.suppress(Unsatisfiable):  # nothing that could be wrong in it
                check()
    assert asked > 30
