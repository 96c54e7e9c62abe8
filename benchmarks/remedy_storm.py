"""Two hundred drift signals in a minute, from four processes on one ledger: how many remedies run, wait, are covered.

A real SQLite ledger. Reporters ask for `reindex` with ever new causes; runners claim the newest open row, as the flow
that an event starts would, and hold it for a while. At the end the runners settle what is left.
"""

from __future__ import annotations

import io
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

AIM = "at most one running and one queued at any time, every signal covered, the last one acted on"
REPORTERS, RUNNERS, SIGNALS, SECONDS, RUN_S = 4, 3, 200, 60.0, 6.0
KIND, NAME = "reindex", "wiki"


def met(value: dict) -> bool:
    return (
        value["most running"] == 1
        and value["most queued"] == 1
        and value["without a final state"] == 0
        and value["last signal covered"]
        and not value["run twice"]
    )


def report(url: str, reporter: int, seconds: float) -> None:
    """Every REPORTERS-th of the signals, evenly over `seconds`."""
    from data.ledger import Ledger

    book = Ledger(url)
    for number in range(reporter, SIGNALS, REPORTERS):
        book.open_remedy(NAME, KIND, f"edit {number}", {"signals": ["staleness"], "number": number})
        time.sleep(seconds * REPORTERS / SIGNALS)


def act(url: str, runner: int, run_s: float, stop) -> None:
    """Claim open rows and hold each for `run_s`, until told to stop and nothing is open."""
    from data.ledger import Ledger
    from tasks import remedy

    sys.stdout = io.StringIO()  # every try that has to wait says so
    book, runs = Ledger(url), 0
    while True:
        rows = book.outbox(NAME, ("open",))
        if not rows:
            if stop.is_set() and not book.outbox(NAME, ("claimed",)):
                return
            time.sleep(0.05)
            continue
        runs += 1
        with remedy.claimed(
            book, rows[-1]["seq"], f"{runner}-{runs}", remedy.Brakes(cooldown_s={"reindex": 0})
        ) as claim:
            if claim:
                time.sleep(run_s)
                claim.note(f"edit {claim.body['number']}")
        time.sleep(0.05)


def measure(seconds: float = SECONDS, run_s: float = RUN_S) -> dict:
    """Counts over the whole storm; the ledger is looked at every tenth of a second."""
    from data.ledger import Ledger, migrate
    from data.records import Sources

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'ledger.db'}"
        migrate(url)
        book = Ledger(url)
        book.register(Sources(NAME, "docs"), {})
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        reporters = [context.Process(target=report, args=(url, n, seconds)) for n in range(REPORTERS)]
        runners = [context.Process(target=act, args=(url, n, run_s, stop)) for n in range(RUNNERS)]
        for process in (*reporters, *runners):
            process.start()
        running = queued = 0
        while any(process.is_alive() for process in runners):
            running = max(running, len(book.outbox(NAME, ("claimed",))))
            queued = max(queued, len(book.outbox(NAME, ("open",))))
            if not any(process.is_alive() for process in reporters):
                stop.set()
            time.sleep(0.1)
        return {"value": tallied(book, running, queued), "n": {"signals": SIGNALS, "processes": REPORTERS + RUNNERS}}


def tallied(book, running: int, queued: int) -> dict:
    """What the ledger says afterwards. A merged row is covered by the run that merged it, which began after it."""
    rows = book.outbox(NAME)
    acted = [row for row in rows if row["state"] == "acted"]
    runs = [run["body"]["outbox"] for run in book.decisions(NAME, "remedy", limit=10_000)]
    last = rows[-1]
    return {
        "signals": len(rows),
        "acted": len(acted),
        "merged": sum(row["state"] == "merged" for row in rows),
        "without a final state": sum(row["state"] in ("open", "claimed") for row in rows),
        "run twice": len(runs) - len(set(runs)),
        "most running": running,
        "most queued": queued,
        "last signal covered": last["state"] == "acted"
        or (last["state"] == "merged" and acted[-1]["settled_at"] >= last["settled_at"]),
    }
