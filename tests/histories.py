"""A ledger and a request log with a week in them: releases, an alarm, remedies, a gate that held, traffic, ratings."""

import json
import math
import random
import time
from dataclasses import asdict, replace
from pathlib import Path

import sqlalchemy as sa

from data.ledger import Ledger
from data.records import Decision, Interval, Prompt, Release, as_json
from data.requests import Logged, RequestLog, requests
from data.reviews import ask_held
from data.tables import assistants, decisions, feedback, outbox, releases
from tests.ledgers import new_ledger, release

DAY = 86_400
SCRIPT = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
"""Hostile text: as a question, as the title of a document, as a person's note."""


def filled(folder, asked: int = 400, now: float | None = None) -> tuple[Ledger, RequestLog]:
    """The assistants `handbook` (a busy week), `new` (nothing live) and `quiet` (live, paused); `asked` requests."""
    now = now or time.time()
    ledger, log = new_ledger(folder, "handbook", "new", "quiet"), RequestLog(f"sqlite:///{folder}/requests.db")
    first, tuned, held, healed, broken = made()
    started = now - 6 * DAY
    live(ledger, first, "bootstrap", None, started, "All 6 hard constraints hold.")
    live(ledger, tuned, "tuned", first, started + 2400, "Better than the champion: correct +12.4 points.", folder)
    judge(ledger, held, "tuned", tuned, now - 3 * DAY, "hold", "Not settled: grounding -2.1 points.", folder)
    ask_held(ledger, "handbook", Decision("hold", "Not settled.", held.id, tuned.id))
    edit = remedy(ledger, "reindex", now - 2 * DAY, 41.0, "Not worse than the champion.", stale())
    live(ledger, healed, "reindex", tuned, now - 2 * DAY + 20, "Not worse than the champion: probes pass.", folder)
    decide(ledger, "outcome", None, "recovered", "after reindex quiet again: staleness", {"outbox": edit}, edit_at(now))
    live(ledger, broken, "reprompt", healed, now - DAY, "Not worse than the champion: correct +0.4 points.", folder)
    remedy(ledger, "rollback", now - DAY + 9000, 6.5, f"from {broken.id} to {healed.id}", fell())
    go_live(ledger, healed, "rollback", now - DAY + 9005)
    decide(ledger, "pause", None, "resumed", f"resumed by ann: {SCRIPT}", {}, now - DAY + 12_000)
    waits(ledger, now - 600)
    other = release("quiet", "q")
    live(ledger, other, "bootstrap", None, now - 9 * DAY, "All 6 hard constraints hold.")
    ledger.pause("quiet", True)
    ledger.store_signals("handbook", signals(now))
    write(log, ledger, healed, asked, now)
    return ledger, log


def made() -> tuple[Release, ...]:
    first = release("handbook", "a")
    tuned = replace(first, model=replace(first.model, sha256="d" * 64, adapter="e" * 64))
    held = replace(tuned, model=replace(tuned.model, sha256="f" * 64))
    healed = replace(tuned, index=replace(tuned.index, checksum="newer", chunks=129))
    return first, tuned, held, healed, replace(healed, prompt=Prompt(system="Answer at length."))


def edit_at(now: float) -> float:
    return now - 2 * DAY + 400


# --- rows with the times they would have had --------------------------------------------------


def decide(ledger, kind, candidate, verdict, reason, body, at, name="handbook") -> int:
    row = {"assistant": name, "kind": kind, "release": candidate, "verdict": verdict, "reason": reason, "body": body}
    with ledger.write() as c:
        return c.execute(decisions.insert().values(**row, at=at)).inserted_primary_key[0]


def judge(ledger, candidate, kind, parent, at, verdict, reason, folder=None) -> None:
    ledger.add_release(candidate, kind, parent.id if parent else None, {})
    with ledger.write() as c:
        c.execute(releases.update().where(releases.c.id == candidate.id).values(at=at))
    stored = evaluation(folder, candidate) if folder else ""
    said = Decision(verdict, reason, candidate.id, parent.id if parent else None, evaluation=stored)
    if parent:
        said = replace(said, intervals=intervals(verdict), settings={"primary": "correct"})
        said = replace(said, metrics={"correct": 0.71, "token_f1": 0.68, "grounding": 0.93, "latency": 0.84})
        said = replace(said, baseline={"correct": 0.58, "token_f1": 0.61, "grounding": 0.95, "latency": 0.80})
        said = replace(said, notes=("A/A: 4.8% of 2000 random exchanges of the two arms came out better.",))
    decide(ledger, "gate", candidate.id, verdict, reason, as_json(said), at + 15, candidate.assistant)


