"""What goes over the wire: bodies in, errors and server-sent events out, for as long as the client is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable

from fastapi import Request
from fastapi.responses import JSONResponse

from serving import exchange as ex
from serving.guard import MAX_BODY_BYTES
from serving.refused import Refused

BODY_TIMEOUT_S = 15.0


async def read_body(request: Request) -> bytes:
    """The body, refused with 413 as soon as it is known to be too long and 408 when it does not come."""
    too_long = Refused(413, f"The body is longer than {MAX_BODY_BYTES} bytes", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for block in request.stream():
                body += block
                if len(body) > MAX_BODY_BYTES:
                    raise too_long
    except TimeoutError:
        raise Refused(408, f"The body was not complete after {BODY_TIMEOUT_S:g} s", code="body_timeout") from None
    return bytes(body)


def refusal(error: Refused) -> JSONResponse:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    return JSONResponse(error.body(), error.status, headers)


async def while_connected(request: Request, work: Awaitable):
    """What `work` returns; when the client goes away first, `work` is cancelled, and Refused 499 raised at its end."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499, "The client went away", code="client_closed_request")
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)  # what its end settles is settled before anything else


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def exhaust(deltas: AsyncIterator[str]) -> None:
    async for _ in deltas:
        pass


async def events(exchange: ex.Exchange, created: int, first: str, deltas: AsyncIterator[str]) -> AsyncIterator[str]:
    """Server-sent events: role, text as it comes, tool calls whole, then the finish reason with `citations`, usage if
    asked for, [DONE].

    An error after the first piece can have no status any more: it is sent as an event, and the stream ends.
    """
    more = {"usage": None} if exchange.chat.include_usage else {}
    try:
        opening = {"content": None, "refusal": first} if exchange.declined else {"content": first}
        yield _event(ex.chunk(exchange, created, {"role": "assistant"} | opening, **more))
        async for text in deltas:
            yield _event(ex.chunk(exchange, created, {"content": text}, **more))
    except Refused as error:
        yield _event(error.body())
        return
    finally:
        await deltas.aclose()
    if exchange.tool_calls:
        calls = [{"index": at} | call for at, call in enumerate(exchange.tool_calls)]
        yield _event(ex.chunk(exchange, created, {"tool_calls": calls}, **more))
    answer = exchange.answer
    found = {"citations": ex.citations(answer), "retrieval_scores": ex.scores(answer)}
    yield _event(ex.chunk(exchange, created, {}, answer.generation.finish_reason, **found, **more))
    if exchange.chat.include_usage:
        yield _event(ex.chunk(exchange, created, {}) | {"choices": [], "usage": ex.usage(exchange.row)})
    yield "data: [DONE]\n\n"


def _event(data: dict) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
