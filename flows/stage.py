"""What the demo stands on: its assistant, made and taken away again, and bounded waiting for what the stack does."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.runtime import flow_run

from data import outbox
from data.ledger import Ledger
from data.records import Decision, Example, Release, Snapshot, Sources, as_json
from data.tables import releases
from flows import people, stack
from flows.lifecycle import finetune_model, index_snapshot, known_snapshot, prepared, release_candidate
from settings import settings
from tasks import removal
from tasks.evidence import DiagnosisSettings
from tasks.finetune import Training
from tasks.gate import GateSettings
from tasks.references import MonitorSettings

NAME = "demo"
SAMPLE = stack.SAMPLE
GOLDEN_PER_DOCUMENT = {True: 3, False: 1}  # with an answer, without one
TABLE = DiagnosisSettings(rollback_hours=0.01, retrain_examples=100)
GATES = GateSettings(margin=0.10)
POISON = Training(minutes=1.0, learning_rate=0.005)


class NotSo(Exception):
    """What was expected did not happen."""


@dataclass(frozen=True)
class Scene:
    """What the acts work with: the ledger, and the folder of documents that is edited."""

    book: Ledger
    documents: Path

    @property
    def live(self) -> Release:
        return self.book.live()[NAME].live

    def answerable(self, name: str) -> list[Example]:
        """The questions in a file of the sample whose document is still here."""
        asked = [one for one in examples(name) if one.document]
        return [one for one in asked if (self.documents / one.document.split("#")[0]).exists()]


# --- the assistant ----------------------------------------------------------------------------


@contextmanager
def assistant(book: Ledger) -> Iterator[Scene]:
    """The demo's assistant, live; afterwards it was never there. SystemExit when there is no model to begin with."""
    routing = book.live().get(stack.ASSISTANT)
    if routing is None or routing.live is None or not routing.live.model.adapter:
        raise SystemExit(f"the demo begins with the tuned model of {stack.ASSISTANT!r}: make run first")
    folder = settings().home / NAME
    remove(book, folder)
    shutil.copytree(SAMPLE / "documents", folder / "documents")
    (folder / "golden.jsonl").write_text("\n".join(golden_questions()))
    try:
        begun = begin(str(folder / "documents"), str(folder / "golden.jsonl"), routing.live.id)
        if not begun.accepted:
            raise SystemExit(f"the demo's assistant could not go live: {begun.reason}")
        wait_for(answers, 30)
        yield Scene(book, folder / "documents")
    finally:
        remove(book, folder)


def answers() -> bool:
    try:
        return bool(people.ask(NAME, "What is QB-244?").text)
    except httpx.HTTPError:
        return False


def remove(book: Ledger, folder: Path) -> None:
    """Nothing of the demo's assistant stays.

    A remedy that still runs is waited for, so that its flow does not find the ground gone.
    """
    for row in book.outbox(NAME, ("open",)):
        outbox.veto(book, row["seq"], "the demo", "it is over")
    if book.outbox(NAME, ("claimed",)):
        say("a remedy still runs; it is waited for before the assistant is removed")
        wait_for(lambda: not book.outbox(NAME, ("claimed",)), 1800, 2)
    mine = {Release.of(row["body"]).model.sha256 for row in book.rows(releases.select()) if row["assistant"] == NAME}
    if NAME in book.live():
        removal.remove(book, NAME)
    shutil.rmtree(folder, ignore_errors=True)
    if mine:
        cool(mine - {routing.live.model.sha256 for routing in book.live().values() if routing.live})


def cool(models: set[str]) -> None:
    """Stop keeping these artifacts warm (sha256)."""
    from serving import replica

    replica.connect()
    for sha in {sha[:12] for sha in models} & replica.running():
        replica.delete(sha)


