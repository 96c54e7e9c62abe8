"""Remedies as outbox rows: ask for one, claim it, brake it, settle it once (DESIGN invariants 3 and 11)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from data.ledger import Ledger
from data.outbox import by_hand
from data.records import Record
from data.requests import RequestLog
from serving.engine.upstream import untunable
from settings import settings
from tasks import references
from tasks.evidence import DiagnosisSettings
from tasks.streams import BROKEN

COOLDOWN_S = {
    "reindex": 20.0,
    "retrain": 3600.0,
    "reprompt": 3600.0,
    "rollback": 600.0,
    "recalibrate": 3600.0,
    "collect": 86_400.0,
    "quarantine_ratings": 600.0,
}
"""Seconds between two remedies of a kind."""
WEEK_S = 7 * 86_400


@dataclass(frozen=True)
class Brakes(Record):
    """What keeps a remedy from running too often: seconds between two of a kind, and what may be used in seven days.

    `cooldown_s` by kind counts in place of COOLDOWN_S. `weekly` counts remedies of a kind, `weekly_s` their seconds of
    machine time and `weekly_cost` what these cost at `price_per_hour`, in its currency. `evidence` is how many events a
    stream must have seen before its alarm may act. For `opt_out_s` after it was asked for, a person can veto a remedy
    before it starts.
    """

    cooldown_s: dict[str, float] = field(default_factory=dict)
    weekly: int = 200
    weekly_s: float = 100_000.0
    price_per_hour: float = 0.10
    weekly_cost: float = 10.0
    attempts: int = 3
    evidence: int = DiagnosisSettings.evidence
    opt_out_s: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A claimed outbox row: what to do, for whom, why.

    `note` takes the sentence the row is settled with; `again` takes why it is to be tried again instead.
    """

    outbox: int
    assistant: str
    kind: str
    cause: str
    body: dict
    note: Callable[[str], None]
    again: Callable[[str], None]


def refused(ledger: Ledger, row: dict, brakes: Brakes, now: float) -> str:
    """Why this row will never run, or '': attempts or the week's budget used up, a person asks in a pause, or the live
    model can not be tuned."""
    name, kind = row["assistant"], row["kind"]
    if row["attempts"] >= brakes.attempts:
        return f"it failed {row['attempts']} times"
    if kind == "retrain" and (live := ledger.live()[name].live) and (why := untunable(live.model)):
        return why
    if by_hand(row):
        return f"automation of {name!r} is paused" if ledger.assistant(name)["paused"] else ""
    seen = row["body"].get("events")
    if seen is not None and seen < brakes.evidence:
        return f"its alarm rests on {seen} events; at least {brakes.evidence} are needed"
    recent = [r for r in ledger.outbox(name, ("acted",)) if r["kind"] == kind and now - r["settled_at"] < WEEK_S]
    if len(recent) >= brakes.weekly:
        return f"{len(recent)} of {brakes.weekly} {kind} runs of this week are used up"
    used = spent(ledger, name, now - WEEK_S)
    if used >= brakes.weekly_s:
        return f"{used:.0f} of {brakes.weekly_s:.0f} s of machine time of this week are used up"
    if (money := used / 3600 * brakes.price_per_hour) >= brakes.weekly_cost:
        return f"{money:.2f} of {brakes.weekly_cost:.2f} of this week's money are used up"
    return ""


def spent(ledger: Ledger, name: str, since: float) -> float:
    """Seconds of machine time that remedies of an assistant took since a time (epoch seconds), failed ones too."""
    runs = ledger.decisions(name, "remedy", limit=10_000)
    return sum(run["body"]["seconds"] for run in runs if run["at"] >= since)


def waited(ledger: Ledger, name: str, since: float) -> float:
    """Seconds that runs of an assistant stood still for a person's word, given since a time: no machine time."""
    words = ledger.decisions(name, "approval", limit=1000)
    return sum(word["body"].get("waited", 0.0) for word in words if word["at"] >= since)


