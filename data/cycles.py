"""Cycles: one for each remedy that was asked for, and one for each release that a person's lifecycle made.

The ledger holds deeds (decisions) with their times, not cycles: which release a remedy made is read off the deeds done
while it ran. What is handed on is plain JSON of selected fields, texts of users and documents where `texts` says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import sqlalchemy as sa

from data.ledger import MANUAL, Ledger
from data.records import Release
from data.tables import decisions, outbox, releases

DEEDS = ("gate", "smoke", "canary", "approval", "promotion", "rollback")
"""Kinds of decisions on one release."""
MADE_BY = {"reindex": "reindex", "retrain": "tuned", "reprompt": "reprompt", "rollback": "rollback"}
"""Kind of remedy -> kind of the releases it makes; of any other kind, any."""
SLACK_S = 5.0
"""Deeds this close to a run's first or last second are its own."""
REMEDY = re.compile(r"remedy-([0-9]{1,18})\Z")
MOST = 300
"""Rows of a kind that one view reads."""


def listed(ledger: Ledger, assistant: str, since: float) -> list[dict]:
    """The cycles of an assistant that began after `since` (epoch seconds) or go on, newest first.

    Each has `id`, `kind`, `at`, `ended` (None: not yet), `state`, `reason`, `release` (None: it made none) and
    `seconds` of machine time (None: not counted).
    """
    recent = sa.or_(outbox.c.at >= since, outbox.c.settled_at.is_(None))
    asked = sa.select(outbox).where(outbox.c.assistant == assistant, outbox.c.state != "merged", recent)
    rows = ledger.rows(asked.order_by(outbox.c.seq.desc()).limit(MOST))
    made = ledger.rows(
        sa.select(releases.c.id, releases.c.kind, releases.c.at)
        .where(releases.c.assistant == assistant, releases.c.at >= since)
        .order_by(releases.c.at.desc())
        .limit(MOST)
    )
    done, runs = _deeds(ledger, assistant, since), _runs(ledger, assistant, since)
    found, claimed = [], set()
    for row in rows:
        ran = runs.get(row["seq"], [])
        release = _release_of(row, ran, done)
        claimed.add(release)
        found.append(_remedy(row, ran, release))
    for one in made:
        if one["id"] not in claimed:
            found.append(_alone(one, [deed for deed in done if deed["release"] == one["id"]]))
    return sorted(found, key=lambda cycle: -cycle["at"])


def _remedy(row: dict, ran: Sequence[dict], release: str | None) -> dict:
    return {
        "id": f"remedy-{row['seq']}",
        "kind": row["kind"],
        "at": row["at"],
        "ended": row["settled_at"],
        "state": {"claimed": "running", "open": "waiting"}.get(row["state"], row["state"]),
        "reason": row["note"] or (row["body"] or {}).get("reason") or "asked for by hand",
        "release": release,
        "seconds": sum(run["body"]["seconds"] for run in ran) if ran else None,
    }


def _alone(release: dict, done: Sequence[dict]) -> dict:
    """The cycle of a release that no remedy made."""
    last = done[-1] if done else {"kind": "", "verdict": "", "reason": "no gate has judged it yet", "at": None}
    ended = last["kind"] in ("promotion", "rollback") or last["verdict"] in ("reject", "hold", "silent", "broken")
    gate = next((deed for deed in reversed(done) if deed["kind"] == "gate"), last)
    return {
        "id": release["id"],
        "kind": release["kind"],
        "at": release["at"],
        "ended": last["at"] if ended else None,
        "state": ("released" if last["verdict"] == "live" else last["verdict"]) if ended else "unfinished",
        "reason": gate["reason"],
        "release": release["id"],
        "seconds": None,
    }


def _deeds(ledger: Ledger, assistant: str, since: float) -> list[dict]:
    """Decisions on releases, oldest first, without their bodies."""
    d = decisions.c
    columns = (d.seq, d.kind, d.release, d.verdict, d.reason, d.at, releases.c.kind.label("made_as"))
    query = sa.select(*columns).outerjoin(releases, releases.c.id == d.release)
    query = query.where(d.assistant == assistant, d.kind.in_(DEEDS), d.at >= since)
    return ledger.rows(query.order_by(d.seq.desc()).limit(4 * MOST))[::-1]


