"""Split tests in the ledger: two accepted releases of an assistant that users are spread over, one test at a time.

Arm a is the live release, arm b another accepted one; a user stays on one arm (serving/router). A test ends with a
verdict on record: b (it is better: it goes live), a (it is the better one), none (no difference was proven in time),
stopped (by a person), refused (b's requests fail, or its gate or canary when it is to go live) or overtaken (the live
pointer moved away from a). On record is also when it started, and once when a better b is delayed on its way live.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import sqlalchemy as sa

from data.ledger import Ledger, PointerMoved, append_decision
from data.records import Record
from data.tables import assistants, splits

VERDICTS = ("a", "b", "none", "stopped", "refused")
"""What may be decided; `overtaken` comes from the ledger alone, with the pointer that moved."""


@dataclass(frozen=True)
class Split(Record):
    """One split test. `b` gets `share` (0 to 1) of the users; `plan` is what was planned, as JSON (tasks/split.Plan).

    Times in epoch seconds, `ended` None while it runs. `verdict` '' while nothing is decided; with the verdict b it
    goes on until b is live, so that nobody's arm changes twice.
    """

    id: int
    assistant: str
    a: str
    b: str
    share: float
    plan: dict = field(default_factory=dict)
    started: float = 0.0
    ended: float | None = None
    verdict: str = ""
    reason: str = ""


def start(ledger: Ledger, assistant: str, a: str, b: str, share: float, plan: dict) -> Split:
    """Start comparing the live release `a` with `b`, which the router sees at its next look.

    Raises NotAccepted unless b's gate accepted it (or it was live before) and its smoke query was answered,
    PointerMoved when a is not live, ValueError when a test of the assistant runs already, or the share is not between
    0 and 1.
    """
    if not 0 < share < 1 or a == b:
        raise ValueError(f"{share:g} of the users for {b} beside {a}: give two releases, and a share such as 0.5")
    with ledger.write() as c:
        live = c.execute(sa.select(assistants.c.live_release).where(assistants.c.name == assistant)).scalar()
        if live != a:
            raise PointerMoved(f"{live or 'nothing'} is live for {assistant!r}, not {a}: start again")
        ledger.require(c, assistant, b, "split")
        refuse_second(ledger, assistant)
        row = {"assistant": assistant, "a": a, "b": b, "share": share, "plan": plan, "started": time.time()}
        number = c.execute(splits.insert().values(**row, verdict="", reason="")).inserted_primary_key[0]
        reason = f"{share:.0%} of the users ask {b}, the others {a}"
        append_decision(c, assistant, "split", b, "started", reason, {"split": number, "a": a, "plan": plan})
    return Split(id=number, **row)


def refuse_second(ledger: Ledger, assistant: str) -> None:
    """Raises ValueError while a split test of the assistant runs."""
    if current(ledger, assistant):
        command = f"python -m flows.split end --assistant {assistant}"
        raise ValueError(f"a split test of {assistant!r} is running; wait for its end, or end it: {command}")


def decide(ledger: Ledger, split: Split, verdict: str, reason: str, body: dict) -> bool:
    """Record the verdict on a running test and end it, except for b, which ends when b goes live.

    `body`: estimate, interval, counts. Returns False, and changes nothing, when the test has ended already. Where the
    verdict was b, whatever takes b live meanwhile finds the pointer moved.
    """
    if verdict not in VERDICTS:
        raise ValueError(f"{verdict!r} is no verdict on a split test; use one of {', '.join(VERDICTS)}")
    values = {"verdict": verdict, "reason": reason} | ({} if verdict == "b" else {"ended": time.time()})
    with ledger.write() as c:
        before = c.execute(sa.select(splits.c.verdict, splits.c.ended).where(splits.c.id == split.id)).one()
        if before.ended is not None:
            return False
        c.execute(splits.update().where(splits.c.id == split.id).values(**values))
        if before.verdict == "b":
            mine = assistants.update().where(assistants.c.name == split.assistant)
            c.execute(mine.values(live_seq=assistants.c.live_seq + 1))
        about = {"split": split.id, "a": split.a, "b": split.b} | body
        append_decision(c, split.assistant, "split", split.b, verdict, reason, about)
    return True


def running(ledger: Ledger) -> list[Split]:
    """The split tests that run now, of all assistants, oldest first."""
    return _read(ledger, splits.c.ended.is_(None))


def current(ledger: Ledger, assistant: str) -> Split | None:
    """The split test of an assistant that runs now."""
    return next((test for test in running(ledger) if test.assistant == assistant), None)


def of(ledger: Ledger, assistant: str) -> list[Split]:
    """All split tests of an assistant, oldest first."""
    return _read(ledger, splits.c.assistant == assistant)


def tried(ledger: Ledger, assistant: str) -> set[str]:
    """Releases that were arm b: what users made of them is no measure of the live one."""
    return {split.b for split in of(ledger, assistant)}


def _read(ledger: Ledger, condition) -> list[Split]:
    return [Split.of(row) for row in ledger.rows(sa.select(splits).where(condition).order_by(splits.c.id))]
