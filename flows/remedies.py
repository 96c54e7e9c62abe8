"""The remedies, one flow each: what a diagnosis or a person asked for, held by its outbox row while it runs."""

from __future__ import annotations

from dataclasses import replace

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed, State

from data import reviews
from data.outbox import ask
from data.records import Decision, Snapshot, as_json
from flows import review
from flows.calibrate import compare
from flows.lifecycle import (
    decide_gate,
    evaluate_release,
    finetune_model,
    heard,
    known_snapshot,
    ledger,
    live_pointer,
    mirror,
    named,
    prepare_and_index,
    release_candidate,
    smoke,
    step,
    warm,
)
from tasks import deploy, evaluate, events, precedents, quarantine, remedy, report
from tasks.calibrate import Labelled, Rules, read_labels
from tasks.collect import Collecting, list_answers
from tasks.finetune import Training, trained_with
from tasks.gate import GateSettings
from tasks.remedy import Brakes, Claim
from tasks.reprompt import FewShot, worked_examples

choose_shots = step(worked_examples, name="examples")
collect_answers = step(list_answers, name="collect")


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
    training: Training | None = None,
    gates: GateSettings | None = None,
    brakes: Brakes = Brakes(),
) -> Decision | None:
    """Fine-tune again on the examples as they are now, and release the result if it is not worse.

    Worked examples leave the prompt: what was reviewed is among what the model learns now. `training`: None for how
    the live model was trained; `gates`: None for those it was last judged with.
    """
    with claimed("retrain", assistant, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        snapshot, version = prepare_and_index(claim.assistant)
        live, _ = live_pointer(claim.assistant)
        training, prompt = training or trained_with(live.model), replace(live.prompt, shots=())
        model = finetune_model(snapshot, version, prompt, live.retrieval, training, live.model.base)
        # documents may have changed while it trained
        snapshot, version = prepare_and_index(claim.assistant, [model], snapshot)
        live, _ = live_pointer(claim.assistant)
        gates = gates or precedents.gates(ledger(), claim.assistant)
        candidate = replace(live, model=model, index=version, prompt=replace(live.prompt, shots=()))
        decision = release_candidate(candidate, "tuned", snapshot, gates)
        conclude(claim, decision)
    return named(decision)


@flow(log_prints=True)
def reprompt(
    assistant: str | None = None,
    outbox: int | None = None,
    few: FewShot = FewShot(),
    gates: GateSettings | None = None,
    brakes: Brakes = Brakes(),
) -> Decision | None:
    """Put reviewed pairs into the prompt as worked examples, over the live model and index, if it is not worse.

    `gates`: None for those that the assistant was last judged with.
    """
    with claimed("reprompt", assistant, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        book, name = ledger(), claim.assistant
        live, _ = live_pointer(name)
        snapshot = known_snapshot(name)
        shots = choose_shots(book, live, snapshot, heard(book, name), few)
        if not shots:
            said = f"not reprompted: fewer than {few.fewest} reviewed pairs may be shown; collect labels first"
            settle(claim, said)
            report.alert(name, said)
            return Completed(name="TooFew", message=said)
        candidate = replace(live, prompt=replace(live.prompt, shots=shots))
        gates = gates or precedents.gates(book, name)
        decision = release_candidate(candidate, "reprompt", snapshot, gates)
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
        about = {"release": bad.id, "outbox": claim.outbox, "kind": "rollback"}
        events.emit("perennial.release.rolledback", name, **about, reason=f"gone back to {back.id}")
        mirror(back.id, return_state=True)
        settle(claim, f"from {bad.id} to {back.id}", back.id)
    gates = precedents.gates(book, name)
    decision = decide_gate(evaluate_release(back, bad, "rollback", snapshot), "rollback", gates)
    if decision.verdict == "reject":
        reason = f"rolled back to {back.id}, which is worse than {bad.id}: {decision.reason}"
        report.alert(name, reason, "gone back to a worse release", back.id)
    return named(
        replace(decision, verdict="rolledback", reason=f"{bad.id} -> {back.id}; checked after: {decision.reason}")
    )


@flow(log_prints=True)
def recalibrate(
    assistant: str | None = None, outbox: int | None = None, labels: str | None = None, brakes: Brakes = Brakes()
) -> State:
    """Compare the judge, as it is now, with what people labelled; what is live stays as it is.

    `labels`: a file of more of them (JSON lines). A judge that no longer agrees with people is advisory from here on.
    Where there are no labels at all, answers are listed to be labelled, and what was known of the judge stands.
    """
    with claimed("recalibrate", assistant, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        known = [Labelled.of(label) for label in reviews.labels(ledger(), claim.assistant)]
        known += read_labels(labels) if labels else []
        if not known:
            ask_labels(claim.assistant)
            said = "nobody labelled an answer yet; what was known of the judge stands"
            settle(claim, said)
            return Completed(name="Asked", message=said)
        found = compare(claim.assistant, known)
        report.calibration(claim.assistant, found)
        settle(claim, found.says())
        if not found.passed:
            report.alert(claim.assistant, found.says())
        if found.items < Rules().items:
            ask_labels(claim.assistant)
    return Completed(name="Passed" if found.passed else "Advisory", message=found.says())


@flow(log_prints=True)
def collect(
    assistant: str | None = None,
    outbox: int | None = None,
    collecting: Collecting = Collecting(),
    brakes: Brakes = Brakes(),
) -> State:
    """Ask people to label the most informative recent answers, in the review queue; what is live stays as it is."""
    with claimed("collect", assistant, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        live, _ = live_pointer(claim.assistant)
        said = collect_answers(ledger(), live, known_snapshot(claim.assistant), collecting)
        settle(claim, said)
    return Completed(name="Asked", message=said)


@flow(name="quarantine_ratings", log_prints=True)
def quarantine_ratings(assistant: str | None = None, outbox: int | None = None, brakes: Brakes = Brakes()) -> State:
    """Set the ratings of the few who carry an alarm aside until a person gives them back, and do nothing else."""
    with claimed("quarantine_ratings", assistant, outbox, brakes) as claim:
        if claim is None:
            return skipped()
        said = quarantine.set_aside(ledger(), claim.assistant, claim.body.get("voices", ()))
        settle(claim, said)
        report.alert(claim.assistant, said)
    return Completed(name="SetAside", message=said)


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


# --- what the remedies share -------------------------------------------------------------------


def ask_labels(assistant: str) -> None:
    """List answers of the live release's evaluation to be labelled: with their references a judge can be compared."""
    live, _ = live_pointer(assistant)
    try:
        print(f"{review.ask(ledger(), live.id, Rules().items)} answers of {live.id} wait for a label")
    except LookupError as error:  # evaluated on another machine
        print(error.args[0])


def claimed(kind: str, assistant: str | None, outbox: int | None, brakes: Brakes):
    """Hold outbox row `outbox`, or a new one when a person asks for `assistant`; yields None if it is not free."""
    book = ledger()
    if outbox is None:
        if assistant is None:
            raise ValueError(f"{kind} needs the name of an assistant, or the outbox row to act on")
        outbox = ask(book, assistant, kind)
    return remedy.claimed(book, outbox, str(flow_run.get_id()), brakes)


def settle(claim: Claim, said: str, release: str | None = None) -> None:
    """Note what came of a remedy, and send it: a sentence, and the release where it is about one."""
    claim.note(said)
    about = {"release": release, "outbox": claim.outbox, "kind": claim.kind}
    events.emit("perennial.remedy.concluded", claim.assistant, **about, reason=said)


def conclude(claim: Claim, decision: Decision) -> None:
    """Settle a remedy by what its candidate came to; one that was refused is told to a person, one that was taken back
    is tried again."""
    settle(claim, decision.reason, decision.release)
    if decision.verdict == "rolledback":
        claim.again(decision.reason)
    elif not decision.accepted:
        reason = f"{claim.kind} was not released: {decision.reason}"
        report.alert(claim.assistant, reason, f"{claim.kind} not released", decision.release)


def skipped() -> State:
    return Completed(name="Skipped", message="the outbox row is settled, merged or taken, or a brake refused it")


if __name__ == "__main__":
    from flows.by_hand import main

    main()
