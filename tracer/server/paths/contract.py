"""The contract of Neuronpedia's graph server, so that whatever talks to that can talk to this.

What differs: nothing is refused because another request runs, requests wait instead (503 only when the queue is full);
prompts may be as long as the server was told; a failed request answers `{"error": …}` with a status that says so, except
`/forward-pass`, whose failures have status 200 as in the contract.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from crosstrace.tracer.server.computing.chat_prompts import turns_in, without_bos
from crosstrace.tracer.server.computing.exports import as_file
from crosstrace.tracer.server.computing.work import Steer, Steered, TraceRequest, keep, next_token, steer, trace_graph
from crosstrace.tracer.server.core.models import Prompt, Served
from crosstrace.tracer.server.paths.jobs import Refused, checked, done
from crosstrace.tracer.server.paths.service import FAILURES, Service, prompt_of
from crosstrace.tracer.server.paths.wire import (
    Busy,
    ChatMessage,
    Failure,
    ForwardPass,
    ForwardPassAnswer,
    GraphGeneration,
    LogitsByToken,
    ParseChatPrompt,
    ParsedChatPrompt,
    SalientLogit,
    SteerAnswer,
    SteerRequest,
    TopLogit,
    UploadReceipt,
)
from crosstrace.tracer.sweeps.settings import TraceSettings


def contract(service: Service) -> APIRouter:
    """Return the five paths."""
    router = APIRouter(tags=["Neuronpedia's graph server"], responses=FAILURES)
    limits = service.settings.limits

    @router.get("/check-busy", responses={})
    async def check_busy() -> Busy:
        """Say whether something runs or waits."""
        return Busy(busy=service.engine.is_busy)

    @router.post("/generate-graph", response_model=None, responses={200: {"model": UploadReceipt | dict[str, Any]}})
    async def generate_graph(body: GraphGeneration, request: Request) -> Response:
        """Trace a prompt. The answer is the graph's JSON, or a receipt where it was sent to a signed URL."""
        served = service.model(body.model_id)
        asked = await checked(_trace_request, body)
        if body.signed_url is not None:
            await checked(service.uploads.check, body.signed_url)
        prompt = await checked(asked.check, served, limits)

        def work() -> bytes:
            traced = trace_graph(served, asked, prompt)
            keep(service.store, served, traced, asked, body.slug_identifier)
            return as_file(traced.graph, served, ".json", body.slug_identifier)

        content = await done(service.engine, request, f"graph {body.slug_identifier}", work)
        if body.signed_url is None:
            return Response(content, media_type="application/json")
        try:
            await run_in_threadpool(service.uploads.put, body.signed_url, content, body.compress)
        except (OSError, ValueError) as problem:
            raise Refused(400, str(problem)) from None
        return JSONResponse({"success": "the graph was uploaded"})

    @router.post("/forward-pass", responses={200: {"model": ForwardPassAnswer | Failure}})
    async def forward_pass(body: ForwardPass, request: Request) -> ForwardPassAnswer | Failure:
        """Run a prompt and return the likeliest next tokens. Failures have status 200 and `error`."""
        served = service.model(None)
        settings = TraceSettings(max_logits=body.max_n_logits, logit_probability=body.desired_logit_prob)
        asked = TraceRequest(prompt_of(body.prompt, body.messages), settings)
        try:
            prompt = await checked(asked.check, served, limits)
            found = await done(
                service.engine,
                request,
                "forward pass",
                lambda: next_token(served, prompt, body.max_n_logits, body.desired_logit_prob),
            )
        except Refused as refused:
            if refused.status_code != 400:
                raise
            return Failure(error=refused.detail)
        return ForwardPassAnswer(
            prompt=found.prompt,
            input_tokens=found.tokens,
            salient_logits=[
                SalientLogit(token=text, token_id=token, probability=share) for token, text, share in found.salient
            ],
            total_salient_tokens=len(found.salient),
            cumulative_probability=found.cumulative,
        )

    @router.post("/steer")
    async def steer_(body: SteerRequest, request: Request) -> SteerAnswer:
        """Generate without and with features held, and the likeliest tokens at every step."""
        served = service.model(body.model_id)
        prompt_asked = prompt_of(body.prompt, body.messages)
        if prompt_asked.text:
            text = without_bos(prompt_asked.text, served.model.tokenizer)
            prompt_asked = Prompt(text)
        prompt = await checked(served.prompt, prompt_asked, limits)
        features = await checked(_features, body, served, prompt, limits.new_tokens)
        plain, steered = await done(
            service.engine,
            request,
            "steering",
            lambda: steer(
                served,
                prompt,
                features,
                body.n_tokens,
                body.top_k,
                body.temperature,
                body.freq_penalty,
                body.seed,
                body.freeze_attention,
            ),
        )
        return SteerAnswer(
            DEFAULT_GENERATION=_text(served, plain),
            STEERED_GENERATION=_text(served, steered),
            DEFAULT_LOGITS_BY_TOKEN=_by_token(plain),
            STEERED_LOGITS_BY_TOKEN=_by_token(steered),
        )

    @router.post("/parse-chat-prompt")
    async def parse_chat_prompt(body: ParseChatPrompt) -> ParsedChatPrompt:
        """Find the turns in a prompt that a chat template wrote. Needs no model, so it never waits."""
        served = service.model(None)
        tokenizer = served.model.tokenizer

        def read() -> ParsedChatPrompt:
            text = without_bos(body.prompt, tokenizer)
            turns = served.alone(lambda: turns_in(text, tokenizer))
            messages = None if turns is None else [ChatMessage(**turn) for turn in turns]
            places = served.bos_positions(text) if text.strip() else []
            return ParsedChatPrompt(
                messages=messages, is_chat=messages is not None, prompt=text, unsteerable_positions=places
            )

        parsed: ParsedChatPrompt = await checked(read)
        return parsed

    return router


