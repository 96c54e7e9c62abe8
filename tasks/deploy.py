"""Warm, smoke, canary, promote, roll back. The endpoint finds the live release in the ledger; nothing is pushed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import httpx

from data.ledger import Ledger
from data.records import Record, Release
from settings import settings
from tasks.cluster import connect


@dataclass(frozen=True)
class Canary(Record):
    """Hard constraints over `requests` answers; `share` of live traffic goes to the canary if it brings enough."""

    requests: int = 50
    share: float = 0.10
    wait_s: float = 30.0
    clients: int = 4
    champion_requests: int = 12
    max_latency_ratio: float = 3.0


@dataclass(frozen=True)
class Asked(Record):
    """One answer of the endpoint as a client saw it. `problem` is empty when it was sound."""

    release: str
    text: str
    citations: int
    seconds: float
    problem: str


def ask(assistant: str, question: str, release: str | None = None, source: str = "smoke", timeout: float = 60) -> Asked:
    """Ask the endpoint over HTTP; with `release`, that very release must answer, live or not."""
    from serving.router import internal_token

    headers = {"x-perennial-source": source}
    if settings().api_key:
        headers["authorization"] = f"Bearer {settings().api_key}"
    if release:
        headers |= {"x-perennial-release": release, "x-perennial-token": internal_token()}
    body = {"model": assistant, "messages": [{"role": "user", "content": question}], "temperature": 0}
    start = time.monotonic()
    try:
        reply = httpx.post(f"{settings().endpoint}/v1/chat/completions", json=body, headers=headers, timeout=timeout)
    except httpx.HTTPError as error:
        return Asked("", "", 0, time.monotonic() - start, f"no answer: {type(error).__name__}")
    seconds = time.monotonic() - start
    if reply.status_code != 200:
        return Asked("", "", 0, seconds, f"status {reply.status_code}: {reply.text[:200]}")
    answer = reply.json()
    text, served = answer["choices"][0]["message"]["content"], answer["system_fingerprint"]
    problem = ""
    if release and served != release:
        problem = f"answered by {served}, not {release}"
    elif not text.strip():
        problem = "an empty answer"
    else:
        unresolved = [c["number"] for c in answer["citations"] if f"[{c['number']}]" not in text or not c.get("text")]
        if unresolved:
            problem = f"citation [{unresolved[0]}] does not resolve"
    return Asked(served, text, len(answer["citations"]), seconds, problem)


def warm(release: Release) -> None:
    """Start the release's artifact beside the live ones and wait until it generates; retire what is no longer needed.

    The candidate stays and, of its assistant, the artifact that was live before.
    """
    from serving import replica

    ledger = Ledger(settings().ledger)
    connect()
    replica.deploy(release.model)
    keep = in_use(ledger) | {release.model.sha256[:12]}
    previous = [ledger.release(accepted) for accepted in ledger.accepted_releases(release.assistant)[:8]]
    others = [p.model.sha256[:12] for p in previous if p.model.sha256[:12] not in keep]
    for sha in replica.running() - keep - set(others[:1]):
        replica.delete(sha)


def in_use(ledger: Ledger) -> set[str]:
    """The artifacts (first 12 digits of their sha256) that answer users of any assistant, or are about to."""
    keep = set()
    for name, routing in ledger.live().items():
        keep |= {r.model.sha256[:12] for r in (routing.live, routing.canary, routing.b) if r}
        for row in ledger.decisions(name, "gate", 5):  # a candidate that is in its smoke query or canary just now
            if row["verdict"] in ("promote", "bootstrap") and time.time() - row["at"] < 1800:
                keep.add(ledger.release(row["release"]).model.sha256[:12])
    return keep


def smoke(release: Release, question: str, patience_s: float = 60) -> str:
    """Ask the candidate one question through the endpoint until it answers as itself; the problem, or ''."""
    deadline = time.monotonic() + patience_s
    while True:
        asked = ask(release.assistant, question, release.id)
        if not asked.problem or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    verdict, ledger = "silent" if asked.problem else "answered", Ledger(settings().ledger)
    body = {"question": question, "answer": asked.text, "seconds": asked.seconds}
    ledger.decide(
        release.assistant, "smoke", release.id, verdict, asked.problem or "the release answered as itself", body
    )
    return asked.problem


def canary(release: Release, questions: Sequence[str], chosen: Canary = Canary()) -> str:
    """Watch the candidate answer `requests` questions; the broken hard constraint, or ''.

    If the last minute's traffic would bring enough to the candidate's share within `wait_s`, that share is sent to it;
    otherwise `questions` are replayed at once through the endpoint.
    """
    name, ledger = release.assistant, Ledger(settings().ledger)
    live = ledger.live()[name].live
    enough = requests_per_s(name) * chosen.share * chosen.wait_s >= chosen.requests
    mode = "traffic" if live and enough else "replay"
    replayed = [questions[n % len(questions)] for n in range(chosen.requests)]
    if mode == "traffic":
        asked = _watch_traffic(ledger, release, chosen)
        if len(asked) < chosen.requests:  # traffic stopped: the rest is replayed
            mode = "traffic and replay"
            asked += _replay(name, replayed[len(asked) :], release.id, chosen.clients)
    else:
        asked = _replay(name, replayed, release.id, chosen.clients)
    broken = next((a.problem for a in asked if a.problem), "")
    ratio = None
    if not broken and live and live.model.sha256 != release.model.sha256:
        some = replayed[: chosen.champion_requests]
        ratio = _latency_ratio(name, some, release.id, live.id)
        if ratio > chosen.max_latency_ratio:
            broken = f"{ratio:.1f} times as slow as the live release (at most {chosen.max_latency_ratio})"
    body = {"canary": mode, "requests": len(asked), "latency_ratio": ratio}
    reason = broken or f"{len(asked)} answers without a broken constraint ({mode})"
    ledger.decide(name, "canary", release.id, "broken" if broken else "held", reason, body)
    return broken


def requests_per_s(name: str) -> float:
    """Users' requests a second over the last minute."""
    from data.requests import RequestLog

    log = RequestLog(settings().requests)
    recent = log.window(name, max(0, log.last_id(name) - 5000), 5000)
    return sum(row["source"] == "user" and row["at"] > time.time() - 60 for row in recent) / 60


