"""The review queue on the endpoint: a page at /review and the two routes it asks, for a phone as for a desk.

The page holds nothing secret, so it is served without the key; it asks for the key and sends it as a header with every
request, as API clients do. No cookie carries a right, so no other site can act for a reviewer; where no key is asked
for (loopback), a request must come from this very origin.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError

from data import reviews
from data.ledger import Ledger
from data.reviews import ACTIONS, MOST_ANSWER, MOST_WHO, AlreadySettled, Item
from serving import guard
from serving.ask import alone
from serving.door import same_origin
from serving.refused import Refused
from serving.wire import read_body

PATH = "/review"
FILE = Path(__file__).with_name("pages") / "review.html"
MOST_SHOWN = 50
NUMBER = re.compile(r"[0-9]{1,18}\Z")
"""What a database holds as the number of a row (64 bits)."""


class Verdict(BaseModel):
    """What a reviewer decides on one item; see data.reviews.settle."""

    model_config = ConfigDict(strict=True, extra="forbid")
    verdict: Annotated[str, Field(max_length=20)]
    reviewer: Annotated[str, Field(max_length=MOST_WHO)]
    answer: Annotated[str, Field(max_length=MOST_ANSWER)] | None = None
    golden: bool = False


def routes(ledger: Ledger) -> APIRouter:
    """The page and its routes."""
    router, html = APIRouter(), FILE.read_text()

    @router.get(PATH)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=alone(html))

    @router.get(f"{PATH}/items")
    async def listed(request: Request) -> dict:
        same_origin(request)
        waiting = await read(reviews.items, ledger)
        return {"items": [shown(one) for one in waiting[:MOST_SHOWN]], "waiting": len(waiting)}

    @router.post(f"{PATH}/items/{{number}}")
    async def settle(number: str, request: Request) -> dict:
        same_origin(request)
        if not NUMBER.match(number):
            raise Refused(404, f"There is no review {number[:40]!r}", code="review_not_found")
        said: Verdict = guard.read(Verdict, await read_body(request))
        given = (int(number), said.verdict, said.reviewer, said.answer, said.golden)
        return shown(await read(reviews.settle, ledger, *given))

    return router


async def read(work, *given):
    """What `work` returns, in a thread; what it raises as the refusal it is."""
    try:
        return await asyncio.to_thread(work, *given)
    except KeyError as error:
        raise Refused(404, str(error.args[0]), code="review_not_found") from None
    except ValueError as error:
        raise Refused(400, str(error), code="wrong_verdict") from None
    except AlreadySettled as error:
        raise Refused(409, str(error), code="already_settled") from None
    except SQLAlchemyError as error:
        message = "The review queue can not be reached; try again"
        raise Refused(503, message, "server_error", code="ledger_unavailable", retry_after=5) from error


def shown(one: Item) -> dict:
    return {
        "number": one.number,
        "assistant": one.assistant,
        "kind": one.kind,
        "shown": one.shown,
        "actions": ACTIONS[one.kind],
        "golden": one.kind == reviews.EDIT,
        "verdict": one.verdict,
        "reviewer": one.reviewer,
    }
