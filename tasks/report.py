"""What people read in the Prefect UI: one Markdown or table artifact for each stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.runtime import flow_run

from data import snapshots
from data.records import Decision, Release, Snapshot
from tasks import alerts, calibrate, events, page
from tasks.alerts import Alert
from tasks.calibrate import Calibration
from tasks.diagnose import Remedy
from tasks.evidence import Evidence
from tasks.retrieval import RetrievalReport
from tasks.retrieval import markdown as table

if TYPE_CHECKING:
    from serving.engine.bases import Base


def snapshot(made: Snapshot) -> None:
    """Counts of a snapshot, and every quarantined input with its reason."""
    rows = [{"file": q.file, "place": q.place, "reason": q.reason} for q in snapshots.quarantine(made)]
    taken = [{"file": r["file"], "document": r["document"], "reason": r["reason"]} for r in snapshots.filtered(made)]
    personal = ", ".join(f"{count} {kind}" for kind, count in sorted(snapshots.redacted(made).items()))
    counts = (
        f"{made.documents} documents, {made.sections} sections, {made.examples} training examples, {made.golden} "
        f"golden questions ({made.aged} set aside), {made.quarantined} quarantined; left out: {made.duplicates} "
        f"copies, {made.near_duplicates} near-copies, {made.unfit} unfit documents, {made.leaked} leaked examples, "
        f"{made.furniture} lines of boilerplate; redacted: {personal or 'nothing'}"
    )
    print(f"prepare: {counts}")
    create_markdown_artifact(key="snapshot", markdown=f"## {made.assistant}\n\n{counts}\n", description=counts)
    if taken:
        create_table_artifact(key="filtered", table=taken, description=f"documents of {made.assistant} left out")
    if rows:
        create_table_artifact(key="quarantine", table=rows, description=f"input of {made.assistant} that was not used")


def gate(decision: Decision, untuned: dict[str, float] | None) -> None:
    """The page of a decision, beside its scores and in the flow run."""
    print(f"gate: {decision.verdict}: {decision.reason}")
    if not decision.evaluation:  # put on record by a person
        return
    shown, text = page.write(decision, untuned)
    print(f"gate: {shown}")
    create_markdown_artifact(key="gate", markdown=text.read_text(), description=decision.reason[:250])


COMPARED = ("correct", "token_f1", "given_f1", "abstention", "latency")


def bases(assistant: str, of: Sequence[Base], candidates: Sequence[Release], decisions: Sequence[Decision]) -> None:
    """The tuned candidates of several base models side by side: verdict, quality, latency, size, cost of training."""
    rows = []
    for base, candidate, decision in zip(of, candidates, decisions, strict=True):
        made = {"cost": 0.0}
        if candidate.model.adapter:
            made = json.loads((Path(candidate.model.adapter_uri).parent.parent / "training.json").read_text())
        weights = Path(candidate.model.uri)
        files = [weights] if weights.is_file() else [file for file in weights.rglob("*") if file.is_file()]
        row = {"base": base.folder or base.sha256, "architecture": base.architecture, "release": candidate.id}
        row |= {"verdict": decision.verdict, "why": decision.reason, "engine": candidate.model.engine}
        row |= {name: round(decision.metrics[name], 4) for name in COMPARED if name in (decision.metrics or {})}
        row |= {"size_mb": round(sum(file.stat().st_size for file in files) / 1e6), "training_cost": made["cost"]}
        rows.append(row)
        print(f"bases: {base.architecture} {base.sha256[:12]}: {decision.verdict}: {decision.reason}")
    create_table_artifact(key="base-models", table=rows, description=f"base models for {assistant}")


def split(assistant: str, sentence: str, details: str) -> None:
    """What a split test has come to, in a sentence and in Markdown; outside a flow run the sentence alone."""
    print(f"split {assistant}: {sentence}")
    if flow_run.get_id() is not None:
        text = f"## {assistant}\n\n{sentence}\n\n{details}\n"
        create_markdown_artifact(key="split", markdown=text, description=sentence[:250])


def alert(
    assistant: str,
    sentence: str,
    what: str = "a person must look",
    release: str | None = None,
    questions: Sequence[str] = (),
) -> None:
    """Tell a person, here and through the channels of PERENNIAL_ALERTS; nothing live moves, and nobody waits."""
    print(f"ALERT {assistant}: {sentence}")
    create_markdown_artifact(key="alert", markdown=f"## Alert: {assistant}\n\n{sentence}\n", description=sentence[:250])
    alerts.send(Alert(assistant, what, sentence, release, events.links(), tuple(questions)))


def signals(assistant: str, evidence: Evidence, found: Remedy) -> None:
    """Every signal of one monitoring run with its sentence, and what was concluded."""
    rows = [
        {"signal": s.name, "value": round(s.value, 3), "alarm": s.alarm, "what": s.sentence} for s in evidence.signals
    ]
    print(f"{assistant}: {found.kind} (row {found.row}): {found.reason}")
    create_table_artifact(key="signals", table=rows, description=f"{assistant}: {found.kind}. {found.reason}"[:250])


def retrieval(assistant: str, found: RetrievalReport) -> None:
    """Where the right chunks come among those found, metric by metric."""
    said = f"{assistant}: hit@3 {found['hit@3'].mean:.1%}, MRR {found['mrr'].mean:.3f} on {found.questions} questions"
    print(f"retrieval: {said}")
    create_markdown_artifact(key="retrieval", markdown=f"## {assistant}\n\n{table(found)}\n", description=said)


def calibration(assistant: str, found: Calibration) -> None:
    """How far the judge agrees with people, and for whom it is biased."""
    text = f"## Judge of {assistant}\n\n{calibrate.markdown(found)}\n"
    create_markdown_artifact(key="calibration", markdown=text, description=found.says())


@contextmanager
def progress(key: str) -> Iterator[Callable[[dict], None]]:
    """Draws points of progress (see tasks/runs.py) as a progress artifact of the flow run; outside a flow, nothing."""
    if flow_run.get_id() is None:
        yield lambda point: None
        return
    drawn = create_progress_artifact(0.0, key=key, description="share of the training budget that is over")
    yield lambda point: update_progress_artifact(drawn, progress=100 * point["share"])


def training(assistant: str, card: str) -> None:
    """The model card of a training as the flow run shows it."""
    if flow_run.get_id() is not None:
        create_markdown_artifact(
            key="model-card", markdown=card.split("---\n", 2)[-1], description=f"{assistant}: tuned"
        )
