"""What people are shown of an assistant: what is live, its state, its releases, its signals, and all that happened.

Read from the ledger and the request log as plain JSON of selected fields. Texts of users and documents are left out
unless `texts` says so. Times are epoch seconds.
"""

from __future__ import annotations

import time

import sqlalchemy as sa

from data import cycles, traffic
from data.cycles import MOST, described, without_topics
from data.ledger import Ledger
from data.requests import RequestLog
from data.reviews import HELD
from data.tables import decisions, outbox, releases, reviews

DAY_S = 86_400
STEPS = 56
"""Points of a plot over time."""
MOST_POINTS = 120
"""Points of a signal's trail that are shown; of several runs of the monitor the worst one."""
LANES = {
    "diagnosis": "decisions",
    "remedy": "remedies",
    "gate": "gates",
    "smoke": "canaries",
    "canary": "canaries",
    "promotion": "releases",
    "rollback": "releases",
    "outcome": "outcomes",
    "pause": "people",
    "veto": "people",
    "approval": "people",
}
"""Kind of decision -> the lane of the timeline that it is drawn on; any other kind is drawn on `others`."""


def overview(ledger: Ledger, log: RequestLog) -> list[dict]:
    """Every assistant: what is live, its state, and its traffic of the last hour, of today and of seven days (UTC)."""
    now = time.time()
    today = now // DAY_S * DAY_S
    week = today - 6 * DAY_S
    found = []
    for row in ledger.assistants():
        name, states = row["name"], ledger.signal_states(row["name"])
        recent = traffic.sums(log, name, week, 7 * DAY_S / STEPS)
        hour = next(iter(traffic.traffic(log, name, now - 3600, 3601)), None)
        thumbs = traffic.ratings(ledger, name, week, 7 * DAY_S)
        found.append(
            {
                "name": name,
                "live": _live(ledger, row),
                "state": state(ledger, row, states),
                "watched": states.get("cursor", {}).get("at"),
                "hour": hour,
                "today": _added(recent, today),
                "week": _added(recent, week),
                "recent": {"since": week, "step": 7 * DAY_S / STEPS, "rows": recent},
                "thumbs": {side: sum(rated[side] for rated in thumbs) for side in ("up", "down")},
            }
        )
    return found


def _added(rows: list[dict], since: float) -> dict:
    names = ("requests", "answered", "declined", "errors", "tokens", "cost")
    return {name: sum(row[name] for row in rows if row["at"] >= since) for name in names}


def _live(ledger: Ledger, row: dict) -> dict | None:
    if row["live_release"] is None:
        return None
    (live,) = described(ledger, [ledger.release_row(row["live_release"])])
    return live | {"since": row["live_since"]}


def state(ledger: Ledger, row: dict, states: dict[str, dict]) -> list[dict]:
    """What is to be said of an assistant now: `tone` (bad | warn | busy | good | idle) and `text`."""
    name, said = row["name"], []
    alarms = [signal["name"] for signal in signals(states, True) if signal["alarm"]]
    if row["live_release"] is None:
        said.append(("idle", "nothing live yet"))
    if row["paused"]:
        said.append(("warn", "automation paused"))
    if alarms:
        said.append(("bad", f"{len(alarms)} in alarm: {', '.join(alarms)}"))
    o = outbox.c
    for asked in ledger.rows(sa.select(o.kind, o.state).where(o.assistant == name, o.state.in_(("open", "claimed")))):
        said.append(("busy", f"{asked['kind']} {'is running' if asked['state'] == 'claimed' else 'waits to start'}"))
    if row["canary_release"]:
        said.append(("busy", f"canary at {row['canary_share']:.0%}"))
    waiting = sa.select(reviews.c.kind, sa.func.count().label("n")).where(
        reviews.c.assistant == name, reviews.c.state == "open"
    )
    counts = {one["kind"]: one["n"] for one in ledger.rows(waiting.group_by(reviews.c.kind))}
    if held := counts.pop(HELD, 0):
        said.append(("warn", f"{held} held release{'s' * (held > 1)} to review"))
    if counts:
        said.append(("idle", f"{sum(counts.values())} to review"))
    calm = not any(tone in ("bad", "warn") for tone, _ in said) and row["live_release"]
    if calm:
        watched = states.get("cursor", {}).get("at")
        said.insert(0, ("good", "healthy") if watched else ("idle", "live, not watched yet"))
    return [{"tone": tone, "text": text} for tone, text in said]


# --- one assistant ----------------------------------------------------------------------------


