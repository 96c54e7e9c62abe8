"""The OpenAI-compatible endpoint: routes and errors. A plain FastAPI app; serving/endpoint.py puts it on Ray Serve."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from data.ledger import Ledger
from data.records import Release
from data.redaction import redact
from data.requests import Logged, RequestLog
from serving import exchange as ex
from serving import guard, review
from serving.guard import Chat, Refused
from serving.metering import Admission, Meters
from serving.router import UNREADABLE, NoRelease, Router
from settings import Settings

log = logging.getLogger("perennial.endpoint")

REQUEST_ID = re.compile(r"[\w.:-]{1,128}\Z", re.ASCII)
BODY_TIMEOUT_S = 15.0
SOURCES = ("smoke", "canary", "probe")
KEY_OWNER = "api_key"
"""Who owns the one key of the settings. Everyone who holds it is one voice among those that give feedback."""


class FeedbackRequest(BaseModel):
    """What a person says about one answer: a rating, a better text, a remark, at least one of them."""

    model_config = ConfigDict(strict=True, extra="forbid")
    response_id: Annotated[str, Field(max_length=128)]
    rating: int | None = None
    edit: Annotated[str, Field(max_length=8000)] | None = None
    comment: Annotated[str, Field(max_length=4000)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None


def create_app(
    router: Router,
    generate: ex.Generate,
    find: ex.Find,
    requests: RequestLog,
    add_feedback: Callable[..., object],
    chosen: Settings,
    token: str,
    threads: Executor,
    ledger: Ledger,
) -> FastAPI:
    """The endpoint's app. Nothing in it knows Ray: what answers, what finds and what remembers are passed in."""
    app = FastAPI(title="Perennial", docs_url=None, redoc_url=None, openapi_url=None)
    meters = Meters()
    admission = Admission(chosen.max_queued, meters.in_flight)
    app.add_middleware(Door, api_key=chosen.api_key)
    app.include_router(review.routes(ledger, read_body))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        meters.errors.labels(str(error.status)).inc()
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> JSONResponse:
        what, code = str(error.detail), str(error.detail).lower().replace(" ", "_")
        return await refused(request, Refused(error.status_code, f"{what}: {request.method}", code=code))

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
        release, arm = await route(router, asked, response, pinned)
        guard.check(asked, release.guard)
        decoding = guard.decoding(asked, release)
        leave = admission.enter()

        def settle(row: Logged) -> None:
            leave()
            requests.write(row)
            meters.count(row)

        question = redact(asked.question).text if release.guard.redact_log else asked.question
        row = Logged(response, time.time(), release.assistant, release.id, arm, source, asked.request.user, question)
        exchange = ex.Exchange(asked, release, decoding, row, arrived, chosen.request_timeout_s, settle)
        deltas = exchange.deltas(generate, find, router.tombstones(release.assistant), threads)
        try:
            if asked.request.stream:
                # The first piece is awaited here, so that what goes wrong before it has an HTTP status of its own.
                first = await while_connected(request, anext(deltas, ""))
                return StreamingResponse(events(exchange, created, first, deltas), media_type="text/event-stream")
            await while_connected(request, _exhaust(deltas))
        except BaseException:
            leave()
            raise
        return JSONResponse(ex.completion(exchange, created))

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> dict:
        said: FeedbackRequest = guard.read(FeedbackRequest, await read_body(request))
        if said.rating not in (None, 1, -1) or not (said.rating or said.edit or said.comment):
            raise Refused(400, "Feedback needs a rating (1 or -1), an edit or a comment", param="rating")
        try:
            row = await asyncio.to_thread(requests.find, said.response_id)
            if row is None:
                message = f"No answer with id {said.response_id[:80]!r} is in the request log"
                raise Refused(404, message, param="response_id", code="response_not_found")
            about, user = (row["assistant"], row["release"], said.response_id), said.user or row["user"]
            # An edit may become a training text, like a document: what an organisation publishes on purpose stays
            edit = redact(said.edit, public=True).text if said.edit else None
            comment = redact(said.comment).text if said.comment else None
            whose = (user, request.state.owner, row["question"], row["answer"], row["chunks"] or ())
            await asyncio.to_thread(add_feedback, *about, said.rating, edit, comment, *whose)
        except SQLAlchemyError as error:
            message = "The feedback could not be stored; send it again"
            raise Refused(503, message, "server_error", code="ledger_unavailable", retry_after=5) from error
        return {"object": "feedback", "response_id": said.response_id, "recorded": True}

    return app


# --- one request ------------------------------------------------------------------------------


