"""The loop, to be read from top to bottom: documents and examples in, a released assistant out. Its remedies are in
flows/remedies.py.

prepare -> index -> finetune -> evaluate -> gate -> warm -> smoke -> canary -> promote
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from data import feedback, reviews, snapshots, trainings
from data.feedback import Said
from data.ledger import Ledger
from data.records import Decision, IndexVersion, Model, Prompt, Release, Retrieval, Reuse, Snapshot, Sources, as_json
from data.requests import RequestLog
from flows import approval
from serving.engine import bases
from serving.engine.bases import Base
from settings import settings
from tasks import deploy, evaluate, events, finetune, index, objection, precedents, prepare, registry, report
from tasks.deploy import Canary
from tasks.finetune import Training
from tasks.gate import GateSettings

NAMES = {
    "promote": "Promoted",
    "bootstrap": "Promoted",
    "reject": "Rejected",
    "hold": "Held",
    "rolledback": "RolledBack",
}

# Every step is a box in the Prefect UI. What a step does is in the module of its name; each knows itself what is done.
step = partial(task, cache_policy=NO_CACHE)
prepare_snapshot = step(prepare.prepare, name="prepare")
build_index = step(index.build_index, name="index")
finetune_model = step(finetune.finetune, name="finetune")
evaluate_release = step(evaluate.evaluate, name="evaluate")
decide_gate = step(evaluate.decide, name="gate")
warm = step(deploy.warm, name="warm")
smoke = step(deploy.smoke, name="smoke")
canary = step(deploy.canary, name="canary")
mirror = step(registry.mirror, name="mirror", retries=2, retry_delay_seconds=5)


def ledger() -> Ledger:
    return Ledger(settings().ledger)


# --- the whole loop ---------------------------------------------------------------------------


@flow(log_prints=True)
def lifecycle(
    sources: Sources,
    training: Training = Training(),
    gates: GateSettings = GateSettings(),
    prompt: Prompt = Prompt(),
    retrieval: Retrieval = Retrieval(),
    base_models: list[str] | None = None,
    reuse: Reuse | None = None,
) -> Decision:
    """From documents and examples to a released assistant: the untuned base first, then the tuned candidate.

    `base_models`: folders or hub ids of the models to tune, None for the embedded one. Of several the first goes live
    untuned, all are tuned on the same data and judged by the same gate, and the best accepted one is released. One
    that is served elsewhere (URL#MODEL) is released and judged as it is: no adapter can go there. `reuse`: when the
    release gives an answer again to who asks the same, None for never.
    """
    name, chosen = sources.assistant, [bases.find(base) for base in base_models or [None]]
    elsewhere = [base for base in chosen if not base.tunable]
    for base in elsewhere:
        print(f"not tuned: {base.why}; its releases differ by index, prompt and settings alone")
    snapshot = prepared(sources)
    version = index_snapshot(sources, snapshot)
    live, _ = live_pointer(name)
    learns = bool(snapshot.examples) and len(elsewhere) < len(chosen)
    if live is None:
        untuned = Release(name, chosen[0].model, version, replace(prompt, chat=chosen[0].chat), retrieval, reuse=reuse)
        bootstrap = release_candidate(untuned, "bootstrap", snapshot, gates)
        if not (bootstrap.accepted and learns):
            return named(bootstrap)
    elif not learns and all(base.sha256 == live.model.base for base in elsewhere):
        candidate = replace(live, index=version, reuse=reuse)
        if elsewhere:  # worked examples stay: no model has learnt them
            own = replace(prompt, chat=live.prompt.chat, shots=prompt.shots or live.prompt.shots)
            candidate = replace(candidate, prompt=own, retrieval=retrieval)
        return named(release_candidate(candidate, evaluate.kind_of(candidate, live), snapshot, gates))
    trained = [
        finetune_model(snapshot, version, replace(prompt, chat=base.chat), retrieval, training, base.sha256)
        if base.tunable
        else base.model
        for base in chosen
    ]
    # documents may have changed while it trained
    snapshot, version = prepare_and_index(name, [model for model in trained if model.adapter], snapshot)
    candidates = [
        Release(name, model, version, replace(prompt, chat=base.chat), retrieval, reuse=reuse)
        for model, base in zip(trained, chosen, strict=True)
    ]
    best = candidates[0] if len(candidates) == 1 else compared(candidates, chosen, snapshot, gates)
    return named(release_candidate(best, "tuned", snapshot, gates))


@flow(log_prints=True)
def release(candidate: Release, kind: str, snapshot: Snapshot, gates: GateSettings = GateSettings()) -> Decision:
    """Evaluate a candidate, gate it, and if it is accepted take it through smoke and canary to the live pointer."""
    book, name = ledger(), candidate.assistant
    live, seq = live_pointer(name)
    if live and live.id == candidate.id:
        return named(precedents.accepted(book, live))
    decision, about = judged(candidate, live, seq, kind, snapshot, gates), {"release": candidate.id, "kind": kind}
    if not decision.accepted:
        events.emit(events.REFUSED[decision.verdict], name, **about, reason=decision.reason)
        return named(decision)
    events.emit("perennial.release.canary", name, **about, reason=decision.reason)
    warm(candidate)
    questions = evaluate.smoke_questions(snapshot, candidate)
    broken = smoke(candidate, questions[0]) or canary(candidate, questions, Canary())
    if broken:
        events.emit("perennial.release.rolledback", name, **about, reason=broken)
        return named(
            replace(decision, verdict="rolledback", reason=f"accepted, but taken back before it was live: {broken}")
        )
    book.promote(name, candidate.id, seq, reason=decision.reason)
    mirror(candidate.id, return_state=True)
    events.emit("perennial.release.promoted", name, **about, reason=decision.reason)
    return named(decision)


def judged(
    candidate: Release, live: Release | None, seq: int, kind: str, snapshot: Snapshot, gates: GateSettings
) -> Decision:
    """The gate's decision on a new candidate, approved where the settings ask for it, held if the pointer moved."""
    book, name = ledger(), candidate.assistant
    book.add_release(candidate, kind, live.id if live else None, as_json(snapshot))
    decision = gated(candidate, live, kind, snapshot, gates)
    if decision.accepted and gates.approval_hours is not None:
        decision = approval.approved(book, decision, gates.approval_hours)
        report.gate(decision, precedents.untuned(book, decision))
    if decision.accepted and live_pointer(name)[1] != seq:
        reason = f"Another release went live since it was judged against {live.id if live else 'none'}: run it again."
        decision = replace(decision, verdict="hold", look=0, reason=f"{reason} The gate had said: {decision.reason}")
        book.decide_gate(name, decision)
    mirror(candidate.id, return_state=True)
    return decision


def gated(candidate: Release, live: Release | None, kind: str, snapshot: Snapshot, gates: GateSettings) -> Decision:
    """The gate's decision on a candidate against the live release; one on record for the pair is read, not redone.

    People are asked about a candidate that is held: to approve it, and to label answers that the judge finds worse.
    """
    book = ledger()
    if (known := precedents.decided(book, candidate, live, snapshot, kind)) is not None:
        return known
    evaluation = evaluate_release(candidate, live, kind, snapshot)
    judged, looks = precedents.tuned_decisions(book, candidate, snapshot), precedents.looks_before(book, evaluation)
    heard = objection.heard(book, evaluation, gates)
    decision = decide_gate(evaluation, kind, gates, judged, looks, heard)
    book.decide_gate(candidate.assistant, decision)
    if decision.verdict == "hold":
        reviews.ask_labels(book, candidate.assistant, heard.unlabelled)
        reviews.ask_held(book, candidate.assistant, decision)
    report.gate(decision, precedents.untuned(book, decision))
    return decision


def compared(candidates: list[Release], of: list[Base], snapshot: Snapshot, gates: GateSettings) -> Release:
    """The candidate with the most correct answers to the open questions among those the gate accepts, all judged
    against what is live.

    Of none accepted the first. The figures of all stand side by side in one report.
    """
    book, name = ledger(), candidates[0].assistant
    live, _ = live_pointer(name)
    decisions = []
    for candidate in candidates:
        if live and candidate.id == live.id:
            decisions.append(Decision("hold", "It is live: the others are judged against it.", candidate.id))
            continue
        book.add_release(candidate, "tuned", live.id if live else None, as_json(snapshot))
        decisions.append(gated(candidate, live, "tuned", snapshot, gates))
        mirror(candidate.id, return_state=True)
    report.bases(name, of, candidates, decisions)
    accepted = [at for at, decision in enumerate(decisions) if decision.accepted]
    return candidates[max(accepted, key=lambda at: decisions[at].metrics["correct"], default=0)]


# --- what the flows share ---------------------------------------------------------------------


def release_candidate(candidate: Release, kind: str, snapshot: Snapshot, gates: GateSettings) -> Decision:
    print(f"releasing {candidate.id} ({kind})")
    return release(candidate, kind, snapshot, gates)


def live_pointer(name: str) -> tuple[Release | None, int]:
    routing = ledger().live()[name]
    return routing.live, routing.live_seq


def prepared(sources: Sources) -> Snapshot:
    """A snapshot of the sources and of what people said; edits that only a person can settle are listed for review."""
    book, name = ledger(), sources.assistant
    said = heard(book, name)
    rulings = reviews.rulings(book, name)
    snapshot = prepare_snapshot(sources, known_snapshot(name), said, rulings=rulings, live=live_snapshot(name))
    feedback.ask_reviews(book, said, snapshot)
    return snapshot


def heard(book: Ledger, assistant: str) -> tuple[Said, ...]:
    """What may be learnt from: feedback, and the labels that a person gave when they were asked for."""
    labels = tuple(label for label, _ in reviews.said(book, assistant))
    return feedback.read(book, assistant, RequestLog(settings().requests)) + labels


def prepare_and_index(
    assistant: str, trained: Sequence[Model] = (), of: Snapshot | None = None
) -> tuple[Snapshot, IndexVersion]:
    """A fresh snapshot and index version of a known assistant; deleted text is out of reach before the gate.

    `trained`: models that come from the snapshot `of` before this one, whose feedback is put on record.
    """
    for model in trained:
        trainings.record_training(ledger(), model, of)
    if live := live_pointer(assistant)[0]:
        index.repair(ledger(), live)
    sources = Sources.of(ledger().assistant(assistant)["sources"])
    snapshot = prepared(sources)
    return snapshot, index_snapshot(sources, snapshot)


def known_snapshot(assistant: str) -> Snapshot | None:
    """The snapshot an assistant was last prepared into; None for a new assistant."""
    rows = [row for row in ledger().assistants() if row["name"] == assistant]
    return Snapshot.of(rows[0]["snapshot"]) if rows and rows[0]["snapshot"] else None


def live_snapshot(assistant: str) -> Snapshot | None:
    """The snapshot that the live index was made from; None while nothing is live."""
    routing = ledger().live().get(assistant)
    if routing is None or routing.live is None:
        return None
    return snapshots.complete(settings().snapshots / assistant / routing.live.index.snapshot)


def index_snapshot(sources: Sources, snapshot: Snapshot) -> IndexVersion:
    version = build_index(snapshot)
    book = ledger()
    book.register(sources, as_json(snapshot))
    index.bury_outdated(book, version)
    index.sweep(book, version)
    reviews.ask_aged(book, sources.assistant, snapshots.reviews(snapshot))
    report.snapshot(snapshot)
    return version


def named(decision: Decision) -> State:
    """A green run under an honest name: Promoted, Rejected, Held, RolledBack."""
    return Completed(name=NAMES[decision.verdict], message=decision.reason, data=decision)


if __name__ == "__main__":
    from flows.command import main

    main()
