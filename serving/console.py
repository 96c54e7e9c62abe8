"""The console: a page at /console that shows what the assistants did and do, and the routes it reads. It only reads.

The page holds no data, so it opens without a key and asks for one where one is needed: scope `metrics`, of no tenant,
since the figures are everybody's. Questions and evaluation pages are for those who may review. What a view shows is
computed in one thread of its own and kept, so that any number of readers cost the answers next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.exc import SQLAlchemyError

from data import cycles, history
from data.ledger import Ledger
from data.requests import RequestLog
from serving.ask import alone
from serving.keys import Key
from serving.refused import Refused
from serving.reports import SANDBOX, Reports
from serving.review import same_origin
from settings import Settings

PATH, API = "/console", "/v1/console"
FILE = Path(__file__).with_name("pages") / "console.html"
DAYS = (1, 7, 30)
KEEP_S = 4.0
SHARE = 0.05
"""Most of a processor's time that a view may take: one that took long is kept longer."""
MOST_VIEWS = 64


class Views:
    """Computed views as JSON by what was asked, each for KEEP_S at least; who asks meanwhile waits for the same one."""

    def __init__(self):
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="console")
        self.kept: OrderedDict[tuple, asyncio.Future] = OrderedDict()

    async def get(self, work: Callable[..., dict], *asked) -> bytes:
        """What `work(*asked)` returns, or returned a moment ago. The event loop, which answers, does none of it."""
        key = (work, *asked)
        if (held := self.kept.get(key)) is None:
            held = self.kept[key] = asyncio.ensure_future(self._compute(key))
            while len(self.kept) > MOST_VIEWS:
                self.kept.popitem(last=False)
        return await asyncio.shield(held)

    async def _compute(self, key: tuple) -> bytes:
        loop, keep = asyncio.get_running_loop(), 0.0
        try:
            found, took = await loop.run_in_executor(self.thread, _rendered, *key)
            keep = max(KEEP_S, took / SHARE)
            return found
        finally:
            loop.call_later(keep, self.kept.pop, key, None)


def _rendered(work: Callable[..., dict], *asked) -> tuple[bytes, float]:
    """A view as JSON, and the processor's seconds that it took."""
    start = time.thread_time()
    return json.dumps(work(*asked)).encode(), time.thread_time() - start


def routes(ledger: Ledger, log: RequestLog, chosen: Settings, secret: str) -> APIRouter:
    """The page and what it reads. `secret` signs the addresses of evaluation pages."""
    router, html, views = APIRouter(), FILE.read_text(), Views()
    reports = Reports(chosen.home / "reports", secret)
    hour = chosen.price_cpu_hour * (os.cpu_count() or 1)

    def every() -> dict:
        return {"assistants": history.overview(ledger, log)}

    def one(name: str, days: int, texts: bool) -> dict:
        return history.assistant(ledger, log, name, days, texts)

    def cycle(name: str, number: str, texts: bool) -> dict:
        found = cycles.cycle(ledger, name, number, texts)
        for gate in found["gates"]:
            evaluation, primary = gate.pop("evaluation"), (gate["settings"] or {}).get("primary", "")
            gate["slices"] = reports.slices(gate["release"], evaluation, primary)
            shown = texts and reports.stored(gate["release"], evaluation, ".html")
            gate["report"] = reports.address(gate["seq"]) if shown else None
        return found | {"price_per_hour": hour}

    @router.get(PATH)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=alone(html))

    @router.get(f"{API}/assistants")
    async def assistants(request: Request) -> Response:
        allowed(request)
        return await shown(views.get(every))

    @router.get(f"{API}/assistants/{{name}}")
    async def assistant(request: Request, name: str, days: int = 7) -> Response:
        texts = allowed(request)
        if days not in DAYS:
            raise Refused(400, f"days is {days}; give one of {', '.join(map(str, DAYS))}", param="days")
        return await shown(views.get(one, name, days, texts))

    @router.get(f"{API}/assistants/{{name}}/cycles/{{number}}")
    async def one_cycle(request: Request, name: str, number: str) -> Response:
        texts = allowed(request)
        return await shown(views.get(cycle, name, number, texts))

    @router.get(f"{PATH}/reports/{{seq}}")
    async def report(seq: int, until: int = 0, sign: str = "") -> HTMLResponse:
        reports.check(seq, until, sign)
        text = await read(asyncio.to_thread(stored_page, ledger, reports, seq))
        return HTMLResponse(text, headers=SANDBOX)

    return router


def stored_page(ledger: Ledger, reports: Reports, seq: int) -> str:
    """The evaluation page of a decision; KeyError when it is not here any more."""
    decision = cycles.decision(ledger, seq)
    path = reports.stored(decision["release"] or "", (decision["body"] or {}).get("evaluation") or "", ".html")
    if path is None:
        raise KeyError("the page of this evaluation is no longer here")
    return path.read_text()


async def shown(view: Awaitable[bytes]) -> Response:
    return Response(await read(view), media_type="application/json", headers={"cache-control": "no-store"})


async def read(view: Awaitable[bytes | str]) -> bytes | str:
    """What was asked for, or why it can not be had as the refusal it is."""
    try:
        return await view
    except KeyError as error:
        raise Refused(404, str(error.args[0]), code="not_found") from None
    except SQLAlchemyError as error:
        message = "The ledger or the request log can not be read now"
        raise Refused(503, message, "server_error", code="ledger_unavailable", retry_after=5) from error


def allowed(request: Request) -> bool:
    """Whether the reader may see texts of users and documents. Refused 403: a tenant's key, or another site's page."""
    same_origin(request)
    key: Key = request.state.key
    if key.tenant:
        message = "The console shows the figures of every tenant; use a key without a tenant"
        raise Refused(403, message, "permission_error", code="tenant_key")
    return key.may("review")