def live(ledger, candidate, kind, parent, at, reason, folder=None) -> None:
    judge(ledger, candidate, kind, parent, at, "promote" if parent else "bootstrap", reason, folder)
    asked, body = {"question": SCRIPT, "answer": "30 days", "seconds": 0.4}, {"canary": "replay", "requests": 50}
    name = candidate.assistant
    decide(ledger, "smoke", candidate.id, "answered", "the release answered as itself", asked, at + 17, name)
    decide(ledger, "canary", candidate.id, "held", "50 answers without a broken constraint", body, at + 19, name)
    go_live(ledger, candidate, "promotion", at + 20)


def go_live(ledger, candidate, kind, at) -> None:
    decide(ledger, kind, candidate.id, "live", "", {}, at, candidate.assistant)
    with ledger.write() as c:
        mine = assistants.update().where(assistants.c.name == candidate.assistant)
        c.execute(mine.values(live_release=candidate.id, live_since=at))


def remedy(ledger, kind, at, seconds, note, evidence) -> int:
    row = {"assistant": "handbook", "kind": kind, "cause": str(at), "state": "acted", "note": note, "attempts": 1}
    with ledger.write() as c:
        body = {"reason": evidence["reason"], "signals": [signal["name"] for signal in evidence["signals"]]}
        times = {"at": at, "settled_at": at + seconds + 3}
        seq = c.execute(outbox.insert().values(**row, **times, body=body)).inserted_primary_key[0]
    found = {"kind": kind, "row": evidence["row"], "reason": evidence["reason"], "expected_cost": 5.0, "outbox": seq}
    found |= {"brakes": {"refuses": "", "holds": ""}, "alternatives": alternatives()}
    seen = {name: value for name, value in evidence.items() if name not in ("row", "reason")}
    decide(ledger, "diagnosis", None, kind, evidence["reason"], found | {"evidence": seen}, at)
    decide(ledger, "remedy", None, "acted", note, {"outbox": seq, "seconds": seconds, "run": "r"}, at + seconds + 2)
    return seq


def waits(ledger, at) -> None:
    with ledger.write() as c:
        body = {"reason": "4 sections changed, are new or are gone since they were indexed."}
        row = {"assistant": "handbook", "kind": "reindex", "cause": "c", "state": "open", "body": body, "at": at}
        c.execute(outbox.insert().values(**row))


# --- what was seen ----------------------------------------------------------------------------


def alternatives() -> list[dict]:
    rows = (("6", "retrain", 60.0), ("7", "reprompt", 15.0), ("5", "alert", 30.0), ("11", "alert", 30.0))
    why = "the evidence does not fit"
    return [{"row": row, "kind": kind, "expected_cost": cost, "why not": why} for row, kind, cost in rows]


def stale() -> dict:
    sentence = "3 sections changed, 1 are new and 0 are gone since the index was built."
    seen = {"name": "staleness", "value": 0.03, "alarm": True, "sentence": sentence, "evidence": {"changed": 3}}
    reason = "4 sections changed, are new or are gone since they were indexed."
    return {"row": "3", "reason": reason, "signals": [seen], "stale_sections": 4}


def fell() -> dict:
    state = {"p0": 0.09, "events": 142, "alarm": True}
    drop = {"rate": 0.31, "n": 142, "since": 61, "level": 6e6, "state": state}
    sentence = "grounding got worse: 31.0% words of answers that no passage holds among the last 142."
    topics = [{"words": "parental leave", "window_share": 0.2, "reference_share": 0.02, "examples": [SCRIPT]}]
    moved = "The questions moved (p 0.002 in this window of 100): parental leave (20% of questions)."
    questions = {"name": "questions", "value": 0.998, "alarm": True, "sentence": moved}
    signals = [
        {"name": "grounding", "value": 1.0, "alarm": True, "sentence": sentence, "evidence": drop},
        questions | {"evidence": {"p": 0.002, "topics": topics}},
    ]
    reason = "Quality fell with the last release, and the one before does better: +9.0 points on 120 questions."
    replay = {"release": as_json(interval("release", 0.09, 0.04, 0.14, 0.0))}
    return {"row": "2", "reason": reason, "signals": signals, "replay": replay, "loss": 0.2, "quality_alarm": True}


def interval(metric, mean, lower, upper, margin, verdict="promote") -> Interval:
    return Interval(metric, mean, lower, upper, 240, 60, margin, 0.18, 0.043, verdict, 0.86)


def intervals(verdict) -> tuple[Interval, ...]:
    grounding = (-0.02, -0.12, 0.05, 0.10, "hold") if verdict == "hold" else (-0.02, -0.04, 0.01, 0.10, "promote")
    return (
        interval("correct", 0.124, 0.071, 0.178, 0.05),
        interval("grounding", *grounding),
        interval("abstention", 0.01, -0.03, 0.05, 0.10),
        interval("safety", 0.0, -0.01, 0.01, 0.10),
        interval("latency", -0.05, -0.12, 0.02, 0.22),
    )


