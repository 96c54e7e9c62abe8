"""Traffic for the endpoint, from a process of its own: closed loop (clients that wait) or open loop (a fixed rate).

`python -m benchmarks.load URL` reads a plan as JSON from standard input and writes what came back to standard output.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import aiohttp

from benchmarks.machine import ROOT, percentile


@dataclass(frozen=True)
class Plan:
    """`bodies` are sent one after another by `clients` that each wait for an answer, or `rate` a second whatever comes
    back (0: closed loop). `headers` go with every one."""

    bodies: list[dict]
    clients: int = 1
    rate: float = 0.0
    headers: dict[str, str] | None = None
    timeout_s: float = 120.0


@dataclass(frozen=True)
class Reply:
    """One answer as a client saw it: HTTP status (0: the connection broke), seconds from sending to the first text and
    to the end, completion tokens by the usage it ends with, the release ids in it, whether it came to its end, and its
    Retry-After ('' without one)."""

    status: int
    first_s: float | None
    total_s: float
    tokens: int
    releases: list[str]
    whole: bool
    retry_after: str


def send(url: str, plan: Plan) -> tuple[list[Reply], float, float]:
    """The replies in the order of the bodies, seconds from the first to the last, and the client's CPU seconds."""
    command = [sys.executable, "-m", "benchmarks.load", url]
    given = json.dumps(asdict(plan))
    done = subprocess.run(command, cwd=ROOT, input=given, check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout)
    return [Reply(**reply) for reply in told["replies"]], told["seconds"], told["cpu_s"]


def summary(replies: list[Reply], seconds: float) -> dict[str, float]:
    """Tokens a second, failed requests, and percentiles in milliseconds."""
    good = [reply for reply in replies if reply.status == 200 and reply.whole]
    first = [1000 * reply.first_s for reply in good if reply.first_s is not None]
    total = [1000 * reply.total_s for reply in good]
    return {
        "tokens_s": round(sum(reply.tokens for reply in good) / seconds, 1),
        "failed": len(replies) - len(good),
        "first_ms_p50": round(percentile(first, 0.5), 1) if first else None,
        "first_ms_p99": round(percentile(first, 0.99), 1) if first else None,
        "total_ms_p50": round(percentile(total, 0.5), 1) if total else None,
        "total_ms_p99": round(percentile(total, 0.99), 1) if total else None,
    }


async def _drive(url: str, plan: Plan) -> tuple[list[Reply], float]:
    replies: list[Reply | None] = [None] * len(plan.bodies)
    limits = aiohttp.ClientTimeout(total=plan.timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=limits, connector=connector, headers=plan.headers) as session:
        waiting = iter(range(len(plan.bodies)))

        async def client() -> None:
            for at in waiting:
                replies[at] = await _one(session, url, plan.bodies[at])

        async def later(at: int) -> None:
            await asyncio.sleep(max(0.0, start + at / plan.rate - time.perf_counter()))
            replies[at] = await _one(session, url, plan.bodies[at])

        start = time.perf_counter()
        work = [later(at) for at in waiting] if plan.rate else [client() for _ in range(plan.clients)]
        await asyncio.gather(*work)
        return replies, time.perf_counter() - start


async def _one(session: aiohttp.ClientSession, url: str, body: dict) -> Reply:
    start, first, tokens, whole, again = time.perf_counter(), None, 0, False, ""
    releases: set[str] = set()
    try:
        async with session.post(url, json=body) as reply:
            status, again = reply.status, reply.headers.get("retry-after", "")
            if not body.get("stream"):
                told = await reply.json(content_type=None)
                first, whole = time.perf_counter() - start, status == 200
                releases.add(told.get("system_fingerprint", ""))
                tokens = told.get("usage", {}).get("completion_tokens", 0)
            else:
                async for line in reply.content:
                    if not line.startswith(b"data: "):
                        continue
                    if line.startswith(b"data: [DONE]"):
                        whole = True
                        break
                    told = json.loads(line[6:])
                    releases.add(told.get("system_fingerprint", ""))
                    if first is None and any(choice["delta"].get("content") for choice in told["choices"]):
                        first = time.perf_counter() - start
                    tokens = (told.get("usage") or {}).get("completion_tokens", tokens)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        status = 0
    return Reply(status, first, time.perf_counter() - start, tokens, sorted(releases - {""}), whole, again)


if __name__ == "__main__":
    came, took = asyncio.run(_drive(sys.argv[1], Plan(**json.load(sys.stdin))))
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = {"replies": [asdict(reply) for reply in came], "seconds": took, "cpu_s": used.ru_utime + used.ru_stime}
    json.dump(told, sys.stdout)