def _runs(ledger: Ledger, assistant: str, since: float) -> dict[int, list[dict]]:
    """Outbox number -> the runs of the remedy, oldest first: `at` is when one ended."""
    d = decisions.c
    query = sa.select(decisions).where(d.assistant == assistant, d.kind == "remedy", d.at >= since)
    found: dict[int, list[dict]] = {}
    for row in ledger.rows(query.order_by(d.seq.desc()).limit(MOST))[::-1]:
        found.setdefault(row["body"]["outbox"], []).append(row)
    return found


def _release_of(row: dict, ran: Sequence[dict], done: Sequence[dict]) -> str | None:
    """The release that the remedy of an outbox row made, or went back to: the last of its kind while it ran."""
    if named := (row["body"] or {}).get("release"):
        return named
    spans = [(run["at"] - run["body"]["seconds"] - SLACK_S, run["at"] + SLACK_S) for run in ran]
    if row["state"] == "claimed":
        spans.append((max([run["at"] for run in ran], default=row["at"]), time.time()))
    wanted = MADE_BY.get(row["kind"])
    for deed in reversed(done):
        fits = wanted is None or deed["made_as"] == wanted or deed["kind"] == row["kind"]
        if fits and any(start <= deed["at"] <= end for start, end in spans):
            return deed["release"]
    return None


# --- one cycle --------------------------------------------------------------------------------


def cycle(ledger: Ledger, assistant: str, name: str, texts: bool) -> dict:
    """Everything on record about one cycle: what moved, was decided, the gate saw, it cost, came of it, is live now.

    KeyError: an assistant or a cycle that does not exist.
    """
    live = ledger.assistant(assistant)
    if name.startswith("remedy-"):
        told, release = _about_remedy(ledger, assistant, name, texts)
    else:
        release = ledger.release_row(name)
        if release["assistant"] != assistant:
            raise KeyError(f"{assistant!r} has no release {name!r}")
        told = _alone(release, _of_release(ledger, name))
        told |= {"moved": None, "decided": None, "runs": [], "outcome": None}
    done = _of_release(ledger, release["id"]) if release else []
    return told | {
        "assistant": assistant,
        "made": described(ledger, [release])[0] if release else None,
        "gates": [_gate(deed) for deed in done if deed["kind"] == "gate"],
        "checks": [_check(deed, texts) for deed in done if deed["kind"] != "gate"],
        "live": {"release": live["live_release"], "since": live["live_since"]},
    }


def _about_remedy(ledger: Ledger, assistant: str, name: str, texts: bool) -> tuple[dict, dict | None]:
    number = REMEDY.match(name)
    mine = sa.select(outbox).where(outbox.c.assistant == assistant, outbox.c.seq == (int(number[1]) if number else 0))
    found = ledger.rows(mine)
    if not found:
        raise KeyError(f"{assistant!r} has no cycle {name!r}")
    row, before = found[0], found[0]["at"] - SLACK_S
    ran = _runs(ledger, assistant, before).get(row["seq"], [])
    release = _release_of(row, ran, _deeds(ledger, assistant, before))
    said = {kind: _about(ledger, assistant, kind, row["seq"], before) for kind in ("diagnosis", "outcome", "veto")}
    told = _remedy(row, ran, release) | {
        "by_hand": (row["body"] or {}).get("asked") == MANUAL,
        "moved": _moved(said["diagnosis"], texts),
        "decided": _decided(said["diagnosis"]),
        "runs": [_plain(run) | {"seconds": run["body"]["seconds"]} for run in ran],
        "outcome": next((_plain(said[kind]) for kind in ("outcome", "veto") if said[kind]), None),
    }
    return told, ledger.release_row(release) if release else None


def _about(ledger: Ledger, assistant: str, kind: str, number: int, since: float) -> dict | None:
    """The last decision of a kind that is about an outbox row."""
    d = decisions.c
    query = sa.select(decisions).where(d.assistant == assistant, d.kind == kind, d.at >= since)
    rows = ledger.rows(query.order_by(d.seq).limit(4 * MOST))
    return next((row for row in reversed(rows) if (row["body"] or {}).get("outbox") == number), None)


