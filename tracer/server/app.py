"""Puts the server together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from importlib import metadata

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from crosstrace.tracer.server.core.engine import Engine
from crosstrace.tracer.server.core.models import Models, Served
from crosstrace.tracer.server.core.safety import Access, Guard
from crosstrace.tracer.server.core.settings import ServeSettings
from crosstrace.tracer.server.core.store import GraphStore
from crosstrace.tracer.server.core.uploads import Uploads
from crosstrace.tracer.server.paths.contract import contract
from crosstrace.tracer.server.paths.jobs import cancel_unwatched
from crosstrace.tracer.server.paths.page_api import page_api
from crosstrace.tracer.server.paths.service import Service
from crosstrace.tracer.server.paths.viewer_paths import viewer_paths

_FILES_WAITING = 32


def create_app(models: Iterable[Served], settings: ServeSettings, uploads: Uploads | None = None) -> FastAPI:
    """Return a server of some models, an ASGI application for uvicorn.

    Args:
        models: What it serves; no request can name anything else.
        settings: What it may do.
        uploads: How graphs are sent to signed URLs; None: as the settings say.

    Raises:
        OSError: The folder cannot be used.
        ValueError: Its database is damaged.

    Example:
        >>> app = create_app([load_served("demo")], ServeSettings(Path("serve")))
        >>> uvicorn.run(app, port=5004)
    """
    store = GraphStore(settings.folder, settings.kept_bytes)
    access = Access(settings.host, settings.hosts, store.token, settings.secret)
    service = Service(
        settings,
        Models(models),
        store,
        Engine(settings.limits.queue),
        Engine(_FILES_WAITING),
        access,
        uploads or Uploads(settings.allow_uploads),
    )

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(cancel_unwatched(service.engine))
        yield
        sweeping.cancel()
        service.engine.close()
        service.drawing.close()
        store.close()

    app = FastAPI(
        title="crosstrace",
        version=metadata.version("crosstrace"),
        summary="Attribution graphs of Gemma 3: Neuronpedia's graph server contract, and a page.",
        lifespan=living,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
    )
    for router in (contract(service), viewer_paths(service), page_api(service)):
        app.include_router(router)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, problem: HTTPException) -> JSONResponse:
        headers = {"retry-after": "5"} if problem.status_code == 503 else None
        return JSONResponse({"error": str(problem.detail)}, problem.status_code, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        # Without what was sent, which may be anything, also what JSON cannot hold.
        detail = [{key: error[key] for key in ("type", "loc", "msg")} for error in problem.errors()]
        return JSONResponse({"detail": detail}, 422)

    @app.exception_handler(RecursionError)
    async def too_deep(request: Request, problem: RecursionError) -> JSONResponse:
        return JSONResponse({"error": "the body is nested too deep"}, 400)

    app.add_middleware(Guard, access=access)
    app.state.service = service
    return app
