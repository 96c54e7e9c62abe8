"""What people read in the Prefect UI: one Markdown or table artifact for each stage."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from data.ledger import Ledger
from data.records import Decision, Snapshot, as_json
from tasks import prepare
from tasks.diagnose import Evidence, Remedy


def snapshot(made: Snapshot) -> None:
    """Counts of a snapshot, and every quarantined input with its reason."""
    rows = [{"file": q.file, "place": q.place, "reason": q.reason} for q in prepare.quarantine(made)]
    counts = (
        f"{made.documents} documents, {made.sections} sections, {made.examples} training examples, {made.golden} "
        f"golden questions ({made.aged} set aside), {made.duplicates} duplicates, {made.leaked} leaked examples "
        f"removed, {made.quarantined} quarantined"
    )
    print(f"prepare: {counts}")
    create_markdown_artifact(key="snapshot", markdown=f"## {made.assistant}\n\n{counts}\n", description=counts)
    if rows:
        create_table_artifact(key="quarantine", table=rows, description=f"input of {made.assistant} that was not used")


def markdown(decision: Decision) -> str:
    """A decision as Markdown: the sentence, the intervals, every metric of both arms."""
    lines = [f"# {decision.verdict.upper()}: {decision.release}", "", decision.reason, ""]
    if decision.intervals:
        lines += [
            "| metric | difference | lower | upper | margin | n | clusters | detectable | verdict |",
            "|" + "---|" * 9,
        ]
        lines += [
            f"| {i.metric} | {i.mean:+.3f} | {i.lower:+.3f} | {i.upper:+.3f} | {i.margin:.2f} | {i.n} | {i.clusters} "
            f"| {i.detectable:.3f} | {i.verdict} |"
            for i in decision.intervals
        ]
    if decision.metrics:
        lines += ["", "| metric | candidate | champion |", "|---|---|---|"]
        baseline = decision.baseline or {}
        for name, value in decision.metrics.items():
            other = f"{baseline[name]:.3f}" if name in baseline else ""
            lines.append(f"| {name} | {value:.3f} | {other} |")
    return "\n".join([*lines, "", *[f"- {note}" for note in decision.notes]])


def gate(decision: Decision) -> None:
    print(f"gate: {decision.verdict}: {decision.reason}")
    create_markdown_artifact(key="gate", markdown=markdown(decision), description=decision.reason[:250])


def alert(assistant: str, sentence: str) -> None:
    """Tell a person; nothing live moves."""
    print(f"ALERT {assistant}: {sentence}")
    create_markdown_artifact(key="alert", markdown=f"## Alert: {assistant}\n\n{sentence}\n", description=sentence[:250])


def signals(assistant: str, evidence: Evidence, found: Remedy) -> None:
    """Every signal of one monitoring run with its sentence, and what was concluded."""
    rows = [
        {"signal": s.name, "value": round(s.value, 3), "alarm": s.alarm, "what": s.sentence} for s in evidence.signals
    ]
    print(f"{assistant}: {found.kind} (row {found.row}): {found.reason}")
    create_table_artifact(key="signals", table=rows, description=f"{assistant}: {found.kind}. {found.reason}"[:250])


def ask_reviews(ledger: Ledger, snapshot: Snapshot) -> None:
    """Put the golden questions that aged with their source into the review queue."""
    aged = [question for question in prepare.golden(snapshot) if not question.votes]
    subjects = {f"{question.id}@{snapshot.id}": as_json(question) for question in aged}
    ledger.ask_review(snapshot.assistant, "aged golden question", subjects)