def _replay(name: str, questions: Sequence[str], release: str, clients: int) -> list[Asked]:
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda question: ask(name, question, release, source="canary"), questions))


def _latency_ratio(name: str, questions: Sequence[str], candidate: str, champion: str) -> float:
    """Median seconds of the candidate over the champion's, the two asked in turn."""
    pairs = [(ask(name, q, candidate, "canary").seconds, ask(name, q, champion, "canary").seconds) for q in questions]
    return statistics.median(a for a, _ in pairs) / max(statistics.median(b for _, b in pairs), 1e-9)


def _watch_traffic(ledger: Ledger, release: Release, chosen: Canary) -> list[Asked]:
    from data.requests import RequestLog

    log = RequestLog(settings().requests)
    start = log.last_id(release.assistant)
    ledger.set_canary(release.assistant, release.id, chosen.share)
    deadline = time.monotonic() + chosen.wait_s * 2
    try:
        while True:
            rows = [row for row in log.window(release.assistant, start, 10_000) if row["release"] == release.id]
            if len(rows) >= chosen.requests or time.monotonic() > deadline:
                return [_seen(row) for row in rows]
            time.sleep(1)
    finally:
        ledger.set_canary(release.assistant, None)


def _seen(row: dict) -> Asked:
    """A logged request; a client that went away or asked badly is not the release's fault."""
    return Asked(row["release"], row["answer"] or "", 0, row["total_s"], row["error"] if row["status"] >= 500 else "")


def rollback_release(ledger: Ledger, name: str, to: str | None, keep_index: bool) -> Release:
    """The release to go back to: `to`, else the accepted one before the live one.

    With `keep_index` it takes that release's model, prompt and settings over the live index, so that going back does
    not bring an old edition of the documents back. Raises ValueError when there is nothing to go back to.
    """
    live = ledger.live()[name].live
    if live is None:
        raise ValueError(f"{name!r} has no live release, so there is nothing to roll back")
    known = ledger.accepted_releases(name)
    if to and to not in known:
        raise ValueError(f"{to} was never live for {name!r}; it can be one of {', '.join(known)}")
    target = ledger.release(to) if to else None
    for accepted in known:
        if target:
            break
        before = ledger.release(accepted)
        same = replace(before, index=live.index) if keep_index else before
        if same.id != live.id:
            target = before
    if target is None:
        raise ValueError(f"{name!r} has had no other release than {live.id}; there is nothing to roll back to")
    return replace(target, index=live.index) if keep_index else target
