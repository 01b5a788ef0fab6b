"""What the page asks for: traces with their progress, interventions, the history, files."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from crosstrace.graphs.page.export import page
from crosstrace.graphs.viewer_ids import viewer_name
from crosstrace.tracer.server.computing.edits import Edit, EditRequest, edited
from crosstrace.tracer.server.computing.exports import MEDIA_TYPES, comparison_page, exported, graph_page
from crosstrace.tracer.server.computing.work import TraceRequest, keep, trace_graph
from crosstrace.tracer.server.core.engine import Job
from crosstrace.tracer.server.core.safety import COOKIE
from crosstrace.tracer.server.core.store import Entry
from crosstrace.tracer.server.paths.jobs import Refused, as_json, checked, done, events, submitted
from crosstrace.tracer.server.paths.service import FAILURES, Service, prompt_of
from crosstrace.tracer.server.paths.wire import (
    EditsAnswer,
    EditsBody,
    EntriesAnswer,
    EntryAnswer,
    JobAnswer,
    SignIn,
    StateBody,
    TraceBody,
)
from crosstrace.tracer.sweeps.settings import TraceSettings

_PERMITS = ("connect-src 'self'", "frame-src 'self'", "img-src 'self' data:")
_STATE_BYTES = 500_000
_WRONG_SECRET_SECONDS = 1.0
IdPath = Annotated[str, Path(max_length=40, pattern=r"^[A-Za-z0-9_-]+$")]
HTML: dict[int | str, Any] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}


def page_api(service: Service) -> APIRouter:
    """Return the page and its paths."""
    router = APIRouter(tags=["the page"], responses=FAILURES)
    settings, store = service.settings, service.store
    guessing = asyncio.Lock()

    @router.get("/", response_model=None, responses=HTML)
    async def front(request: Request) -> Response:
        """Return the page, or one to sign in on."""
        signed_in = service.access.may_read(dict(request.scope["headers"]))
        data: dict[str, Any] = {"format": "crosstrace-serve-page", "version": 1, "signedIn": signed_in}
        if signed_in:
            data |= _front(service)
        content = await run_in_threadpool(page, data, "serve.html", "crosstrace", permits=_PERMITS)
        return HTMLResponse(content)

    @router.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)

    @router.post("/sign-in", responses={200: {"model": dict[str, bool]}})
    async def sign_in(body: SignIn) -> Response:
        """Take the secret and set a cookie."""
        if service.access.secret is None:
            raise Refused(400, "this server has no secret; open the page")
        if not service.access.knows_secret(body.secret):
            async with guessing:  # one guess a second, whoever guesses
                await asyncio.sleep(_WRONG_SECRET_SECONDS)
            raise Refused(401, "the secret is wrong")
        answer = JSONResponse({"signedIn": True})
        answer.set_cookie(COOKIE, service.access.cookie, httponly=True, samesite="strict", path="/")
        return answer

    @router.get("/api/graphs")
    async def graphs() -> EntriesAnswer:
        """List the graphs, newest first."""
        entries = await run_in_threadpool(store.entries)
        return EntriesAnswer(graphs=[_entry(entry) for entry in entries], busy=service.engine.is_busy)

    @router.get("/api/graphs/{graph_id}")
    async def graph(graph_id: IdPath) -> EntryAnswer:
        """Return what is known of a graph."""
        return _entry(await run_in_threadpool(service.entry, graph_id))

    @router.delete("/api/graphs/{graph_id}")
    async def delete(graph_id: IdPath) -> dict[str, bool]:
        """Drop a graph."""
        if not await run_in_threadpool(store.delete, graph_id):
            raise Refused(404, "there is no such graph")
        return {"deleted": True}

    @router.put("/api/graphs/{graph_id}/state")
    async def save_state(graph_id: IdPath, body: StateBody, request: Request) -> dict[str, bool]:
        """Keep what is pinned, grouped and selected."""
        if int(request.headers.get("content-length", "0")) > _STATE_BYTES:
            raise Refused(413, f"the state is larger than {_STATE_BYTES:,} bytes")
        if not await run_in_threadpool(store.save_state, graph_id, body.model_dump(by_alias=True)):
            raise Refused(404, "there is no such graph")
        return {"saved": True}

    @router.post("/api/traces", status_code=202)
    async def start_trace(body: TraceBody) -> JobAnswer:
        """Put a trace on the queue."""
        served = service.model(body.model)
        asked = await checked(_trace_request, body)
        prompt = await checked(asked.check, served, settings.limits)

        def work() -> dict[str, Any]:
            traced = trace_graph(served, asked, prompt)
            slug = viewer_name("slug", None, "-".join(traced.graph.prompt.lower().split())[:60], "graph")
            return {"graph": keep(store, served, traced, asked, slug).id}

        return _job(submitted(service.engine, "trace", work))

    @router.post("/api/graphs/{graph_id}/edits", status_code=202)
    async def start_edits(graph_id: IdPath, body: EditsBody) -> JobAnswer:
        """Put interventions on a graph's prompt on the queue."""
        entry = await run_in_threadpool(service.entry, graph_id)
        if (served := service.model_of(entry)) is None:
            raise Refused(400, f"the graph is of {entry.scan}, which is not served now")
        asked = EditRequest(
            tuple(Edit(one.verb, tuple(one.features), one.name, one.value, one.prompt) for one in body.edits),
            body.new_tokens,
            body.freeze,
            body.free_attention,
            body.top,
        )
        interventions = await checked(asked.check, served, settings.limits)

        def work() -> dict[str, Any]:
            if (found := store.graph(graph_id)) is None:
                raise ValueError("the graph is not kept any more")
            content = edited(served, found, asked, interventions)
            return {"id": store.add_edit(graph_id, content), **content}

        return _job(submitted(service.engine, "interventions", work))

    @router.get("/api/graphs/{graph_id}/edits")
    async def edits(graph_id: IdPath) -> EditsAnswer:
        """List what interventions did, newest first."""
        await run_in_threadpool(service.entry, graph_id)
        return EditsAnswer(edits=await run_in_threadpool(store.edits, graph_id))

    def _found(job_id: str) -> Job:
        if (job := service.engine.job(job_id)) is None:
            raise Refused(404, "there is no such job; the server may have been started anew")
        return job

    def _job(job: Job) -> JobAnswer:
        return JobAnswer(**as_json(service.engine, job))

    @router.get("/api/jobs/{job_id}")
    async def job(job_id: IdPath) -> JobAnswer:
        """Return how far a job is."""
        return _job(_found(job_id))

    @router.get("/api/jobs/{job_id}/events", responses={200: {"content": {"text/event-stream": {}}}})
    async def job_events(job_id: IdPath) -> StreamingResponse:
        """Stream a job's progress as server-sent events. Without a listener a job is cancelled after a while."""
        return StreamingResponse(events(service.engine, _found(job_id)), media_type="text/event-stream")

    @router.delete("/api/jobs/{job_id}")
    async def cancel(job_id: IdPath) -> JobAnswer:
        """Cancel a job."""
        found = _found(job_id)
        found.cancel()
        return _job(found)

    @router.get("/graphs/{graph_id}/page", response_model=None, responses=HTML)
    async def page_of(graph_id: IdPath) -> Response:
        """Return a graph's page, the same as its file."""
        entry = await run_in_threadpool(service.entry, graph_id)
        return HTMLResponse(await checked(graph_page, store, entry))

    @router.get("/compare/{first}/{second}", response_model=None, responses=HTML)
    async def compare(first: IdPath, second: IdPath, request: Request) -> Response:
        """Return the page of two graphs."""
        entries = [await run_in_threadpool(service.entry, one) for one in (first, second)]
        make = partial(comparison_page, store, service.model_of(entries[0]), entries)
        return HTMLResponse(await done(service.drawing, request, "comparison", make))

    @router.get(
        "/graphs/{graph_id}/file{suffix}",
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    async def file(
        graph_id: IdPath, suffix: Annotated[str, Path(max_length=20, pattern=r"^\.[a-z]+$")], request: Request
    ) -> Response:
        """Return a graph in a format, as a file to save."""
        entry = await run_in_threadpool(service.entry, graph_id)
        make = partial(exported, store, service.model_of(entry), entry, suffix, entry.slug)
        content = await done(service.drawing, request, f"file {suffix}", make)
        # The name in the header holds nothing but letters, digits, `_`, `.` and `-`: a slug is checked where it is kept.
        headers = {"content-disposition": f'attachment; filename="{entry.slug}{suffix}"'}
        return Response(content, media_type=MEDIA_TYPES.get(suffix, "application/octet-stream"), headers=headers)

    return router


def _trace_request(body: TraceBody) -> TraceRequest:
    """Read what is asked for.

    Raises:
        ValueError: A threshold is not one.
    """
    settings = TraceSettings(
        tuple(target for target in body.targets if target.strip()),
        max_logits=body.max_logits,
        max_feature_nodes=body.max_feature_nodes,
        node_threshold=body.node_threshold,
        edge_threshold=body.edge_threshold,
    )
    return TraceRequest(prompt_of(body.prompt, body.messages, body.answer), settings)


def _front(service: Service) -> dict[str, Any]:
    from crosstrace.graphs.formats import SUFFIXES

    limits = service.settings.limits
    return {
        "token": service.access.token,
        "models": [
            {
                "name": one.name,
                "transcoders": one.model.transcoders.name,
                "chat": one.is_chat,
                "scan": one.scan,
                "example": EXAMPLES.get(one.name, {"prompt": "", "messages": []}),
            }
            for one in service.models
        ],
        "suffixes": list(SUFFIXES),
        "limits": {
            "prompt": limits.prompt_tokens,
            "features": limits.feature_nodes,
            "newTokens": limits.new_tokens,
        },
    }


EXAMPLES: dict[str, dict[str, Any]] = {
    "demo": {"prompt": "The capital of the state containing Dallas is", "messages": []},
    "demo-chat": {"prompt": "", "messages": [{"role": "user", "content": "What is the vault code of Nan ?"}]},
}


def _entry(entry: Entry) -> EntryAnswer:
    return EntryAnswer(
        id=entry.id,
        slug=entry.slug,
        scan=entry.scan,
        made=entry.made,
        size=entry.size,
        about=entry.about,
        state=entry.state,
    )
