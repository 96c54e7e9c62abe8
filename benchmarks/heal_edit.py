"""From the monitor's run that sees an edited fact and a deleted page to the endpoint answering from the new text."""

import re
import tempfile
import time
from pathlib import Path

from benchmarks.machine import ask, content, handbook, machine, wait_until

AIM = "at most 90 s, deleted page no longer cited"
DOCUMENT, QUESTION = "sharing/trash.md", "How long does the trash keep deleted files on the Team plan?"
OLD = "75 days on Team"
GONE = "integrations/recipes.txt"


def met(value: dict) -> bool:
    return value["median_s"] <= 90 and value["cited_after_delete"] == 0


def measure(edits: int = 3) -> dict:
    """Edits one fact `edits` times, and deletes a page; nobody touches anything but the files.

    The monitor runs every five minutes; here its scheduled deployment is asked to run now, and the clock starts when
    that run starts.
    """
    from prefect.deployments import run_deployment

    documents = Path(tempfile.mkdtemp()) / "documents"
    with machine():
        handbook(documents)
        page, text = documents / DOCUMENT, (documents / DOCUMENT).read_text()
        (documents / GONE).unlink()
        seconds = []
        for edit in range(edits):
            days = 81 + edit
            page.write_text(text.replace(OLD, f"{days} days on Team"))
            started = run_deployment("monitor/monitor", timeout=0)

            def healed(days=days) -> bool:
                return bool(re.search(rf"\b{days}\b", content(ask(QUESTION))))

            wait_until(healed, 400)
            seconds.append(time.time() - run_start(started.id))
            time.sleep(25)
        reply = ask("What does a recipe join a trigger with?")
        cited = sum(c["document"] == GONE for c in reply["citations"])
    ordered = sorted(seconds)
    value = {
        "median_s": round(ordered[len(ordered) // 2], 1),
        "all_s": [round(s, 1) for s in seconds],
        "cited_after_delete": cited,
    }
    return {"value": value, "n": edits, "against": None, "limit": None}


def run_start(run_id) -> float:
    """When a flow run began, in seconds since the epoch."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).start_time.timestamp()
