"""The paths that circuit-tracer's frontend asks its local server for, answered from the database and the feature cards.

A path names a graph by its slug, which is looked up and never becomes a path of a file.
"""

from __future__ import annotations

import json
from functools import partial
from math import isqrt
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from crosstrace.graphs.analysis.defaults import NODE_THRESHOLD
from crosstrace.graphs.cards.neuronpedia import card_as_json
from crosstrace.tracer.server.computing.exports import exported
from crosstrace.tracer.server.paths.jobs import Refused, done
from crosstrace.tracer.server.paths.service import FAILURES, Service
from crosstrace.tracer.server.paths.wire import SavedGraph

SlugPath = Annotated[str, Path(max_length=120, pattern=r"^[A-Za-z0-9_.-]+$")]


def viewer_paths(service: Service) -> APIRouter:
    """Return the paths."""
    router = APIRouter(tags=["circuit-tracer's frontend"], responses=FAILURES)

    @router.get("/data/graph-metadata.json")
    async def graph_metadata() -> dict[str, Any]:
        """List the graphs."""
        entries = await run_in_threadpool(service.store.entries)
        return {
            "graphs": [
                {
                    "slug": entry.slug,
                    "scan": entry.scan,
                    "prompt": entry.about["prompt"],
                    "prompt_tokens": entry.about["prompt"].split(),
                    "title_prefix": "",
                    "node_threshold": entry.about["asked"].get("node_threshold", NODE_THRESHOLD),
                    "schema_version": 1,
                }
                for entry in entries
            ]
        }

    async def graph_data(slug: SlugPath, request: Request) -> Response:
        """Return the newest graph of a name."""
        if (entry := await run_in_threadpool(service.store.by_slug, slug)) is None:
            raise Refused(404, "there is no graph of that name")
        make = partial(exported, service.store, service.model_of(entry), entry, ".json", entry.slug)
        return Response(await done(service.drawing, request, "graph", make), media_type="application/json")

    for folder in ("graph_data", "data"):
        router.add_api_route(
            f"/{folder}/{{slug}}.json",
            graph_data,
            operation_id=f"{folder}_slug",
            responses={200: {"model": dict[str, Any]}},
        )

    @router.get("/features/{scan}/{number}.json", responses={200: {"model": dict[str, Any]}})
    async def feature(scan: SlugPath, number: Annotated[int, Path(ge=0, lt=2**62)]) -> Response:
        """Return a feature's card, by the number that nodes hold as `feature`."""

        def read() -> bytes | None:
            cards = next((one.cards for one in service.models if one.scan == scan), None)
            key = uncantor(number)
            if cards is None or key not in cards:
                return None
            return json.dumps(card_as_json(cards, key), allow_nan=False).encode()

        if (content := await run_in_threadpool(read)) is None:
            raise Refused(404, "there is no card of that feature")
        return Response(content, media_type="application/json")

    @router.post("/save_graph/{scan}/{slug}")
    async def save_graph(scan: SlugPath, slug: SlugPath, body: SavedGraph) -> dict[str, str]:
        """Keep pins and groups of the newest graph of a name."""
        if (entry := await run_in_threadpool(service.store.by_slug, slug, scan)) is None:
            raise Refused(404, "there is no graph of that name")
        await run_in_threadpool(service.store.save_state, entry.id, {"qParams": body.q_params, "fragment": ""})
        return {"saved": slug}

    return router


def uncantor(number: int) -> tuple[int, int]:
    """Return the (layer, feature) that a number stands for; see `crosstrace.graphs.viewer_ids.cantor_pairing`.

    Example:
        >>> uncantor(902)
        (0, 41)
    """
    total = (isqrt(8 * number + 1) - 1) // 2
    feature = number - total * (total + 1) // 2
    return total - feature, feature