def assistant(ledger: Ledger, log: RequestLog, name: str, days: int, texts: bool) -> dict:
    """One assistant over the last `days`: state, releases, cycles, marks on the timeline, signals, traffic, thumbs.

    KeyError: there is no such assistant.
    """
    row, states, now = ledger.assistant(name), ledger.signal_states(name), time.time()
    step = days * DAY_S / STEPS
    since = (now // step - STEPS + 1) * step  # whole steps, so that a point is the same at the next look
    found = cycles.listed(ledger, name, since)
    return {
        "name": name,
        "since": since,
        "until": since + STEPS * step,
        "step": step,
        "live": _live(ledger, row),
        "state": state(ledger, row, states),
        "watched": states.get("cursor", {}).get("at"),
        "releases": lineage(ledger, name),
        "cycles": found,
        "marks": marks(ledger, name, since, found),
        "signals": signals(states, texts, since),
        "traffic": traffic.traffic(log, name, since, step),
        "ratings": traffic.ratings(ledger, name, since, step),
    }


def lineage(ledger: Ledger, name: str) -> list[dict]:
    """The last releases, newest first, each with its parent, what changed, the gate's verdict and when it went live."""
    query = sa.select(releases).where(releases.c.assistant == name).order_by(releases.c.at.desc()).limit(40)
    rows = ledger.rows(query)
    d = decisions.c
    columns = (d.release, d.kind, d.verdict, d.reason, d.at)
    query = sa.select(*columns).where(d.assistant == name, d.release.in_([row["id"] for row in rows]))
    done = ledger.rows(query.where(d.kind.in_(cycles.DEEDS)).order_by(d.seq))
    found = []
    for row in described(ledger, rows):
        mine = [deed for deed in done if deed["release"] == row["id"]]
        gate = next((deed for deed in reversed(mine) if deed["kind"] == "gate"), None)
        failed = next((deed for deed in reversed(mine) if deed["verdict"] in ("silent", "broken")), None)
        lived = [deed["at"] for deed in mine if deed["kind"] in ("promotion", "rollback")]
        told = {"verdict": gate["verdict"], "reason": gate["reason"]} if gate else {"verdict": None, "reason": ""}
        if failed and not lived:
            told = {"verdict": "taken back", "reason": f"{failed['kind']}: {failed['reason']}"}
        found.append(row | told | {"live_at": lived})
    return found


def marks(ledger: Ledger, name: str, since: float, known: list[dict]) -> list[dict]:
    """What happened, oldest first: `lane`, `at`, `from` (it took time), `kind`, `verdict`, `text`, and its `cycle`."""
    made = {cycle["release"]: cycle["id"] for cycle in known if cycle["release"]}
    d = decisions.c
    rows = ledger.rows(
        sa.select(d.seq, d.kind, d.release, d.verdict, d.reason, d.at)
        .where(d.assistant == name, d.at >= since)
        .order_by(d.seq.desc())
        .limit(2 * MOST)
    )
    spoken = [row["seq"] for row in rows if row["kind"] in ("diagnosis", "remedy", "outcome", "veto")]
    bodies = {row["seq"]: row["body"] or {} for row in ledger.rows(sa.select(d.seq, d.body).where(d.seq.in_(spoken)))}
    found = []
    for row in reversed(rows):
        body = bodies.get(row["seq"], {})
        number = body.get("outbox")
        mark = {name: row[name] for name in ("kind", "verdict", "at")} | {"text": row["reason"]}
        mark["lane"] = LANES.get(row["kind"], "others")
        mark["cycle"] = f"remedy-{number}" if number else made.get(row["release"]) if row["release"] else None
        if row["kind"] == "remedy":
            mark["from"] = row["at"] - body["seconds"]
        if alarms := [signal["name"] for signal in (body.get("evidence") or {}).get("signals", ())]:
            found.append(mark | {"lane": "alarms", "kind": "alarm", "verdict": "alarm", "text": ", ".join(alarms)})
        found.append(mark)
    return found


def signals(states: dict[str, dict], texts: bool, since: float = 0.0) -> list[dict]:
    """Every signal as the monitor last saw it: `alarm`, `learning`, `sentence`, `usual` (the rate that a stream is held
    against, 0 to 1) and `points` (time, how near to an alarm from 0 to 1, rate or None), those in alarm first.
    """
    told, found = states.get("told", {}), []
    watched = {name: kept for name, kept in states.items() if "detector" in kept}
    for name in {**told, **watched}:
        seen, kept = told.get(name, {}), watched.get(name, {})
        detector = kept.get("detector")
        rated = detector is not None and name != "questions"
        trail = kept.get("trail") or seen.get("trail") or []
        points = [[at, value, rest[0] if rated and rest else None] for at, value, *rest in trail if at >= since]
        sentence = seen.get("sentence", "")
        found.append(
            {
                "name": name,
                "group": seen.get("group", ""),
                "alarm": detector["alarm"] if detector else bool(seen.get("alarm")),
                "learning": bool(kept) and detector is None,
                "sentence": sentence if texts or name != "questions" else without_topics(sentence),
                "usual": detector["p0"] if rated else None,
                "points": thinned(points),
            }
        )
    return sorted(found, key=lambda signal: (not signal["alarm"], signal["learning"]))


def thinned(points: list[list]) -> list[list]:
    """At most MOST_POINTS of them: of neighbours the one nearest to an alarm."""
    width = -(-len(points) // MOST_POINTS) or 1
    return [max(points[at : at + width], key=lambda point: point[1]) for at in range(0, len(points), width)]
