"""What a person asks of the outbox: a remedy by hand, or a veto. Who asked and why is in the row; a flow acts on it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import sqlalchemy as sa

from data.ledger import MANUAL, Ledger, append_decision
from data.tables import outbox

KINDS = ("reindex", "retrain", "reprompt", "rollback", "recalibrate", "collect", "quarantine_ratings")
"""The remedies that act: each is a flow of this name."""


def ask(ledger: Ledger, assistant: str, kind: str, who: str = "", why: str = "", **more: str | list[str]) -> int:
    """The number of the outbox row for a remedy that a person asks for; the one that waits, where they asked before.

    `more`: what the remedy is told: the release `to` which a rollback goes, the `voices` that are set aside. Raises
    KeyError for an unknown assistant, ValueError for a kind that there is not or an assistant with nothing live.
    """
    if kind not in KINDS:
        raise ValueError(f"no remedy {kind!r}; there are {', '.join(KINDS)}")
    if ledger.assistant(assistant)["live_release"] is None:
        raise ValueError(f"{assistant!r} has nothing live yet; run its lifecycle first")
    body = {"asked": MANUAL, "by": who, "reason": why} | more
    for row in ledger.outbox(assistant, ("open",)):
        if row["kind"] == kind and by_hand(row) and row["body"] | {"by": who, "reason": why} == body:
            return row["seq"]
    seq = ledger.open_remedy(assistant, kind, f"{MANUAL} {time.time_ns()}", body)
    assert seq is not None, "a cause by hand is new every time"
    return seq


def by_hand(row: dict) -> bool:
    return (row["body"] or {}).get("asked") == MANUAL


def veto(ledger: Ledger, number: int, who: str, why: str = "") -> bool:
    """A person's no to a remedy that has not started: False when it is too late. It is not asked for again until the
    evidence has changed. Raises KeyError for a row that is not there."""
    note = f"vetoed by {who}" + (f": {why}" if why else "")
    with ledger.write() as c:
        row = c.execute(sa.select(outbox).where(outbox.c.seq == number)).mappings().first()
        if row is None:
            raise KeyError(f"there is no outbox row {number}")
        if row["state"] != "open":
            return False
        values = {"state": "vetoed", "note": note, "settled_at": time.time()}
        c.execute(outbox.update().where(outbox.c.seq == number).values(**values))
        append_decision(c, row["assistant"], "veto", None, row["kind"], note, {"outbox": number})
    return True


def listed(ledger: Ledger, assistant: str | None = None, states: Sequence[str] = (), most: int = 100) -> list[dict]:
    """The newest rows as a person reads them, newest first: `by` is who asked, '' a signal; times in epoch seconds."""
    query = sa.select(outbox).order_by(outbox.c.seq.desc()).limit(most)
    query = query.where(outbox.c.assistant == assistant) if assistant else query
    query = query.where(outbox.c.state.in_(states)) if states else query
    names = ("assistant", "kind", "state", "attempts", "note", "at", "settled_at")
    return [
        {"number": row["seq"]}
        | {name: row[name] for name in names}
        | {"by": (row["body"].get("by") or MANUAL) if by_hand(row) else "", "reason": row["body"].get("reason", "")}
        for row in ledger.rows(query)
    ]
