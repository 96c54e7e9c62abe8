"""Three hundred drift events, each sent three times while the Prefect server is killed: one final state for each row.

The server, its triggers and deployments, the ledger, claims and `reconcile` are the real ones. In the worker's place a
few threads take the runs that the server has scheduled and hold each row for a moment, as its flow would: what starting
900 processes costs is not what is asked here.
"""

import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from benchmarks.machine import home, kill, prefect, start_server

AIM = "300 events: 300 final states, each once, whatever the server missed"
EVENTS, COPIES, ASSISTANTS, KINDS, THREADS = 300, 3, 50, ("reindex", "retrain", "rollback"), 3
PATIENCE_S = 900


def met(value: dict) -> bool:
    return value["final"] == value["rows"] == EVENTS and not value["run twice"] and not value["run though not acted"]


def measure(kills: int = 5, seconds: float = 90.0) -> dict:
    """Counts of the ledger's rows when all are settled; `seconds` is how long the events take to be sent."""
    with home(), prefect() as processes:
        import flows.monitor  # noqa: F401  before the threads: they would import parts of Prefect at the same time
        from data.ledger import Ledger, migrate
        from data.records import Sources
        from settings import settings

        migrate(settings().ledger)
        book = Ledger(settings().ledger)
        for number in range(ASSISTANTS):
            book.register(Sources(f"a{number}", "docs"), {})
        start, stop, starters = time.monotonic(), threading.Event(), Counter()
        others = [
            threading.Thread(target=send, args=(book, seconds)),
            threading.Thread(target=kill_often, args=(processes, kills, seconds)),
            threading.Thread(target=take, args=(book, stop, starters)),
        ]
        for thread in others:
            thread.start()
        try:
            while any(thread.is_alive() for thread in others[:2]) or open_rows(book):
                if time.monotonic() - start > PATIENCE_S:
                    break
                reconciled(starters)
                time.sleep(5)
        finally:
            stop.set()
            for thread in others:
                thread.join()
        value = tallied(book) | {"server killed": kills, "started": dict(starters)}
    value["seconds"] = round(time.monotonic() - start, 1)
    return {"value": value, "n": {"events": EVENTS, "copies": COPIES}, "against": None, "limit": None}


def open_rows(book) -> list[dict]:
    return book.outbox(states=("open", "claimed"))


def brakes():
    """Nothing waits for a cooldown and no budget is used up."""
    from tasks.remedy import Brakes

    free = {f"{kind}_cooldown_s": 0.0 for kind in KINDS}
    return Brakes(**free, weekly=10**6, weekly_s=1e9, weekly_cost=1e9)


def send(book, seconds: float) -> None:
    """Every event as the monitor would send it, but three times."""
    from tasks import events

    for number in range(EVENTS):
        name, kind = f"a{number % ASSISTANTS}", KINDS[number % len(KINDS)]
        seq = book.open_remedy(name, kind, f"cause {number}", {})
        for _ in range(COPIES):
            events.emit(f"perennial.remedy.{kind}", name, outbox=seq, kind=kind)
        time.sleep(seconds / EVENTS)


def kill_often(processes: list, kills: int, seconds: float, seed: int = 0) -> None:
    """Kills the server at random points, and starts it again after a moment."""
    chance = random.Random(seed)
    at, begin = sorted(chance.uniform(0, seconds) for _ in range(kills)), time.monotonic()
    for moment in at:
        time.sleep(max(0.0, begin + moment - time.monotonic()))
        kill(processes[0])
        time.sleep(chance.uniform(0.5, 5))
        processes[0] = start_server()
        print(f"server killed and back after {time.monotonic() - begin:.0f} s", file=sys.stderr)


def take(book, stop: threading.Event, starters: Counter) -> None:
    """The worker's part: every run that the server has scheduled for an outbox row is taken once, a few at a time."""
    from httpx import HTTPError
    from prefect.exceptions import PrefectHTTPStatusError

    seen: set = set()
    with ThreadPoolExecutor(THREADS) as pool:
        while not stop.is_set():
            try:
                runs = [run for run in scheduled() if run.id not in seen]
                list(pool.map(lambda run: hold(book, run), runs))
            except (HTTPError, PrefectHTTPStatusError, OSError):  # the server is down: its runs are there afterwards
                time.sleep(0.5)
                continue
            seen |= {run.id for run in runs}
            starters["runs"] += len(runs)
            time.sleep(0.2)


def scheduled() -> list:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    waiting = FlowRunFilter(state={"type": {"any_": ["SCHEDULED"]}})
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs(flow_run_filter=waiting) if run.parameters.get("outbox")]


def hold(book, run) -> None:
    """What a flow does with its row, without the work: claim it, hold it, settle it."""
    from prefect.client.orchestration import get_client
    from prefect.states import Completed, Running

    from tasks import remedy

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Running(), force=True)
        with remedy.claimed(book, int(run.parameters["outbox"]), str(run.id), brakes()) as claim:
            if claim:
                time.sleep(0.1)
                claim.note("held")
        client.set_flow_run_state(run.id, Completed(), force=True)


def reconciled(starters: Counter) -> None:
    """One round of `reconcile`, which does not run while the server is down."""
    from httpx import HTTPError
    from prefect.exceptions import PrefectHTTPStatusError

    from flows.monitor import reconcile

    try:
        starters["by reconcile"] += len(reconcile.fn(5.0, brakes()).data["started"])
    except (HTTPError, PrefectHTTPStatusError, OSError, RuntimeError):
        starters["rounds of reconcile without a server"] += 1


def tallied(book) -> dict:
    """What the ledger says: every row's state, and how often each was run to its end."""
    rows = book.outbox()
    ended = [
        run["body"]["outbox"]
        for name in sorted({row["assistant"] for row in rows})
        for run in book.decisions(name, "remedy", limit=10_000)
        if run["verdict"] == "acted"
    ]
    acted = {row["seq"] for row in rows if row["state"] == "acted"}
    return {
        "rows": len(rows),
        "final": sum(row["state"] not in ("open", "claimed") for row in rows),
        "states": dict(Counter(row["state"] for row in rows)),
        "run twice": len(ended) - len(set(ended)),
        "run though not acted": len(set(ended) ^ acted),
    }
