"""From a drift event to the first line of the flow that it starts, through Prefect's trigger and worker."""

import sys
import time
from datetime import UTC, datetime

from benchmarks.machine import home, percentile, prefect, wait_until

AIM = "p50 at most 8 s"
NAME, PATIENCE_S = "wiki", 120


def met(value: dict) -> bool:
    return value["p50_s"] <= 8 and value["lost"] == 0


def measure(events: int = 12) -> dict:
    """Sends `perennial.remedy.reindex` for rows that are settled already, one after the other on an idle machine.

    The clock stops at what the flow's first line says (that its row is settled), by the time of its log record: the
    server's trigger, the worker's look at its queue, the start of a process and the imports of the flow lie between.
    """
    with home(), prefect(worker=True):
        from data.ledger import Ledger, migrate
        from data.records import Sources
        from settings import settings
        from tasks import events as sent

        migrate(settings().ledger)
        book = Ledger(settings().ledger)
        book.register(Sources(NAME, "docs"), {})
        seconds = []
        for number in range(events):
            seq = book.open_remedy(NAME, "reindex", f"edit {number}", {})
            book.settle(seq, "refused", "only its event is looked at")
            at = datetime.now(UTC)
            sent.emit("perennial.remedy.reindex", NAME, outbox=seq, kind="reindex")
            try:
                wait_until(lambda seq=seq: first_line(seq), PATIENCE_S)
            except TimeoutError:
                continue
            seconds.append((first_line(seq) - at).total_seconds())
            print(f"event {number + 1}: {seconds[-1]:.2f} s", file=sys.stderr)
            time.sleep(2)
    value = {
        "p50_s": round(percentile(seconds, 0.5), 2),
        "p95_s": round(percentile(seconds, 0.95), 2),
        "all_s": [round(s, 2) for s in seconds],
        "lost": events - len(seconds),
    }
    return {"value": value, "n": events, "against": None, "limit": None}


def first_line(seq: int) -> datetime | None:
    """When the flow that holds this outbox row said its first word; None before."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, LogFilter
    from prefect.client.schemas.sorting import FlowRunSort, LogSort

    with get_client(sync_client=True) as client:
        newest = {"sort": FlowRunSort.EXPECTED_START_TIME_DESC, "limit": 5}
        runs = client.read_flow_runs(flow_filter=FlowFilter(name={"any_": ["reindex"]}), **newest)
        ids = [run.id for run in runs if str(run.parameters.get("outbox")) == str(seq)]
        said = client.read_logs(LogFilter(flow_run_id={"any_": ids}), sort=LogSort.TIMESTAMP_ASC) if ids else []
    return next((line.timestamp for line in said if line.message.startswith(f"outbox row {seq} ")), None)
