"""The OpenAI-compatible endpoint: routes and errors. A plain FastAPI app; serving/endpoint.py puts it on Ray Serve."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from data.ledger import Ledger
from data.records import Chunk, Filter, Release
from data.redaction import redact
from data.requests import Logged, RequestLog, asker
from serving import ask, console, guard, rag, remedies, review
from serving import exchange as ex
from serving.door import Door
from serving.guard import Chat
from serving.keys import Key
from serving.limits import Budgets
from serving.metering import Admission, Meters, cost
from serving.refused import Refused
from serving.router import UNREADABLE, UNUSABLE, NoRelease, Router
from serving.semantic import SemanticCache
from serving.traces import Traces
from serving.wire import events, exhaust, read_body, refusal, while_connected
from settings import Settings

log = logging.getLogger("perennial.endpoint")

SOURCES = ("smoke", "canary", "probe")


@dataclass(frozen=True)
class Parts:
    """What the app is put together from. Nothing in it knows Ray.

    `section`: release, chunk id, tombstones, what its asker may see -> the chunks of its section, [] for none; called
    in a thread. `add_feedback`: as Ledger.add_feedback.
    """

    router: Router
    generate: ex.Generate
    find: ex.Find
    section: Callable[[Release, str, frozenset[str], Filter], list[Chunk]]
    requests: RequestLog
    add_feedback: Callable[..., object]
    ledger: Ledger
    traces: Traces = Traces(0.0)
    cache: SemanticCache = field(default_factory=SemanticCache)


class FeedbackRequest(BaseModel):
    """What a person says about one answer: a rating, a better text, a remark, at least one of them."""

    model_config = ConfigDict(strict=True, extra="forbid")
    response_id: Annotated[str, Field(max_length=128)]
    rating: int | None = None
    edit: Annotated[str, Field(max_length=8000)] | None = None
    comment: Annotated[str, Field(max_length=4000)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None


def create_app(parts: Parts, chosen: Settings, token: str, threads: Executor) -> FastAPI:
    """The endpoint's app. `token`: with it our own processes may pin a release (router.internal_token)."""
    app = FastAPI(title="Perennial", docs_url=None, redoc_url=None, openapi_url=None)
    router, requests = parts.router, parts.requests
    meters, budgets = Meters(), Budgets(lambda since: requests.totals("key", since))
    admission = Admission(chosen.max_queued, chosen.max_wait_s, meters.in_flight)
    app.add_middleware(Door, keys=lambda: router.keys, chosen=chosen, budgets=budgets)
    app.include_router(ask.page())
    app.include_router(review.routes(parts.ledger))
    app.include_router(remedies.routes(parts.ledger))
    app.include_router(console.routes(parts.ledger, requests, chosen, token))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        meters.errors.labels(str(error.status)).inc()
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> JSONResponse:
        what, code = str(error.detail), str(error.detail).lower().replace(" ", "_")
        return await refused(request, Refused(error.status_code, f"{what}: {request.method}", code=code))

    @app.exception_handler(RequestValidationError)
    async def misread(request: Request, error: RequestValidationError) -> JSONResponse:
        name, why = error.errors()[0]["loc"][-1], error.errors()[0]["msg"]
        return await refused(request, Refused(400, f"Invalid '{name}': {why}", param=str(name)))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("request %s failed", request.state.request_id, exc_info=error)
        message = f"The server failed to answer; the request id is {request.state.request_id}"
        return await refused(request, Refused(500, message, "server_error", code="internal_error"))

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        ready = router.read_at is not None
        return JSONResponse({"status": "ok" if ready else "starting"}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        meters.lost.set(requests.lost)
        meters.traces_lost.set(parts.traces.lost)
        meters.routing_age.set(router.age)
        body, kind = meters.render()
        return Response(body, headers={"content-type": kind})

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [listed(name) for name in router.assistants()]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict:
        if name not in router.assistants():
            raise unknown_model(router, name)
        return listed(name)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        arrived, created = time.perf_counter(), int(time.time())
        asked = guard.read_chat(await read_body(request))
        pinned, source = internal(request, token)
        response = f"chatcmpl-{uuid.uuid4().hex}"
        key: Key = request.state.key
        release, arm = await route(router, asked, response, pinned, key)
        guard.check(asked, release.guard)
        decoding = guard.decoding(asked, release)
        expected = rag.expected_tokens(release, asked.question, asked.history, asked.searches, decoding.tools)
        most = (expected, decoding.max_new_tokens)
        leave = admission.enter()
        try:
            spend = await budgets.hold(key, sum(most), cost(*most, chosen))
        except BaseException:
            leave()
            raise

        def settle(row: Logged) -> None:
            row.cost = cost(row.prompt_tokens, row.completion_tokens, chosen)
            row.saved_cost = cost(row.saved_prompt_tokens, row.saved_completion_tokens, chosen)
            spend(row.prompt_tokens + row.completion_tokens, row.cost)
            admission.ended(row.status == 200)
            leave()
            requests.write(row)
            meters.count(row)
            parts.traces.write(exchange, request.headers)

        question = redact(asked.question).text if release.guard.redact_log else asked.question
        row = Logged(response, time.time(), release.assistant, release.id, arm, source, asked.request.user, question)
        row.key, row.tenant = key.id, key.tenant
        allowed = asked.narrows(key.sees)
        exchange = ex.Exchange(asked, release, decoding, allowed, row, arrived, chosen.request_timeout_s, settle)
        if "no-cache" not in request.headers.get("cache-control", ""):
            exchange.cache = parts.cache
        deltas = exchange.deltas(parts.generate, parts.find, router.tombstones(release.assistant), threads)
        try:
            if asked.request.stream:
                # The first piece is awaited here, so that what goes wrong before it has an HTTP status of its own.
                first = await while_connected(request, anext(deltas, ""))
                return StreamingResponse(events(exchange, created, first, deltas), media_type="text/event-stream")
            await while_connected(request, exhaust(deltas))
        except BaseException:
            leave()
            spend(0, 0.0)
            raise
        return JSONResponse(ex.completion(exchange, created))

    @app.get("/v1/sections/{chunk}")
    async def section(request: Request, chunk: str, model: str, user: str = "") -> dict:
        release, _ = resolve(router, model, user, request.state.key)
        asked = (release, chunk, router.tombstones(release.assistant), request.state.key.sees)
        leave = admission.enter(paced=False)  # no model writes what is read here
        try:
            async with asyncio.timeout(chosen.request_timeout_s):
                held = await asyncio.get_running_loop().run_in_executor(threads, parts.section, *asked)
        except UNUSABLE as error:
            message = "The documents of this release can not be read now"
            raise Refused(503, message, "server_error", code="index_unavailable", retry_after=5) from error
        finally:
            leave()
        if not held:
            raise Refused(404, "The documents no longer hold this passage", param="chunk", code="section_not_found")
        return ask.section(held, release)

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> dict:
        said: FeedbackRequest = guard.read(FeedbackRequest, await read_body(request))
        if said.rating not in (None, 1, -1) or not (said.rating or said.edit or said.comment):
            raise Refused(400, "Feedback needs a rating (1 or -1), an edit or a comment", param="rating")
        try:
            row = await asyncio.to_thread(requests.find, said.response_id)
            key: Key = request.state.key
            if row is None or not (key.tenant == (row["tenant"] or "") or key.may("admin")):
                message = f"No answer with id {said.response_id[:80]!r} is in the request log"
                raise Refused(404, message, param="response_id", code="response_not_found")
            if said.rating == -1 or said.edit:
                parts.cache.forget(row["reuse_of"] or said.response_id)
            about, user = (row["assistant"], row["release"], said.response_id), said.user or row["user"]
            # An edit may become a training text, like a document: what an organisation publishes on purpose stays
            edit = redact(said.edit, public=True).text if said.edit else None
            comment = redact(said.comment).text if said.comment else None
            whose = (user, key.owner, row["question"], row["answer"], row["chunks"] or (), row["tenant"] or "")
            await asyncio.to_thread(parts.add_feedback, *about, said.rating, edit, comment, *whose)
        except SQLAlchemyError as error:
            message = "The feedback could not be stored; send it again"
            raise Refused(503, message, "server_error", code="ledger_unavailable", retry_after=5) from error
        return {"object": "feedback", "response_id": said.response_id, "recorded": True}

    return app


# --- one request ------------------------------------------------------------------------------


def internal(request: Request, token: str) -> tuple[str | None, str]:
    """The release our own processes ask for, if any, and the request's source. Refused 403 without the token."""
    given = request.headers.get("x-perennial-token", "")
    trusted = hmac.compare_digest(given.encode(), token.encode())
    pinned = request.headers.get("x-perennial-release")
    if pinned and not trusted:
        raise Refused(403, "x-perennial-release needs the internal token", "permission_error", code="token_required")
    source = request.headers.get("x-perennial-source", "smoke" if pinned else "user")
    return pinned, source if trusted and source in SOURCES else "user"


async def route(router: Router, asked: Chat, response: str, pinned: str | None, key: Key) -> tuple[Release, str]:
    """The release for this request and its arm; Refused 404 or 503 when there is none."""
    name, sticky = asked.request.model, asked.request.user or response
    if not pinned:
        return resolve(router, name, asked.request.user, key, response)
    try:
        return await asyncio.to_thread(router.resolve, name, sticky, pinned)
    except KeyError:
        raise Refused(404, f"There is no release {pinned[:80]!r}", code="release_not_found") from None
    except ValueError as error:
        raise Refused(400, str(error), code="wrong_release") from None
    except UNREADABLE as error:
        raise Refused(503, "The ledger can not be read now", "server_error", code="ledger_unavailable") from error


def resolve(router: Router, name: str, user: str | None, key: Key, response: str = "") -> tuple[Release, str]:
    """The release that answers a key's user and its arm; Refused 404 or 503 when there is none."""
    try:
        return router.resolve(name, user or response, asker=asker(key.owner or key.id, user))
    except NoRelease as error:
        raise Refused(503, f"Not ready: {error}", "server_error", code="no_live_release", retry_after=5) from None
    except KeyError as error:
        raise unknown_model(router, name) from error


def unknown_model(router: Router, name: str) -> Refused:
    known = ", ".join(router.assistants()) or "none yet"
    message = f"The model {name[:80]!r} does not exist; known: {known}"
    return Refused(404, message, param="model", code="model_not_found")


def listed(name: str) -> dict:
    return {"id": name, "object": "model", "created": 0, "owned_by": "perennial"}
