"""What came of a remedy: did the signals that asked for it go quiet, and what did it cost?"""

from __future__ import annotations

from data.ledger import Ledger
from tasks.signals import Signal

SETTLED = 100
"""Quiet events after the remedy from which on a stream counts as recovered."""


def outcomes(book: Ledger, assistant: str, signals: tuple[Signal, ...], states: dict[str, dict]) -> list[int]:
    """Record what came of every remedy settled before this look that has not been judged yet; their outbox numbers.

    A stream is judged after SETTLED events since its detector was restarted, everything else at the next look.
    """
    judged = {row["body"]["outbox"] for row in book.decisions(assistant, "outcome", limit=10_000)}
    costs = {row["body"]["outbox"]: row["body"]["seconds"] for row in book.decisions(assistant, "remedy", limit=10_000)}
    now, done = {signal.name: signal for signal in signals}, []
    for row in book.outbox(assistant, ("acted", "refused", "vetoed")):
        after = row["settled_at"] > states["cursor"]["at"]
        if row["seq"] in judged or after or not row["body"].get("signals"):
            continue
        names = row["body"]["signals"]
        still = [name for name in names if name in now and now[name].alarm]
        if row["state"] != "acted":
            verdict, reason = "not done", f"{row['kind']} was {row['state']}: {row['note']}"
        elif still:
            verdict, reason = "not recovered", f"after {row['kind']} still in alarm: {', '.join(still)}"
        elif any(_young(states.get(name)) for name in names):
            continue
        else:
            verdict, reason = "recovered", f"after {row['kind']} quiet again: {', '.join(names)}"
        body = {"outbox": row["seq"], "seconds": costs.get(row["seq"], 0.0), "note": row["note"]}
        book.decide(assistant, "outcome", None, verdict, f"{reason} ({body['seconds']:.0f} s of machine time)", body)
        done.append(row["seq"])
    return done


def _young(state: dict | None) -> bool:
    detector = (state or {}).get("detector")
    return bool(detector) and detector["events"] < SETTLED
