"""The way to a judge: every request passes one door, which remembers replies, counts what they cost and keeps a budget.

It is a transport of httpx, so that whoever asks (our verdicts, DeepEval, Ragas) asks through it. It repeats nothing:
that is the OpenAI client's job.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from data.records import digest

REMEMBERED = "verdicts.db"
"""The file of a home in which replies are remembered."""
AT_ONCE = 8
MOST_TOKENS = 1024
FRESH = {"Cache-Control": "no-store"}  # headers of a request that must not be answered from memory


@dataclass
class Bill:
    """What one run has asked a judge: money `spent` and `reserved` for requests under way, and how they ended."""

    budget: float
    price_input: float
    price_output: float
    spent: float = 0.0
    reserved: float = 0.0
    asked: int = 0
    remembered: int = 0
    refused: int = 0
    problems: Counter = field(default_factory=Counter)

    def price(self, read: int, written: int) -> float:
        return (read * self.price_input + written * self.price_output) / 1e6

    def says(self) -> str:
        """One line for the log."""
        line = f"judge: {self.asked} requests, {self.remembered} remembered, {self.spent:.4f} of {self.budget} spent"
        if self.refused:
            line += f", {self.refused} refused by the budget (PERENNIAL_JUDGE_BUDGET)"
        return line + "".join(f"; {count} unmeasured: {problem}" for problem, count in self.problems.most_common(3))


class Door(httpx.AsyncBaseTransport):
    """Where requests leave for the judge, each with the `fields` that this judge needs beside what is asked.

    A whole reply is kept by the content of its request, whatever the address.

    Before a request leaves, the most it may cost is set aside (a token is at least a byte), so that requests under way
    together never pass the budget; past it the answer is 402, which no client repeats.
    """

    def __init__(self, bill: Bill, verdicts: sqlite3.Connection, fields: dict):
        self.bill, self.verdicts, self.fields = bill, verdicts, fields
        self.way = httpx.AsyncHTTPTransport()
        self.places = asyncio.Semaphore(AT_ONCE)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = json.loads(await request.aread()) | self.fields
        sent = json.dumps(asked, ensure_ascii=False).encode()
        key, fresh = digest(asked), request.headers.get("cache-control") == "no-store"
        async with self.places:
            known = self.verdicts.execute("SELECT reply FROM verdicts WHERE request = ?", (key,)).fetchone()
            if known and not fresh:
                self.bill.remembered += 1
                return httpx.Response(200, json=json.loads(known[0]), request=request)
            written = asked.get("max_completion_tokens") or asked.get("max_tokens") or MOST_TOKENS
            most = self.bill.price(len(sent), written)
            if self.bill.spent + self.bill.reserved + most > self.bill.budget:
                self.bill.refused += 1
                refusal = {"error": {"message": f"the judge's budget of {self.bill.budget} for this run is spent"}}
                return httpx.Response(402, json=refusal, request=request)
            headers = {name: value for name, value in request.headers.items() if name != "content-length"}
            about = {"headers": headers, "content": sent, "extensions": request.extensions}
            return await self.pass_on(httpx.Request(request.method, request.url, **about), key, most)

    async def pass_on(self, request: httpx.Request, key: str, most: float) -> httpx.Response:
        self.bill.reserved += most
        self.bill.asked += 1
        cost = most  # of a request that got no reply nobody knows what it cost
        try:
            response = await self.way.handle_async_request(request)
            body = await response.aread()
            if response.status_code != 200:
                cost = 0.0
                return response
            reply = completion(body)
            if reply is None:
                strange = {"error": {"message": "no chat completion; does PERENNIAL_JUDGE_URL end with /v1?"}}
                return httpx.Response(502, json=strange, request=request)
            if used := reply.get("usage"):
                cost = self.bill.price(used.get("prompt_tokens", 0), used.get("completion_tokens", 0))
            if whole(reply):
                self.verdicts.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, body.decode()))
            return response
        finally:
            self.bill.reserved -= most
            self.bill.spent += cost

    async def aclose(self) -> None:
        await self.way.aclose()


def completion(body: bytes) -> dict | None:
    """A chat completion with a choice in it, None for anything else that came with status 200 (a web page)."""
    try:
        reply = json.loads(body)
        return reply if isinstance(reply["choices"][0]["message"], dict) else None
    except (ValueError, LookupError, TypeError):
        return None


def whole(reply: dict) -> bool:
    """Whether the content of a completion is JSON to its end. Another is not remembered: asked again, it may be."""
    choice = reply["choices"][0]
    try:
        json.loads(choice["message"].get("content") or "")
    except ValueError:
        return False
    return choice.get("finish_reason") == "stop"


def forget(file: Path) -> int:
    """Clears what is remembered in a file, and says how much that was."""
    with closing(memory(file)) as verdicts:
        verdicts.execute("PRAGMA secure_delete=ON")
        return verdicts.execute("DELETE FROM verdicts").rowcount


def memory(file: Path) -> sqlite3.Connection:
    """The verdicts remembered in a file, a request's digest and its reply; made where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    verdicts = sqlite3.connect(file, timeout=30, isolation_level=None)
    verdicts.execute("PRAGMA journal_mode=WAL")
    verdicts.execute("PRAGMA synchronous=NORMAL")  # a verdict lost in a crash is asked for again
    verdicts.execute("CREATE TABLE IF NOT EXISTS verdicts (request TEXT PRIMARY KEY, reply TEXT NOT NULL)")
    return verdicts
