"""Watch, diagnose, ask for the remedy; and reconcile: start what no event started, free what a dead run held."""

from __future__ import annotations

import time
from dataclasses import replace
from uuid import UUID

from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, State

from data import splits
from data.ledger import Ledger
from data.outbox import KINDS
from data.records import as_json
from data.requests import RequestLog
from serving import traces
from settings import settings
from tasks import alerts, diagnose, events, outcome, remedy, report, watch
from tasks.diagnose import Remedy
from tasks.evidence import DiagnosisSettings, Evidence
from tasks.references import MonitorSettings
from tasks.remedy import Brakes

find_outdated = task(watch.outdated, name="outdated")
watch_assistant = task(watch.watch, name="watch")
diagnose_evidence = task(diagnose.diagnose, name="diagnose")


@flow(log_prints=True)
def monitor(
    assistants: list[str] | None = None,
    chosen: MonitorSettings = MonitorSettings(),
    table: DiagnosisSettings = DiagnosisSettings(),
) -> dict[str, str]:
    """Read the signals of every assistant (or those named), diagnose each, and put the remedy into the outbox.

    Where split tests run, they are looked at by a flow of their own.
    """
    book, done = Ledger(settings().ledger), {}
    for row in book.assistants():
        name = row["name"]
        if row["live_release"] is None or row["paused"] or (assistants and name not in assistants):
            continue
        stale = find_outdated(name, chosen, return_state=True)
        state = watch_assistant(name, stale.result(), chosen, return_state=True) if stale.is_completed() else stale
        if state.is_completed():
            evidence, states = state.result()
            found = diagnose_evidence(evidence, table)
            print(f"{name}: {evidence.budget}")
            ask_for(book, name, row["live_release"], found, evidence, states)
            outcome.outcomes(book, name, evidence.signals, states)
        else:  # it must blind neither the other assistants nor this one to an edit
            evidence, states = Evidence(), {}
            if stale.is_completed() and stale.result():
                evidence, states = watch.staleness_alone(name, stale.result())
                ask_for(book, name, row["live_release"], diagnose_evidence(evidence, table), evidence, states)
            found = Remedy("alert", "unwatched", f"{name} cannot be watched: {state.message}")
            ask_for(book, name, row["live_release"], found, evidence, states)
        report.signals(name, evidence, found)
        done[name] = found.kind
    if splits.running(book):
        run_deployment("split/split", timeout=0)
    RequestLog(settings().requests).prune(settings().retention_days)
    traces.prune(settings().mlflow, [row["name"] for row in book.assistants()], settings().retention_days)
    return done


def ask_for(book: Ledger, name: str, live: str, found: Remedy, evidence: Evidence, states: dict) -> None:
    """Record the decision, with an outbox row if the remedy is one that acts; then wake its flow with an event."""
    ask_one(book, name, live, found, evidence, states)
    if found.kind == "reprompt":  # row 7 asks for both: a prompt that shows the few labels, and more of them
        ask_one(book, name, live, replace(found, kind="collect"), evidence, states)


def ask_one(book: Ledger, name: str, live: str, found: Remedy, evidence: Evidence, states: dict) -> None:
    """`ask_for` of one remedy."""
    acts = found.kind in KINDS
    body = {"reason": found.reason, "row": found.row, "signals": diagnose.acted_on(found, evidence)}
    body |= {"events": (seen := diagnose.events_behind(found, evidence))}
    if found.kind == "quarantine_ratings":
        body |= {"voices": list(evidence.rating_alarm_voices)}
    brakes = remedy.consulted(book, name, found.kind, body) if acts else {}
    if acts:
        cause = diagnose.cause(found, live, evidence, states.get("cursor", {}).get("stale", ""), seen)
        outbox = book.open_remedy(name, found.kind, cause, body, states)
        if outbox is None:
            print(f"{name}: {found.kind} for this cause is under way, or was done or refused already: {found.reason}")
            return
    else:
        outbox = None
        book.store_signals(name, states)
        if said_already(book, name, live, found):
            return
    decided = as_json(found) | {"brakes": brakes, "outbox": outbox}
    book.decide(name, "diagnosis", live, found.kind, found.reason, decided)
    if found.kind == "freeze":
        remedy.pause(book, name, True, "diagnosis", found.reason)
    if found.kind != "nothing":
        about = {"release": live, "outbox": outbox, "kind": found.kind, "row": found.row}
        for event in ("perennial.drift.detected", f"perennial.remedy.{found.kind}"):
            events.emit(event, name, **about, reason=found.reason, evidence=events.figures(found))
    if acts:
        print(f"{name}: asked for {found.kind} (outbox row {outbox}): {found.reason}")
    elif found.kind != "nothing":
        what = f"{found.kind} (row {found.row} of the diagnosis)"
        report.alert(name, found.reason, what, live, alerts.asked(evidence))


def said_already(book: Ledger, name: str, live: str, found: Remedy) -> bool:
    """Whether the last diagnosis of this release was the same, of the same alarms: one that stays on is told once."""
    last = next(iter(book.decisions(name, "diagnosis", 1)), None)
    if last is None or (last["release"], last["verdict"], last["body"]["row"]) != (live, found.kind, found.row):
        return False
    before, now = (
        [signal["name"] for signal in body.get("signals", ())] for body in (last["body"]["evidence"], found.evidence)
    )
    return before == now


@flow(log_prints=True)
def reconcile(grace_s: float = 15.0, brakes: Brakes = Brakes()) -> State:
    """Start every remedy whose event was lost, and give back what a finished run holds. Doing it twice is safe."""
    book = Ledger(settings().ledger)
    freed = [row["seq"] for row in book.outbox(states=("claimed",)) if give_back(book, row)]
    started = []
    for row in book.outbox(states=("open",)):
        now = time.time()
        if (row["seq"] in freed or now - row["at"] > grace_s) and not remedy.waits(book, row, brakes, now):
            # A started run that died before its claim is started again five minutes later; two starts, one claim
            key = f"outbox-{row['seq']}-{row['attempts']}-{int(now // 300)}"
            run_deployment(
                f"{row['kind']}/{row['kind']}", parameters={"outbox": row["seq"]}, timeout=0, idempotency_key=key
            )
            started.append(row["seq"])
    message = f"started {started or 'none'}, gave back {freed or 'none'}"
    return Completed(name="Reconciled", message=message, data={"started": started, "freed": freed})


def give_back(book: Ledger, row: dict) -> bool:
    """Free a claimed row whose flow run has ended, or is not known to this Prefect server."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(row["claimed_by"]))
        except ObjectNotFound:
            run = None
    if run is not None and not run.state.is_final():
        return False
    book.free(row["seq"], row["claimed_by"])
    return True