def evaluation(folder, candidate) -> str:
    """The files that an evaluation leaves: its scores, and a page with a hostile text that was let slip through."""
    path = Path(folder) / "reports" / candidate.id / "0123456789abcdef.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    questions = [f"q{n}" for n in range(40)]
    where = [("travel",) if n % 2 else ("leave",) for n in range(40)]
    arms = {"candidate": [n % 10 != 1 for n in range(40)], "champion": [n % 3 != 0 for n in range(40)]}
    scores = {arm: {"correct": [float(right) for right in values]} for arm, values in arms.items()}
    body = {arm: {"questions": questions, "metrics": metrics, "slices": where} for arm, metrics in scores.items()}
    path.write_text(json.dumps(body | {"sealed": ["q0", "q2"]}))
    path.with_suffix(".html").write_text(f"<!doctype html><title>PROMOTED</title><h1>Evaluation</h1>{SCRIPT}")
    return str(path)


def signals(now) -> dict[str, dict]:
    """What the monitor remembers after a day of runs."""
    told, states = {}, {"cursor": {"at": now - 120}}
    times = [now - 300 * (260 - n) for n in range(260)]
    groups = {
        "retrieval": ("top score", "score gap", "unanswerable"),
        "answers": ("grounding", "abstention", "answer length", "citations"),
        "ratings": ("ratings", "edits", "labels"),
        "service": ("errors", "first token", "latency", "cost"),
        "queries": ("question length", "question language"),
    }
    for group, names in groups.items():
        for place, name in enumerate(names):
            loud, learning = name == "latency", name == "labels"
            rates = [0.05 + 0.02 * math.sin(n / 9 + place) + (0.25 * (n > 220) if loud else 0) for n in range(260)]
            near = [min(1.0, (n - 215) / 30) if loud and n > 215 else 0.2 + 0.1 * math.sin(n / 11) for n in range(260)]
            trail = [[round(t), round(v, 4), round(r, 4), 12] for t, v, r in zip(times, near, rates, strict=True)]
            detector = {"p0": 0.09, "threshold": 5.4e6, "events": 3100, "alarm": loud, "since": 2700}
            states[name] = {"detector": None, "reference": [0.0] * 12} if learning else {"detector": detector}
            states[name] |= {"trail": [] if learning else trail}
            sentence = f"{name} is in line: 5.0% among the last 12, at most 9.0% before."
            if learning:
                sentence = "labels is still learning what is usual: 12 of 60 events."
            if loud:
                sentence = "latency got worse: 30.0% slow answers among the last 12, against at most 9.0% before."
            told[name] = {"group": group, "alarm": loud, "sentence": sentence}
    windows = [[round(times[n]), 0.4 + 0.3 * math.sin(n / 20), 0.5, 100] for n in range(0, 260, 26)]
    states["questions"] = {"detector": {"p0": 0.0, "alarm": False}, "windows": 10, "trail": windows}
    sentence = "One window of 100 questions is out of line (p 0.040): parental leave (20% of questions)."
    told["questions"] = {"group": "queries", "alarm": False, "sentence": sentence}
    steps = [[round(t), float(n == 200)] for n, t in enumerate(times)]
    calm = "The index is current: no section changed, is new or is gone."
    told["staleness"] = {"group": "documents", "alarm": False, "sentence": calm, "trail": steps}
    return states | {"told": told}


def write(log: RequestLog, ledger: Ledger, answering: Release, count: int, now: float) -> None:
    """Requests and thumbs of seven days, busier by day."""
    rng, rows, rated = random.Random(7), [], []
    for n in range(count):
        at = now - 6.9 * DAY * (1 - n / count)
        if rng.random() > 0.55 + 0.45 * math.sin(at / DAY * 2 * math.pi):
            continue
        slow = 2.2 if n > 0.93 * count else 1.0
        first = slow * rng.lognormvariate(-1.4, 0.4)
        row = Logged(f"r{n}", at, "handbook", answering.id, "live", question=f"q{n} {SCRIPT}", answer="30 days")
        row.status = 500 if rng.random() < 0.01 else 200
        row.abstained, row.grounding = rng.random() < 0.08, min(1.0, rng.gauss(0.93, 0.04))
        row.first_token_s, row.total_s = first, first + slow * rng.lognormvariate(-0.6, 0.5)
        row.prompt_tokens, row.completion_tokens, row.cost = 620, 18, 620 * 0.02e-6 + 18 * 0.1e-6
        rows.append(asdict(row))
        if rng.random() < 0.1:
            rating = 1 if rng.random() < 0.86 else -1
            rated.append({"assistant": "handbook", "release": answering.id, "rating": rating, "at": at})
    with log.engine.begin() as c:
        c.execute(requests.insert(), rows)
    with ledger.write() as c:
        c.execute(sa.insert(feedback), rated)
