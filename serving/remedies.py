"""Remedies by API, for a key of scope admin: what was asked for, a new one, a veto. It only writes the outbox."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError

from data import outbox
from data.ledger import Ledger
from serving import guard
from serving.door import same_origin
from serving.keys import Key
from serving.refused import Refused
from serving.wire import read_body

PATH = "/v1/remedies"
Why = Annotated[str, Field(max_length=1000)]
Number = Annotated[int, Path(ge=1, lt=2**63)]
"""What a database holds as the number of a row."""


class Asked(BaseModel):
    """A remedy of an assistant; `to` is the release that a rollback goes to."""

    model_config = ConfigDict(strict=True, extra="forbid")
    assistant: Annotated[str, Field(max_length=64)]
    kind: Annotated[str, Field(max_length=40)]
    why: Why = ""
    to: Annotated[str, Field(max_length=64)] | None = None


class Vetoed(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    why: Why = ""


def routes(ledger: Ledger) -> APIRouter:
    """GET the newest rows, POST a remedy (201) or a veto. `reconcile` starts what is open within a minute."""
    router = APIRouter()

    @router.get(PATH)
    async def listed(request: Request, assistant: str | None = None, state: str | None = None) -> dict:
        person(request)
        states = (state,) if state else ()
        return {"object": "list", "data": await read(outbox.listed, ledger, assistant, states)}

    @router.post(PATH)
    async def ask(request: Request) -> JSONResponse:
        who = person(request)
        said: Asked = guard.read(Asked, await read_body(request))
        more = {"to": said.to} if said.to else {}
        number = await read(outbox.ask, ledger, said.assistant, said.kind, who, said.why, **more)
        return JSONResponse({"object": "remedy", "number": number, "state": "open"}, 201)

    @router.post(f"{PATH}/{{number}}/veto")
    async def veto(number: Number, request: Request) -> dict:
        who = person(request)
        said: Vetoed = guard.read(Vetoed, await read_body(request))
        if not await read(outbox.veto, ledger, number, who, said.why):
            raise Refused(409, f"Remedy {number} has started or is settled: too late for a veto", code="too_late")
        return {"object": "remedy", "number": number, "state": "vetoed"}

    return router


def person(request: Request) -> str:
    """Who asks. Refuses 403 another site's page, and a tenant's key: a remedy acts on what all tenants are served."""
    same_origin(request)
    key: Key = request.state.key
    if key.tenant:
        message = "A remedy acts for every tenant; ask with a key that has none"
        raise Refused(403, message, "permission_error", code="tenant_key")
    return key.owner or key.id or "this machine"


async def read(work, *given, **named):
    """What `work` returns, in a thread; what it raises as the refusal it is."""
    try:
        return await asyncio.to_thread(work, *given, **named)
    except KeyError as error:
        raise Refused(404, str(error.args[0]), code="not_found") from None
    except ValueError as error:
        raise Refused(400, str(error), code="wrong_remedy") from None
    except SQLAlchemyError as error:
        message = "The ledger can not be reached; try again"
        raise Refused(503, message, "server_error", code="ledger_unavailable", retry_after=5) from error
