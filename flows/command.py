"""The command line of `python -m flows.lifecycle`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from uuid import UUID

from data.ledger import Ledger
from data.records import Decision, Reuse, Sources, as_json
from data.remote import is_remote
from settings import apply_environment, settings


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.lifecycle", description="From documents to a released assistant."
    )
    parser.add_argument("--assistant", required=True, help="its name, and the `model` of API calls")
    parser.add_argument("--documents", required=True, help="folder, file, glob or URL (s3://, https://, hf://)")
    parser.add_argument("--examples", help="folder, file or glob of question/answer pairs")
    parser.add_argument("--golden", help="held-out questions; without it 20%% of the documents are held out")
    parser.add_argument("--train-minutes", type=float, help="time budget of fine-tuning")
    parser.add_argument(
        "--base-model",
        action="append",
        help="folder or hub id of a model to tune, or URL#MODEL of one served elsewhere; again for each to compare",
    )
    parser.add_argument("--margin", type=float, help="non-inferiority margin of the gate (0.05)")
    parser.add_argument(
        "--approval-hours", type=float, help="how long a person may take to approve what the gate accepts"
    )
    parser.add_argument("--reuse-answers", action="store_true", help="give an answer again to who asks the same")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    chosen = parser.parse_args()
    for name in ("documents", "examples", "golden"):
        place = getattr(chosen, name)
        if place and not is_remote(place) and not any(mark in place for mark in "*?[") and not Path(place).exists():
            parser.error(f"--{name} {place}: there is no such file or folder")
    return chosen


def main() -> None:
    """Run the lifecycle from a terminal; exit code 0 for any decision, 1 when it could not be taken."""
    apply_environment()
    chosen = arguments()
    from dataclasses import replace

    from flows.lifecycle import GateSettings, Training, lifecycle

    def whole(place: str | None) -> str | None:
        return str(Path(place).resolve()) if place and not is_remote(place) else place

    sources = Sources(chosen.assistant, whole(chosen.documents), whole(chosen.examples), whole(chosen.golden))
    training, gates = Training(), GateSettings()
    if chosen.train_minutes is not None:
        training = replace(training, minutes=chosen.train_minutes)
    if chosen.margin is not None:
        gates = replace(gates, margin=chosen.margin)
    if chosen.approval_hours is not None:
        gates = replace(gates, approval_hours=chosen.approval_hours)
    reuse = Reuse() if chosen.reuse_answers else None
    state = lifecycle(sources, training, gates, base_models=chosen.base_model, reuse=reuse, return_state=True)
    decision = state.result()
    if chosen.json:
        print(json.dumps(result(sources.assistant, decision, state.state_details.flow_run_id)))
    else:
        print(f"{decision.verdict}: {decision.reason}", file=sys.stderr)


def result(assistant: str, decision: Decision, run: UUID) -> dict:
    """What `--json` prints: the decision, its figures, what it is about, and the seconds of each stage."""
    release = Ledger(settings().ledger).release(decision.release)
    return {
        "assistant": assistant,
        "release_id": release.id,
        "decision": decision.verdict,
        "reason": decision.reason,
        "metrics": decision.metrics or {},
        "baseline": decision.baseline or {},
        "intervals": [as_json(interval) for interval in decision.intervals],
        "notes": list(decision.notes),
        "index_version": release.index.version,
        "model_sha256": release.model.sha256,
        "prompt_sha256": release.prompt.sha256,
        "seconds": stage_seconds(run),
        "endpoint": settings().endpoint,
    }


def stage_seconds(run: UUID) -> dict[str, float]:
    """Seconds in each step of a flow run and its sub-flows, as Prefect recorded them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    seconds: dict[str, float] = {}
    with get_client(sync_client=True) as client:
        runs = [run]
        while runs:
            steps = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": runs}))
            for step in steps:
                name = step.name.rsplit("-", 1)[0]
                if step.state.state_details.child_flow_run_id is None:
                    seconds[name] = round(seconds.get(name, 0.0) + step.total_run_time.total_seconds(), 2)
            parents = FlowRunFilter(parent_task_run_id={"any_": [step.id for step in steps]})
            children = client.read_flow_runs(flow_run_filter=parents) if steps else []
            runs = [child.id for child in children]
    return seconds


if __name__ == "__main__":
    main()
