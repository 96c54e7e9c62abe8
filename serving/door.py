"""The door: whose a request is, whether it may do that, and how much more may be asked; before any route is found."""

from __future__ import annotations

import hmac
import re
import uuid
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import Request

from serving.keys import ADMIN, ANYONE, NOBODY, PREFIX, Key, digest
from serving.limits import Budgets, Rate, Throttle, rate_headers
from serving.refused import Refused
from serving.wire import refusal
from settings import Settings

REQUEST_ID = re.compile(r"[\w.:-]{1,128}\Z", re.ASCII)
SCOPE_OF = {"/v1/feedback": "feedback", "/review": "review", "/v1/remedies": "admin"}
SCOPE_OF |= {"/metrics": "metrics", "/v1/console": "metrics"}
"""Path -> the scope that it and what lies below it need; every other path needs `ask`."""
PAGES = ("/ask", "/review", "/console")
"""Pages without any data in them: a browser brings no key along when it opens one. They ask for it themselves."""
SIGNED = "/console/reports/"
"""Addresses that carry a signature in place of a key; serving/reports.py checks it."""


class Door:
    """ASGI middleware: the key on every route, known or not, and an `x-request-id` on every answer.

    What comes through has its Key in `state.key`. Without keys (loopback, no PERENNIAL_API_KEY) everyone on this
    machine is let in, but no web page from elsewhere that the browser here has open: `same_machine`.
    """

    def __init__(self, app, keys: Callable[[], Mapping[str, Key]], chosen: Settings, budgets: Budgets):
        self.app, self.keys, self.budgets = app, keys, budgets
        self.admin = digest(chosen.api_key) if chosen.api_key else None
        self.per_address = chosen.address_requests_per_minute
        self.throttle, self.rate = Throttle(), Rate()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = headers.get("x-request-id", "")
        added = {"x-request-id": asked if REQUEST_ID.match(asked) else uuid.uuid4().hex}
        state = scope.setdefault("state", {})
        state.update(request_id=added["x-request-id"], key=NOBODY)

        async def named(message):
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in (added | self.budgets.headers(key)).items()]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        key = NOBODY
        try:
            address = (scope.get("client") or ("unknown",))[0]
            if not (scope["method"] == "GET" and (scope["path"] in PAGES or scope["path"].startswith(SIGNED))):
                state["key"] = key = self.key(headers, address)
                self.permit(key, scope["path"])
            if key.requests_per_minute:
                added |= rate_headers(key.requests_per_minute, *self.rate.take(key.id, key.requests_per_minute))
            if self.per_address and key is not ADMIN:
                self.rate.take(f"address {address}", self.per_address)
        except Refused as error:
            return await refusal(error)(scope, receive, named)
        await self.app(scope, receive, named)

    def key(self, headers: Mapping[str, str], address: str) -> Key:
        """The key that a request brings. Raises Refused 401 for none or a wrong one, 429 after many wrong ones, 403 for
        another's page."""
        given = headers.get("authorization", "").removeprefix("Bearer ")
        hashed = digest(given)
        if self.admin and hmac.compare_digest(hashed, self.admin):
            return ADMIN
        if known := self.keys().get(hashed):
            return known
        # Clients of OpenAI always send some key, so without keys any will do, but not one of ours that was revoked
        if self.admin and not given:
            message = "No API key was given; send it as 'Authorization: Bearer KEY'"
            raise Refused(401, message, "authentication_error", code="invalid_api_key")
        if self.admin or given.startswith(PREFIX):
            self.throttle.failed(address)
        if not same_machine(headers):
            message = "Only pages of this machine may ask without a key; set PERENNIAL_API_KEY to let others in"
            raise Refused(403, message, "permission_error", code="key_required")
        return ANYONE

    def permit(self, key: Key, path: str) -> None:
        """Raises Refused 403 when the key lacks the scope that `path` needs."""
        needed = next((scope for at, scope in SCOPE_OF.items() if path == at or path.startswith(f"{at}/")), "ask")
        if not key.may(needed):
            message = f"This key has no scope {needed!r}; it has {', '.join(key.scopes) or 'none'}"
            raise Refused(403, message, "permission_error", code="insufficient_scope")


def same_machine(headers: Mapping[str, str]) -> bool:
    """Whether a request names this machine as its host, and as its page's where a page sent it.

    Without keys this keeps out what the browser here was told to do elsewhere: another site's form or script, or a
    name that was pointed at 127.0.0.1 after its page was loaded (DNS rebinding).
    """
    said = [f"http://{headers.get('host', 'localhost')}"] + ([headers["origin"]] if "origin" in headers else [])
    return all(map(_local, said))


def _local(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def same_origin(request: Request) -> None:
    """Refuses 403 what another site's page sends to a route that acts, or shows what is for people with a right to it.

    `same_machine` refuses other names for this machine. A body must be JSON, which no form of another site can send
    unasked (Fetch standard, CORS-safelisted types).
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    elsewhere = origin is not None and urlsplit(origin).netloc != host
    foreign = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    if elsewhere or foreign:
        raise Refused(403, "This answers pages of its own origin alone", "permission_error", code="other_origin")
    if request.method == "POST" and not request.headers.get("content-type", "").startswith("application/json"):
        raise Refused(415, "Send it as application/json", code="unsupported_media_type")