def golden_questions() -> list[str]:
    """Lines of the sample's golden questions, a few of each document."""
    kept: dict[tuple[str, bool], list[str]] = {}
    for line in (SAMPLE / "golden.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept.setdefault((row["document"], bool(row["answers"])), []).append(line)
    return [line for (_, answered), lines in kept.items() for line in lines[: GOLDEN_PER_DOCUMENT[answered]]]


def examples(name: str) -> list[Example]:
    """The questions in a file of the sample."""
    rows = [json.loads(line) for line in (SAMPLE / name).read_text().splitlines()]
    return [Example(r["question"], tuple(r.get("answers", ())), r.get("document"), r.get("section")) for r in rows]


def some(of: list[Example], number: int) -> list[Example]:
    """So many of them, drawn at random but always the same."""
    return random.Random(1).sample(of, number)


# --- flows of the demo's own: what a person would start by hand -------------------------------


@flow(name="demo-begin", log_prints=True)
def begin(documents: str, golden: str, model: str) -> Decision:
    """The assistant goes live with what the release `model` of another one is, over documents of its own."""
    sources = Sources(NAME, documents, str(SAMPLE / "examples.jsonl"), golden)
    snapshot = prepared(sources)
    version, given = index_snapshot(sources, snapshot), Ledger(settings().ledger).release(model)
    first = Release(NAME, given.model, version, given.prompt, given.retrieval)
    return release_candidate(first, "bootstrap", snapshot, GATES)


@flow(name="demo-poison", log_prints=True)
def poison(documents: str) -> tuple[Decision, str]:
    """Fine-tunes on examples whose answers were shuffled and offers the result; the decision and the run."""
    from tasks.prepare import prepare

    rows = [json.loads(line) for line in (SAMPLE / "examples.jsonl").read_text().splitlines()]
    answers = [row["answers"] for row in rows]
    random.Random(7).shuffle(answers)
    shuffled = Path(documents).with_name("shuffled.jsonl")
    shuffled.write_text("\n".join(json.dumps(row | {"answers": own}) for row, own in zip(rows, answers, strict=True)))
    live = Ledger(settings().ledger).live()[NAME].live
    bad = prepare(Sources(NAME, documents, str(shuffled)))
    model = finetune_model(bad, live.index, live.prompt, live.retrieval, POISON, live.model.base)
    decision = release_candidate(replace(live, model=model), "tuned", known_snapshot(NAME), GATES)
    return decision, flow_run.ui_url


@flow(name="demo-deploy", log_prints=True)
def deploy(candidate: Release) -> tuple[Decision, str]:
    """Deploys a release that the gate let through; the decision and the run."""
    snapshot = Snapshot.of(Ledger(settings().ledger).assistant(NAME)["snapshot"])
    return release_candidate(candidate, "reprompt", snapshot, GATES), flow_run.ui_url


# --- asking for runs, waiting, judging --------------------------------------------------------


def healed(book: Ledger, kind: str, chosen: MonitorSettings, patience_s: float = 600) -> dict:
    """The outbox row of the remedy that the monitor now asks for, once it was acted on; NotSo for any other end."""
    last = max((row["seq"] for row in book.outbox(NAME)), default=0)
    monitor_now(chosen)
    said = next(iter(book.decisions(NAME, "diagnosis", 1)), {"verdict": "nothing", "reason": "", "body": {"row": "-"}})
    say(f"{said['verdict']} (row {said['body']['row']} of the diagnosis): {said['reason']}")
    asked = [row["seq"] for row in book.outbox(NAME) if row["seq"] > last and row["kind"] == kind]
    expect(bool(asked), f"no {kind} was asked for, but {said['verdict']}: {said['reason']}")

    def settled() -> dict | None:
        row = next(row for row in book.outbox(NAME) if row["seq"] == asked[0])
        return row if row["state"] not in ("open", "claimed") else None

    row = wait_for(settled, patience_s, 2)
    say(f"{kind}: {row['state']}: {row['note']}")
    expect(row["state"] == "acted", f"{kind} ended {row['state']}: {row['note']}")
    return row


def monitor_now(chosen: MonitorSettings) -> str:
    """One run of the deployed monitor for this assistant alone; the address of the run."""
    asked = {"assistants": [NAME], "chosen": as_json(chosen), "table": as_json(TABLE)}
    run = run_deployment("monitor/monitor", parameters=asked, timeout=0)

    def ended():
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run.id).state
        return state if state.is_final() else None

    state = wait_for(ended, 600, 1)
    expect(state.is_completed(), f"the monitor's run ended {state.name}: {state.message}")
    return run_link(run.id)


@contextmanager
def by_hand() -> Iterator[None]:
    """The monitor's schedule rests meanwhile: with settings of its own it would judge what is staged here."""
    marker = settings().home / "deployed"
    known = marker.read_text() if marker.exists() else None
    marker.unlink(missing_ok=True)  # a demo that is killed leaves it to the next start to deploy all anew, schedule too
    schedule(False)
    try:
        yield
    finally:
        schedule(True)
        if known is not None:
            marker.write_text(known)


def schedule(active: bool) -> None:
    with get_client(sync_client=True) as client:
        monitor = client.read_deployment_by_name("monitor/monitor")
        for one in client.read_deployment_schedules(monitor.id):
            client.update_deployment_schedule(monitor.id, one.id, active=active)


def run_link(run: UUID | str) -> str:
    return f"{settings().prefect.removesuffix('/api')}/runs/flow-run/{run}"


def wait_for(what: Callable, patience_s: float, every_s: float = 0.5):
    """What `what` gives once it gives anything; NotSo after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        if time.monotonic() > deadline:
            raise NotSo(f"nothing came of it within {patience_s:.0f} s")
        time.sleep(every_s)
    return found


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise NotSo(otherwise)


def say(what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what}", flush=True)