def _trace_request(body: GraphGeneration) -> TraceRequest:
    """Read what is asked for.

    Raises:
        ValueError: A threshold is not one.
    """
    settings = TraceSettings(
        max_logits=body.max_n_logits,
        logit_probability=body.desired_logit_prob,
        max_feature_nodes=body.max_feature_nodes,
        node_threshold=body.node_threshold,
        edge_threshold=body.edge_threshold,
        batch_size=body.batch_size,
    )
    terms = body.qk_topk if body.enable_qk_tracing else None
    return TraceRequest(prompt_of(body.prompt, body.messages), settings, terms)


def _features(body: SteerRequest, served: Served, prompt: Any, most_tokens: int) -> list[Steer]:
    """Read what is to be steered; features at `<bos>` are left out, as the contract says.

    Raises:
        ValueError: A feature or a setting cannot be used.
    """
    if not 1 <= body.n_tokens <= most_tokens:
        raise ValueError(f"n_tokens must be 1 to {most_tokens}, not {body.n_tokens:,}")
    if not 1 <= body.top_k <= 100:
        raise ValueError(f"top_k must be 1 to 100, not {body.top_k:,}")
    if not 0 <= body.temperature <= 100 or not -100 <= body.freq_penalty <= 100:
        raise ValueError("temperature must be 0 to 100 and freq_penalty -100 to 100")
    ids = served.alone(lambda: served.model.tokenize(prompt).tolist())
    bos = set(served.bos_of(ids))
    found = []
    for number, one in enumerate(body.features, 1):
        where = f"feature {number} (L{one.layer}/{one.index})"
        if one.ablate == (one.delta is not None):
            raise ValueError(f"{where}: give either ablate or a delta")
        if one.steer_generated_tokens == (one.steer_position is not None):
            raise ValueError(f"{where}: give either steer_generated_tokens or a steer_position")
        for position in (one.steer_position, one.token_active_position):
            if position is not None and not 0 <= position < len(ids):
                raise ValueError(f"{where}: position {position} is not in the prompt, which has {len(ids)} tokens")
        if one.steer_position is None or one.steer_position not in bos:
            found.append(Steer(one.layer, one.index, one.token_active_position, one.steer_position, one.delta))
    return found


def _text(served: Served, steered: Steered) -> str:
    tokenizer = served.model.tokenizer
    return str(tokenizer.decode(steered.ids)) if tokenizer is not None else "".join(steered.tokens)


def _by_token(steered: Steered) -> list[LogitsByToken]:
    rows = []
    for place, token in enumerate(steered.tokens):
        step = place - steered.first + 1  # of what comes after it
        tops = steered.tops[step] if 0 <= step < len(steered.tops) else []
        rows.append(LogitsByToken(token=token, top_logits=[TopLogit(token=text, prob=share) for text, share in tops]))
    return rows
