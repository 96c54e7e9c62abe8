"""How much a key and an address may ask: requests per minute, tokens and money per day, wrong keys per minute.

Counted in the memory of one endpoint, which is all there is: a request waits for the request log once a day, when the
first that has a budget asks what was spent before this endpoint started.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from serving.keys import Key
from serving.refused import Refused

ADDRESSES = 10_000
MINUTE, DAY = 60.0, 86_400


class Rate:
    """At most `limit` requests a minute per name, all at once if need be, then evenly. The oldest names are forgotten.

    Generic cell rate algorithm (ITU-T I.371): one number per name, when its next minute would be used up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self._used_until = clock, {}

    def take(self, name: str, limit: int) -> tuple[int, float]:
        """Count a request: how many more may come at once, and seconds until all may. Raises Refused 429."""
        now, each = self.clock(), MINUTE / limit
        until = max(self._used_until.pop(name, now), now)
        if until - now > MINUTE - each + 1e-6:
            self._used_until[name] = until
            wait = math.ceil(until - now - MINUTE + each)
            message = f"More than {limit} requests in a minute; try again in {wait} s"
            raise Refused(429, message, "rate_limit_error", code="rate_limit_exceeded", retry_after=max(1, wait))
        self._used_until[name] = until + each
        while len(self._used_until) > ADDRESSES:
            del self._used_until[next(iter(self._used_until))]
        return math.floor((MINUTE - (until + each - now)) / each + 1e-6), until + each - now


class Budgets:
    """Tokens and cost of each key since midnight UTC.

    `spent` says what the request log knows since a time (epoch seconds); it is called in a thread, once a day.
    """

    def __init__(self, spent: Callable[[float], list[dict]], clock: Callable[[], float] = time.time):
        self.spent, self.clock = spent, clock
        self._day, self._used = -1, {}
        self._reading = asyncio.Lock()

    async def hold(self, key: Key, tokens: int, cost: float) -> Callable[[int, float], None]:
        """Set `tokens` and `cost` aside for an answer; returns what takes the real ones instead (once, as the first
        call says).

        Raises Refused 429 until midnight when the day's budget is spent, 503 when nobody can say what was spent.
        Requests under way count with what was set aside, so many at once do not pass an almost empty budget.
        """
        if not (key.tokens_per_day or key.cost_per_day):
            return lambda really, cost: None
        async with self._reading:
            if self._day != self._today:
                await self._read(self._today)
        used = self._used.setdefault(key.id, [0, 0.0])
        if (key.tokens_per_day and used[0] >= key.tokens_per_day) or (key.cost_per_day and used[1] >= key.cost_per_day):
            left = math.ceil(DAY - self.clock() % DAY)
            message = f"The budget of {key.id} for today is spent; it is renewed at midnight UTC"
            raise Refused(429, message, "insufficient_quota", code="insufficient_quota", retry_after=left)
        used[0] += tokens
        used[1] += cost
        settled = False

        def settle(tokens_used: int, spent: float) -> None:
            nonlocal settled
            if not settled:
                settled = True
                used[0] += tokens_used - tokens
                used[1] += spent - cost

        return settle

    def headers(self, key: Key) -> dict[str, str]:
        """What is left of the day's tokens, as OpenAI names it; nothing for a key without such a budget.

        Nothing either while no `hold` has read what was spent today: a header is not worth waiting for.
        """
        if not key.tokens_per_day or self._day != self._today:
            return {}
        left = max(0, key.tokens_per_day - self._used.get(key.id, (0,))[0])
        return _named("tokens", key.tokens_per_day, left, DAY - self.clock() % DAY)

    @property
    def _today(self) -> int:
        return int(self.clock() // DAY)

    async def _read(self, day: int) -> None:
        try:
            rows = await asyncio.to_thread(self.spent, day * DAY)
        except SQLAlchemyError as error:
            message = "What this key has spent today can not be read now"
            raise Refused(503, message, "server_error", code="log_unavailable", retry_after=5) from error
        self._used = {row["key"]: [row["prompt_tokens"] + row["completion_tokens"], row["cost"]] for row in rows}
        self._day = day


class Throttle:
    """Counts bad keys per address. After `limit` of them within a minute, an address is told to wait.

    A right key is never throttled. The oldest addresses are forgotten first.
    """

    def __init__(self, limit: int = 20):
        self.limit = limit
        self._failures: dict[str, list[float]] = {}

    def failed(self, address: str) -> None:
        """Count one bad key. Raises Refused 401, or 429 once there have been too many."""
        now = time.monotonic()
        recent = [at for at in self._failures.pop(address, ()) if now - at < MINUTE][-self.limit :]
        self._failures[address] = [*recent, now]
        while len(self._failures) > ADDRESSES:
            del self._failures[next(iter(self._failures))]
        if len(recent) >= self.limit:
            message = "Too many wrong API keys from this address"
            raise Refused(429, message, "rate_limit_error", code="too_many_bad_keys", retry_after=int(MINUTE))
        raise Refused(401, "Incorrect API key provided", "authentication_error", code="invalid_api_key")


def rate_headers(limit: int, left: int, reset_s: float) -> dict[str, str]:
    return _named("requests", limit, left, reset_s)


def _named(what: str, limit: int, left: int, reset_s: float) -> dict[str, str]:
    named = {"limit": limit, "remaining": left, "reset": f"{math.ceil(reset_s)}s"}
    return {f"x-ratelimit-{name}-{what}": str(value) for name, value in named.items()}