async def read_body(request: Request) -> bytes:
    """The body, refused with 413 as soon as it is known to be too long and 408 when it does not come."""
    too_long = Refused(413, f"The body is longer than {guard.MAX_BODY_BYTES} bytes", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > guard.MAX_BODY_BYTES:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for block in request.stream():
                body += block
                if len(body) > guard.MAX_BODY_BYTES:
                    raise too_long
    except TimeoutError:
        raise Refused(408, f"The body was not complete after {BODY_TIMEOUT_S:g} s", code="body_timeout") from None
    return bytes(body)


def internal(request: Request, token: str) -> tuple[str | None, str]:
    """The release our own processes ask for, if any, and the request's source. Refused 403 without the token."""
    given = request.headers.get("x-perennial-token", "")
    trusted = hmac.compare_digest(given.encode(), token.encode())
    pinned = request.headers.get("x-perennial-release")
    if pinned and not trusted:
        raise Refused(403, "x-perennial-release needs the internal token", "permission_error", code="token_required")
    source = request.headers.get("x-perennial-source", "smoke" if pinned else "user")
    return pinned, source if trusted and source in SOURCES else "user"


async def route(router: Router, asked: Chat, response: str, pinned: str | None) -> tuple[Release, str]:
    """The release for this request and its arm; Refused 404 or 503 when there is none."""
    name, sticky = asked.request.model, asked.request.user or response
    try:
        if pinned:
            return await asyncio.to_thread(router.resolve, name, sticky, pinned)
        return router.resolve(name, sticky)
    except NoRelease as error:
        raise Refused(503, f"Not ready: {error}", "server_error", code="no_live_release", retry_after=5) from None
    except KeyError as error:
        if pinned:
            raise Refused(404, f"There is no release {pinned[:80]!r}", code="release_not_found") from None
        raise unknown_model(router, name) from error
    except UNREADABLE as error:
        if isinstance(error, ValueError):
            raise Refused(400, str(error), code="wrong_release") from None
        raise Refused(503, "The ledger can not be read now", "server_error", code="ledger_unavailable") from error


def unknown_model(router: Router, name: str) -> Refused:
    known = ", ".join(router.assistants()) or "none yet"
    message = f"The model {name[:80]!r} does not exist; known: {known}"
    return Refused(404, message, param="model", code="model_not_found")


def listed(name: str) -> dict:
    return {"id": name, "object": "model", "created": 0, "owned_by": "perennial"}


async def while_connected(request: Request, work: Awaitable):
    """What `work` returns; when the client goes away first, `work` is cancelled and Refused 499 raised."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499, "The client went away", code="client_closed_request")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _exhaust(deltas: AsyncIterator[str]) -> None:
    async for _ in deltas:
        pass


async def events(exchange: ex.Exchange, created: int, first: str, deltas: AsyncIterator[str]) -> AsyncIterator[str]:
    """Server-sent events: role, text as it comes, then the finish reason with `citations`, usage if asked for, [DONE].

    An error after the first piece can have no status any more: it is sent as an event, and the stream ends.
    """
    more = {"usage": None} if exchange.chat.include_usage else {}
    try:
        yield _event(ex.chunk(exchange, created, {"role": "assistant", "content": first}, **more))
        async for text in deltas:
            yield _event(ex.chunk(exchange, created, {"content": text}, **more))
    except Refused as error:
        yield _event(error.body())
        return
    finally:
        await deltas.aclose()
    answer = exchange.answer
    found = {"citations": ex.citations(answer), "retrieval_scores": ex.scores(answer)}
    yield _event(ex.chunk(exchange, created, {}, answer.generation.finish_reason, **found, **more))
    if exchange.chat.include_usage:
        yield _event(ex.chunk(exchange, created, {}) | {"choices": [], "usage": ex.usage(exchange.row)})
    yield "data: [DONE]\n\n"


def _event(data: dict) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def refusal(error: Refused) -> JSONResponse:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    return JSONResponse(error.body(), error.status, headers)


class Door:
    """ASGI middleware: the key on every route, known or not, and an `x-request-id` on every answer.

    Only the page of the review queue is without: it holds nothing, and asks for the key.

    What comes through has the owner of its key in `state.owner`, None where no key is asked for.
    """

    def __init__(self, app, api_key: str | None):
        self.app, self.throttle = app, guard.Throttle()
        self.expected = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        asked = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = asked if REQUEST_ID.match(asked) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, owner=KEY_OWNER if self.expected else None)

        async def named(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        page = scope["method"] == "GET" and scope["path"] == review.PATH
        if self.expected and not page and not hmac.compare_digest(headers.get(b"authorization", b""), self.expected):
            try:
                self.throttle.failed((scope.get("client") or ("unknown",))[0])
            except Refused as error:
                return await refusal(error)(scope, receive, named)
        await self.app(scope, receive, named)
