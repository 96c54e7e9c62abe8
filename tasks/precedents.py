"""What was decided before: decisions that stand, with which settings, tests a candidate had, the untuned figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from data import golden_sets, snapshots
from data.ledger import Ledger
from data.records import Decision, Release, Snapshot
from tasks.evaluate import Evaluation, Suite, questions_for, suite_hash
from tasks.gate import GateSettings


def decided(
    ledger: Ledger, candidate: Release, live: Release | None, snapshot: Snapshot, kind: str, suite: Suite = Suite()
) -> Decision | None:
    """The accepting decision on record for this candidate against this champion, if there is one of the same suite.

    A refusal is taken again: its evaluation is read unless the golden questions changed, and so may the settings have.
    What a person decided stands whatever the questions are by now; so does a decision without a suite, put on record
    by hand.
    """
    row = ledger.gate_decision(candidate.id)
    if row is None or row["body"]["champion"] != (live.id if live else None):
        return None
    decision = Decision.of(row["body"])
    by_person = not decision.suite or decision.judged == "approval"
    same = by_person or decision.suite == suite_hash(questions_for(snapshot, kind, suite, candidate, live)[0], suite)
    return decision if decision.accepted and same else None


def gates(ledger: Ledger, assistant: str) -> GateSettings:
    """The gate's settings that the assistant was last judged with: its remedies are judged with them too."""
    rows = ledger.decisions(assistant, "gate", limit=10_000)
    settings = next((row["body"]["settings"] for row in rows if row["body"].get("settings")), None)
    return GateSettings.of(settings) if settings else GateSettings()


def accepted(ledger: Ledger, live: Release) -> Decision:
    """Why the live release is live: its gate decision, or for a rollback that it was one."""
    row = ledger.gate_decision(live.id)
    if row is None:
        return Decision("promote", f"{live.id} is live already, by a rollback", live.id)
    decision = Decision.of(row["body"])
    return replace(decision, reason=f"Live already, nothing it serves has changed. {decision.reason}")


def looks_before(ledger: Ledger, evaluation: Evaluation) -> tuple[float, ...]:
    """The error level of every test that refused this candidate against this champion, on other scores than these."""
    name = ledger.release_row(evaluation.release)["assistant"]
    alphas = {
        decision.evaluation: decision.alpha
        for decision in _gate(ledger, name)
        if (decision.release, decision.champion) == (evaluation.release, evaluation.champion)
        and decision.look
        and not decision.accepted
        and decision.evaluation != evaluation.uri
    }
    return tuple(alphas.values())


def tuned_decisions(ledger: Ledger, candidate: Release, snapshot: Snapshot) -> int:
    """How many other tuned candidates the snapshot's golden set has judged (see data/golden_sets)."""
    return golden_sets.tuned_decisions(ledger, candidate.assistant, snapshots.golden(snapshot), candidate.id)


def untuned(ledger: Ledger, decision: Decision) -> dict[str, float] | None:
    """The means of the untuned release, where a first tuned candidate was judged against it on this very suite."""
    name = ledger.release_row(decision.release)["assistant"]
    for past in _gate(ledger, name):
        if past.suite == decision.suite and past.champion and not ledger.release(past.champion).model.adapter:
            return past.baseline
    return None


def _gate(ledger: Ledger, assistant: str) -> Iterator[Decision]:
    """Every decision of the gate on an assistant's candidates, newest first."""
    return (Decision.of(row["body"]) for row in ledger.decisions(assistant, "gate", limit=10_000))
