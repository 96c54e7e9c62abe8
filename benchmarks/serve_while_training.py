"""How much slower the endpoint answers while a model is being trained on the same two cores."""

import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.machine import ask, handbook, machine, percentile, sample_questions, wait_until

AIM = "p95 at most 3x idle, no failed request"


def met(value: dict) -> bool:
    return value["ratio_p95"] <= 3 and value["failed"] == 0 and value["trained_all_along"] == 1


def measure(requests: int = 100) -> dict:
    """One client asks the sample's training questions, idle and then while `retrain` trains; seconds."""
    from prefect.deployments import run_deployment

    questions = sample_questions(2 * requests)
    with machine() as home:
        handbook(Path(tempfile.mkdtemp()) / "documents", minutes="1")
        idle, failed_idle = timed(questions[:requests])
        training = {"minutes": 4, "seed": 1}
        started = run_deployment(
            "retrain/retrain", parameters={"assistant": "handbook", "training": training}, timeout=0
        )
        wait_until(lambda: list(home.glob("models/tuned/.*.work/rows.npz")), 300)
        time.sleep(30)  # the workers load the model, then the steps begin
        busy, failed_busy = timed(questions[requests : 2 * requests])
        trained = bool(list(home.glob("models/tuned/.*.work/rows.npz")))
        wait_until(lambda: finished(started.id), 900, 2)
    value = {
        "idle_p50": percentile(idle, 0.5),
        "idle_p95": percentile(idle, 0.95),
        "training_p50": percentile(busy, 0.5),
        "training_p95": percentile(busy, 0.95),
        "ratio_p95": percentile(busy, 0.95) / percentile(idle, 0.95),
        "failed": failed_idle + failed_busy,
        "trained_all_along": int(trained),
    }
    rounded = {name: round(number, 3) for name, number in value.items()}
    return {"value": rounded, "n": requests, "against": "the same endpoint, idle", "limit": None}


def timed(questions: list[str]) -> tuple[list[float], int]:
    """Seconds of each answered question, and how many failed."""
    seconds, failed = [], 0
    for question in questions:
        start = time.monotonic()
        try:
            ask(question)
        except httpx.HTTPError:
            failed += 1
            continue
        seconds.append(time.monotonic() - start)
    return seconds, failed


def finished(run_id) -> bool:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).state.is_final()
