"""The loop, to be read from top to bottom: documents and examples in, a released assistant out, its remedies, approval.

prepare -> index -> finetune -> evaluate -> gate -> warm -> smoke -> canary -> promote
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, State

from data import feedback, reviews, snapshots
from data.ledger import Ledger
from data.records import Decision, IndexVersion, Model, Prompt, Release, Retrieval, Snapshot, Sources, as_json
from data.requests import RequestLog
from flows import approval
from serving.engine import bases
from serving.engine.bases import Base
from settings import settings
from tasks import deploy, evaluate, finetune, index, precedents, prepare, registry, remedy, report
from tasks.deploy import Canary
from tasks.finetune import Training
from tasks.gate import GateSettings
from tasks.remedy import Brakes, Claim

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
) -> Decision:
    """From documents and examples to a released assistant: the untuned base first, then the tuned candidate.

    `base_models`: folders or hub ids of the models to tune, None for the embedded one. Of several the first goes live
    untuned, all are tuned on the same data and judged by the same gate, and the best accepted one is released. One
    that is served elsewhere (URL#MODEL) is released and judged as it is: no adapter can go there.
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
        untuned = Release(name, chosen[0].model, version, replace(prompt, chat=chosen[0].chat), retrieval)
        bootstrap = release_candidate(untuned, "bootstrap", snapshot, gates)
        if not (bootstrap.accepted and learns):
            return named(bootstrap)
    elif not learns and all(base.sha256 == live.model.base for base in elsewhere):
        return named(release_candidate(replace(live, index=version), "reindex", snapshot, gates))
    trained = [
        finetune_model(snapshot, version, replace(prompt, chat=base.chat), retrieval, training, base.sha256)
        if base.tunable
        else base.model
        for base in chosen
    ]
    # documents may have changed while it trained
    snapshot, version = prepare_and_index(name, [model for model in trained if model.adapter], snapshot)
    candidates = [
        Release(name, model, version, replace(prompt, chat=base.chat), retrieval)
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
    if not decision.accepted:
        return named(decision)
    warm(candidate)
    questions = evaluate.smoke_questions(snapshot, candidate)
    broken = smoke(candidate, questions[0]) or canary(candidate, questions, Canary())
    if broken:
        remedy.emit("perennial.release.rolledback", name, {"release": candidate.id})
        return named(
            replace(decision, verdict="rolledback", reason=f"accepted, but taken back before it was live: {broken}")
        )
    book.promote(name, candidate.id, seq, reason=decision.reason)
    mirror(candidate.id, return_state=True)
    remedy.emit("perennial.release.promoted", name, {"release": candidate.id, "kind": kind})
    return named(decision)


# --- remedies: each holds the outbox row that asked for it ------------------------------------


@flow(log_prints=True)
def reindex(assistant: str | None = None, outbox: int | None = None, brakes: Brakes = Brakes()) -> Decision | None:
    """Take changed documents into a new index version and release it: only what changed is embedded and asked again."""
    with claimed("reindex", assistant, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        snapshot, version = prepare_and_index(claim.assistant)
        live, _ = live_pointer(claim.assistant)
        gates = precedents.gates(ledger(), claim.assistant)
        decision = release_candidate(replace(live, index=version), "reindex", snapshot, gates)
        conclude(claim, decision)
    return named(decision)


@flow(log_prints=True)
def retrain(
    assistant: str | None = None,
    outbox: int | None = None,
    training: Training = Training(),
    gates: GateSettings | None = None,
    brakes: Brakes = Brakes(),
) -> Decision | None:
    """Fine-tune again on the examples as they are now, and release the result if it is not worse.

    `gates`: None for those that the assistant was last judged with.
    """
    with claimed("retrain", assistant, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        snapshot, version = prepare_and_index(claim.assistant)
        live, _ = live_pointer(claim.assistant)
        model = finetune_model(snapshot, version, live.prompt, live.retrieval, training, live.model.base)
        # documents may have changed while it trained
        snapshot, version = prepare_and_index(claim.assistant, [model], snapshot)
        live, _ = live_pointer(claim.assistant)
        gates = gates or precedents.gates(ledger(), claim.assistant)
        decision = release_candidate(replace(live, model=model, index=version), "tuned", snapshot, gates)
        conclude(claim, decision)
    return named(decision)


@flow(log_prints=True)
def rollback(
    assistant: str | None = None,
    outbox: int | None = None,
    to: str | None = None,
    keep_index: bool = True,
    brakes: Brakes = Brakes(),
) -> Decision | None:
    """Go back to an accepted release in seconds (its model, prompt and settings over the live index), then check it."""
    with claimed("rollback", assistant, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        book, name = ledger(), claim.assistant
        bad, seq = live_pointer(name)
        back = deploy.rollback_release(book, name, to or claim.body.get("to"), keep_index)
        snapshot = Snapshot.of(book.assistant(name)["snapshot"])
        book.add_release(back, "rollback", bad.id, as_json(snapshot))
        warm(back)
        if broken := smoke(back, evaluate.smoke_questions(snapshot, back)[0]):
            raise RuntimeError(f"cannot roll {name!r} back to {back.id}: {broken}; {bad.id} stays live")
        book.promote(name, back.id, seq, kind="rollback", reason=claim.cause)
        remedy.emit("perennial.release.rolledback", name, {"release": bad.id, "to": back.id})
        mirror(back.id, return_state=True)
        claim.note(f"from {bad.id} to {back.id}")
    gates = precedents.gates(book, name)
    decision = decide_gate(evaluate_release(back, bad, "rollback", snapshot), "rollback", gates)
    if decision.verdict == "reject":
        report.alert(name, f"rolled back to {back.id}, which is worse than {bad.id}: {decision.reason}")
    return named(
        replace(decision, verdict="rolledback", reason=f"{bad.id} -> {back.id}; checked after: {decision.reason}")
    )


@flow(log_prints=True)
def approve(outbox: int, brakes: Brakes = Brakes()) -> Decision | None:
    """Release a candidate that the gate held and a person approved, if what it was judged against is still live."""
    with claimed("approve", None, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        book, candidate = ledger(), claim.body["release"]
        held, made = Decision.of(book.gate_decision(candidate)["body"]), book.release_row(candidate)
        live, _ = live_pointer(claim.assistant)
        if held.verdict == "hold" and held.champion == (live.id if live else None):
            reason = f"approved by {claim.body['by']}; the gate held it: {held.reason}"
            held = replace(held, verdict="promote", judged="approval", reason=reason)
            book.decide_gate(claim.assistant, held)
        if held.judged != "approval":
            held = replace(held, reason=f"{candidate} is no longer held against what is live: run its lifecycle again")
            conclude(claim, held)
            return named(held)
        snapshot = Snapshot.of(made["snapshot"])
        gates = precedents.gates(book, claim.assistant)
        decision = release_candidate(book.release(candidate), made["kind"], snapshot, gates)
        conclude(claim, decision)
    return named(decision)


def gated(candidate: Release, live: Release | None, kind: str, snapshot: Snapshot, gates: GateSettings) -> Decision:
    """The gate's decision on a candidate against the live release; one on record for the pair is read, not redone."""
    book = ledger()
    if (known := precedents.decided(book, candidate, live, snapshot, kind)) is not None:
        return known
    evaluation = evaluate_release(candidate, live, kind, snapshot)
    judged, looks = precedents.tuned_decisions(book, candidate, snapshot), precedents.looks_before(book, evaluation)
    decision = decide_gate(evaluation, kind, gates, judged, looks)
    book.decide_gate(candidate.assistant, decision)
    if decision.verdict == "hold":
        reviews.ask_held(book, candidate.assistant, decision)
    report.gate(decision, precedents.untuned(book, decision))
    return decision


def compared(candidates: list[Release], of: list[Base], snapshot: Snapshot, gates: GateSettings) -> Release:
    """The candidate with the most correct answers among those the gate accepts, all judged against what is live.

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


def claimed(kind: str, assistant: str | None, outbox: int | None, brakes: Brakes):
    """Hold outbox row `outbox`, or a new one when a person asks for `assistant`; yields None if it is not free."""
    book = ledger()
    if outbox is None:
        if assistant is None:
            raise ValueError(f"{kind} needs the name of an assistant, or the outbox row to act on")
        if book.assistant(assistant)["live_release"] is None:
            raise ValueError(f"{assistant!r} has nothing live yet; run its lifecycle first")
        outbox = remedy.ask_by_hand(book, assistant, kind, {})
    return remedy.claimed(book, outbox, str(flow_run.get_id()), brakes)


def conclude(claim: Claim, decision: Decision) -> None:
    """Note what came of a remedy; one that was refused is told to a person, one that was taken back is tried again."""
    claim.note(decision.reason)
    if decision.verdict == "rolledback":
        claim.again(decision.reason)
    elif not decision.accepted:
        report.alert(claim.assistant, f"{claim.kind} was not released: {decision.reason}")


def live_pointer(name: str) -> tuple[Release | None, int]:
    routing = ledger().live()[name]
    return routing.live, routing.live_seq


def prepared(sources: Sources) -> Snapshot:
    """A snapshot of the sources and of what people said; edits that only a person can settle are listed for review."""
    book, name = ledger(), sources.assistant
    said = feedback.read(book, name, RequestLog(settings().requests))
    rulings = reviews.rulings(book, name)
    snapshot = prepare_snapshot(sources, known_snapshot(name), said, rulings=rulings, live=live_snapshot(name))
    feedback.ask_reviews(book, said, snapshot)
    return snapshot


def prepare_and_index(
    assistant: str, trained: Sequence[Model] = (), of: Snapshot | None = None
) -> tuple[Snapshot, IndexVersion]:
    """A fresh snapshot and index version of a known assistant; deleted text is out of reach before the gate.

    `trained`: models that come from the snapshot `of` before this one, whose feedback is put on record.
    """
    for model in trained:
        feedback.record_training(ledger(), model, of)
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


def skipped() -> State:
    return Completed(name="Skipped", message="the outbox row is settled, merged or taken, or a brake refused it")


if __name__ == "__main__":
    from flows.command import main

    main()