def _of_release(ledger: Ledger, release: str) -> list[dict]:
    d = decisions.c
    return ledger.rows(sa.select(decisions).where(d.release == release, d.kind.in_(DEEDS)).order_by(d.seq).limit(MOST))


def _plain(deed: dict) -> dict:
    return {name: deed[name] for name in ("seq", "kind", "at", "verdict", "reason", "release")}


def _moved(diagnosis: dict | None, texts: bool) -> dict | None:
    """The signals in alarm behind a diagnosis, and the other facts that were not as usual: figures, yes or no, and what
    is broken in our own words. Other texts may be people's, or name them."""
    if diagnosis is None:
        return None
    evidence = diagnosis["body"].get("evidence") or {}
    signals = [alarmed(signal, texts) for signal in evidence.get("signals", ())]
    facts = {name: it for name, it in evidence.items() if name == "hard_broken" or isinstance(it, int | float)}
    return {"signals": signals, "facts": facts}


def alarmed(signal: dict, texts: bool) -> dict:
    """A signal as its diagnosis saw it. The topics of questions are the words of those who asked."""
    evidence = signal.get("evidence") or {}
    detector = evidence.get("state") or {}
    told = {name: signal[name] for name in ("name", "value", "sentence")}
    told |= {name: evidence.get(name) for name in ("rate", "n", "since")}
    told |= {"usual": detector.get("p0"), "events": detector.get("events")}
    if topics := evidence.get("topics"):
        told["topics"] = topics if texts else []
        told["sentence"] = signal["sentence"] if texts else without_topics(signal["sentence"])
    return told


def without_topics(sentence: str) -> str:
    """The sentence of the questions' detector without the words of the topics, which stand behind a colon."""
    return sentence.split(":")[0].rstrip(".") + "."


def _decided(diagnosis: dict | None) -> dict | None:
    if diagnosis is None:
        return None
    body = diagnosis["body"]
    told = {name: body.get(name) for name in ("kind", "row", "reason", "expected_cost", "alternatives", "brakes")}
    replay = (body.get("evidence") or {}).get("replay") or {}
    return told | {"at": diagnosis["at"], "replay": [interval | {"metric": part} for part, interval in replay.items()]}


def _gate(deed: dict) -> dict:
    body = deed["body"] or {}
    names = ("champion", "superior", "judged", "intervals", "metrics", "baseline", "notes", "look", "alpha", "settings")
    return _plain(deed) | {name: body.get(name) for name in names} | {"evaluation": body.get("evaluation") or ""}


def _check(deed: dict, texts: bool) -> dict:
    body = deed["body"] or {}
    shown = ["canary", "requests", "latency_ratio", "seconds", "who", "waited"] + ["question", "answer"] * texts
    return _plain(deed) | {name: body[name] for name in shown if body.get(name) is not None}


def described(ledger: Ledger, rows: Sequence[dict]) -> list[dict]:
    """Releases for people: what each is made of, and which parts differ from its parent's."""
    parents = {row["parent"] for row in rows if row["parent"]}
    known = ledger.rows(sa.select(releases.c.id, releases.c.body).where(releases.c.id.in_(parents)))
    bodies = {row["id"]: row["body"] for row in known}
    return [_described(row, bodies.get(row["parent"])) for row in rows]


def _described(row: dict, before: dict | None) -> dict:
    made = Release.of(row["body"])
    theirs = Release.of(before).parts if before else made.parts
    return {
        "id": row["id"],
        "kind": row["kind"],
        "parent": row["parent"],
        "at": row["at"],
        "changed": [part for part, held in made.parts.items() if held != theirs[part]],
        "model": made.model.sha256[:12],
        "base": made.model.base[:12],
        "tuned": made.model.adapter is not None,
        "engine": made.model.engine,
        "chunks": made.index.chunks,
        "index": made.index.checksum[:12],
        "prompt": made.prompt.sha256[:12],
        "passages": made.retrieval.top_k,
    }


def decision(ledger: Ledger, seq: int) -> dict:
    """One decision; KeyError: there is none with this number."""
    found = ledger.rows(sa.select(decisions).where(decisions.c.seq == seq))
    if not found:
        raise KeyError(f"no decision {seq}")
    return found[0]