def waits(ledger: Ledger, row: dict, brakes: Brakes, now: float) -> str:
    """Why this row must wait, or '': a pause, a cooldown, or its kind is running. It stays open for `reconcile`."""
    name, kind = row["assistant"], row["kind"]
    if [r for r in ledger.outbox(name, ("claimed",)) if r["kind"] == kind]:
        return f"a {kind} of {name!r} is running"
    if by_hand(row):
        return ""
    if ledger.assistant(name)["paused"]:
        return f"automation of {name!r} is paused"
    if 0 <= now - row["at"] < brakes.opt_out_s:
        return f"it may be vetoed for another {brakes.opt_out_s - (now - row['at']):.0f} s"
    acted = [r for r in ledger.outbox(name, ("acted",)) if r["kind"] == kind]
    cooldown = (COOLDOWN_S | brakes.cooldown_s)[kind]
    if acted and 0 <= now - acted[-1]["settled_at"] < cooldown:
        return f"the last {kind} ended {now - acted[-1]['settled_at']:.0f} s ago; the cooldown is {cooldown:.0f} s"
    return ""


def consulted(ledger: Ledger, name: str, kind: str, body: dict, brakes: Brakes = Brakes()) -> dict[str, str]:
    """What each brake says to a remedy that is about to be asked for: 'refuses' and 'holds', '' where it lets go."""
    now = time.time()
    row = {"assistant": name, "kind": kind, "attempts": 0, "body": body, "at": now}
    return {"refuses": refused(ledger, row, brakes, now), "holds": waits(ledger, row, brakes, now)}


def pause(ledger: Ledger, assistant: str, paused: bool, who: str, why: str = "") -> None:
    """Stop or resume the automatic remedies of an assistant, on record; open remedies wait and are not lost.

    Who resumes has seen to what was broken: its detectors begin again, with the requests from now on.
    """
    ledger.assistant(assistant)
    if not paused:
        known = ledger.signal_states(assistant)
        states = {name: references.restarted(known[name]) for name in BROKEN if name in known}
        if "cursor" in known:
            states["cursor"] = known["cursor"] | {"request": RequestLog(settings().requests).last_id(assistant)}
        ledger.store_signals(assistant, states)
    ledger.pause(assistant, paused)
    verdict = "paused" if paused else "resumed"
    ledger.decide(assistant, "pause", None, verdict, f"{verdict} by {who}" + (f": {why}" if why else ""), {})


@contextmanager
def claimed(ledger: Ledger, outbox: int, run: str, brakes: Brakes) -> Iterator[Claim | None]:
    """Hold an outbox row while its remedy runs, and settle it 'acted' at the end with what `Claim.note` was told.

    Yields None, and nothing is to be done now, when the row is settled or taken, or a brake holds it or refuses it.
    When the remedy raises, or says `Claim.again`, the claim is given back, and `reconcile` tries again until the
    attempts are used up.
    """
    found = next((row for row in ledger.outbox() if row["seq"] == outbox), None)
    if found is None:
        raise KeyError(f"there is no outbox row {outbox}")
    if found["state"] == "open" and (reason := refused(ledger, found, brakes, time.time())):
        print(f"{found['kind']} refused: {reason}")
        ledger.settle(outbox, "refused", reason)
        yield None
        return
    if found["state"] == "open" and (reason := waits(ledger, found, brakes, time.time())):
        print(f"{found['kind']} waits: {reason}")
        yield None
        return
    row = ledger.claim(outbox, run)
    if row is None:
        print(f"outbox row {outbox} is {found['state']}, or a {found['kind']} of {found['assistant']!r} is running")
        yield None
        return
    said: list[str] = []
    unfinished: list[str] = []
    at, start, ended = time.time(), time.monotonic(), "failed"
    try:
        yield Claim(outbox, row["assistant"], row["kind"], row["cause"], row["body"], said.append, unfinished.append)
        ended = "again" if unfinished else "acted"
    except BaseException:
        ledger.free(outbox, run)
        raise
    finally:
        seconds = time.monotonic() - start - waited(ledger, row["assistant"], at)
        cost = {"outbox": outbox, "seconds": round(max(0.0, seconds), 1), "run": run}
        ledger.decide(row["assistant"], "remedy", None, ended, said[-1] if said else row["kind"], cost)
    if unfinished:
        print(f"{row['kind']} will be tried again: {unfinished[-1]}")
        ledger.free(outbox, run)
    else:
        ledger.settle(outbox, "acted", said[-1] if said else "done", run)
