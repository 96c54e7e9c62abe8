"""`python -m flows.split`: two accepted releases side by side, each asked by a share of the users, till one is better.

start makes a candidate of another prompt, of other retrieval settings or of another release, takes it through gate and
smoke query, and gives it its share. look compares the arms, as often as it likes, and ends the test by its verdict.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import fields, replace

from prefect import flow
from prefect.states import Completed, State

from data import splits
from data.lease import lease
from data.ledger import Ledger, NotAccepted, PointerMoved
from data.records import Prompt, Release, Retrieval, Snapshot, as_json
from data.requests import RequestLog
from data.splits import Split
from flows import lifecycle
from flows.lifecycle import ledger, named
from flows.retrieval import live_release
from settings import apply_environment, settings
from tasks import evaluate, events, precedents, prompts, report
from tasks import split as comparison
from tasks.split import Plan


@flow(name="split-start", log_prints=True)
def start(
    assistant: str,
    prompt: str | None = None,
    retrieval: Retrieval | None = None,
    release: str | None = None,
    share: float = 0.5,
    plan: Plan = Plan(),
) -> State:
    """Judge the live release with another prompt (file, version or release id) or settings, or another release over the
    live index, like any candidate; if it is accepted and answers, `share` of the users ask it from now on.
    """
    book, planned = ledger(), plan.users(share)
    splits.refuse_second(book, assistant)
    live, seq = live_release(book, assistant), book.assistant(assistant)["live_seq"]
    if plan.days >= settings().retention_days:
        raise ValueError(f"{plan.days:g} days are longer than requests are kept ({settings().retention_days} days)")
    candidate = challenger(book, live, prompt, retrieval, release)
    snapshot = Snapshot.of(book.release_row(live.id)["snapshot"])
    if candidate.id not in book.accepted_releases(assistant):
        kind, gates = evaluate.kind_of(candidate, live), precedents.gates(book, assistant)
        decision = lifecycle.judged(candidate, live, seq, kind, snapshot, gates)
        if not decision.accepted:
            return named(decision)
    lifecycle.warm(candidate)
    if silent := lifecycle.smoke(candidate, evaluate.smoke_questions(snapshot, candidate)[0]):
        raise RuntimeError(f"{candidate.id} does not answer: {silent}; no split test was started")
    made = splits.start(book, assistant, live.id, candidate.id, share, as_json(plan))
    message = f"{share:.0%} of the users ask {made.b}; planned: {planned['a']} and {planned['b']} users with a score"
    changed = prompts.diff(live.prompt, candidate.prompt, (made.a, made.b))
    events.emit("perennial.split.started", assistant, release=made.b, kind="split", reason=message)
    report.split(assistant, message, f"```diff\n{changed}```" if changed else "Both have the same prompt.")
    return Completed(name="Started", message=message, data=as_json(made))


def challenger(
    book: Ledger, live: Release, prompt: str | None, retrieval: Retrieval | None, release: str | None
) -> Release:
    """What is to be compared with `live`; always over the live index, so that no old text comes back."""
    made = replace(book.release(release), index=live.index) if release else live
    if made.assistant != live.assistant:
        raise ValueError(f"{release} belongs to {made.assistant!r}, not to {live.assistant!r}")
    if prompt:
        written = prompts.find(book, live.assistant, prompt, made.prompt)
        made = replace(made, prompt=replace(written, chat=made.prompt.chat))  # a model speaks its own chat format
    if retrieval:
        made = replace(made, retrieval=retrieval)
    if made.id == live.id:
        raise ValueError(f"this is {live.id}, which is live already; give another prompt, retrieval or release")
    return made


@flow(name="split", log_prints=True)
def look() -> State:
    """Compare the arms of every running split test and end what is settled; a better b goes live by `release`.

    One look at a time: one that takes b live may take longer than the time to the next.
    """
    with ExitStack() as held:
        try:
            held.enter_context(lease("split", timeout_s=0))
        except TimeoutError:
            return Completed(name="Busy", message="another look is under way", data={})
        said = looked(ledger(), time.time())
    message = ", ".join(f"{name}: {what}" for name, what in said.items()) or "no split test runs"
    return Completed(name="Looked", message=message, data=said)


def looked(book: Ledger, now: float) -> dict[str, str]:
    """Assistant -> what came of looking at its split test."""
    said = {}
    for test in splits.running(book):
        if book.assistant(test.assistant)["paused"]:
            said[test.assistant] = "paused"
            continue
        verdict = test.verdict or judge(book, test, now)
        said[test.assistant] = adopt(book, test, now) if verdict == "b" else verdict or "goes on"
    return said


def judge(book: Ledger, test: Split, now: float) -> str:
    """The verdict on a running test, put on record with the figures it rests on; '' while it goes on."""
    found = comparison.compare(book, RequestLog(settings().requests), test, now)
    verdict, reason = comparison.conclude(test, found, now)
    report.split(test.assistant, reason, comparison.table(test, found))
    if verdict and splits.decide(book, test, verdict, reason, as_json(found)):
        events.emit("perennial.split.decided", test.assistant, release=test.b, kind="split", row=verdict, reason=reason)
    return verdict


def adopt(book: Ledger, test: Split, now: float) -> str:
    """Take the better b through canary and promotion, which ends the test; what came of it.

    A run that broke off is tried again at the next look, till the days of the plan are over; a candidate that is
    refused on the way is not.
    """
    name, candidate = test.assistant, book.release(test.b)
    if ended(book, test):
        return "ended"
    kind, snapshot = evaluate.kind_of(candidate, book.live()[name].live), book.release_row(test.a)["snapshot"]
    gates = precedents.gates(book, name)
    state = lifecycle.release(candidate, kind, Snapshot.of(snapshot), gates, return_state=True)
    if state.is_completed():
        decision = state.result()
        if decision.accepted:
            return "b went live"
        reason = f"b was better, but it was not released: {decision.reason}"
    else:
        reason = f"b is not live yet: {state.message}"
        if ended(book, test):
            return "ended"
        if now - test.started < 86_400 * Plan.of(test.plan).days:
            if book.decisions(name, "split", 1)[0]["verdict"] != "delayed":
                book.decide(name, "split", test.b, "delayed", reason, {"split": test.id})
                report.alert(name, f"{reason}; it is tried again")
            return reason
    if splits.decide(book, test, "refused", reason, {}):
        report.alert(name, reason)
    return "refused"


def ended(book: Ledger, test: Split) -> bool:
    return all(test.id != one.id for one in splits.running(book))


def end(book: Ledger, assistant: str, who: str, why: str = "") -> Split:
    """End the running split test of an assistant by hand: everybody asks the live release again."""
    test = running(book, assistant)
    found = comparison.compare(book, RequestLog(settings().requests), test, time.time())
    reason = f"stopped by {who}" + (f": {why}" if why else "")
    splits.decide(book, test, "stopped", f"{reason}; {found.says()}", as_json(found))
    report.split(assistant, reason, comparison.table(test, found))
    return splits.of(book, assistant)[-1]


def running(book: Ledger, assistant: str) -> Split:
    """Raises LookupError when no split test of the assistant runs."""
    found = splits.current(book, assistant)
    if found is None:
        raise LookupError(f"no split test of {assistant!r} runs; start one with python -m flows.split start")
    return found


# --- in a terminal ----------------------------------------------------------------------------


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.split", description="Two releases side by side.")
    words = parser.add_subparsers(dest="word", required=True)
    begin = words.add_parser("start", help="compare the live release with another one", epilog=Plan.__doc__)
    begin.add_argument("--assistant", required=True)
    begin.add_argument("--prompt", help="a JSON or YAML file, the number of a registered version, or a release's id")
    begin.add_argument("--retrieval", type=json.loads, help="settings that are to be otherwise, as a JSON object")
    begin.add_argument("--release", help="id of the release to compare with, over the live index")
    begin.add_argument("--share", type=float, default=0.5, help="share of the users that ask it (0.5)")
    for field in fields(Plan):
        begin.add_argument(f"--{field.name}", type=float, default=field.default, help=f"({field.default:g})")
    for word, about in (("status", "what runs and what is known"), ("end", "end it by hand")):
        sub = words.add_parser(word, help=about)
        sub.add_argument("--assistant", required=word == "end")
    sub.add_argument("--who", default=getpass.getuser(), help="who ends it; it is recorded (default: the user)")
    sub.add_argument("--why", default="")
    both = words.add_parser("diff", help="two prompts, line by line")
    both.add_argument("a", help="a release's id, the number of a registered version, or a file")
    both.add_argument("b")
    both.add_argument("--assistant", help="whose versions the numbers are, and whose prompt a file changes")
    return parser.parse_args(given)


def main() -> None:
    """Exit code 0 when it is done, 1 with a sentence when it cannot be."""
    apply_environment()
    chosen = arguments()
    try:
        run(ledger(), chosen)
    except (LookupError, ValueError, RuntimeError, NotAccepted, PointerMoved, FileNotFoundError) as error:
        sys.exit(str(error.args[0]))


def run(book: Ledger, chosen: argparse.Namespace) -> None:
    """One word of the command line."""
    if chosen.word == "start":
        retrieval = None
        if chosen.retrieval is not None:
            served = live_release(book, chosen.assistant).retrieval
            retrieval = Retrieval.of(as_json(served) | chosen.retrieval)
        plan = Plan(**{field.name: getattr(chosen, field.name) for field in fields(Plan)})
        given = (chosen.assistant, chosen.prompt, retrieval, chosen.release, chosen.share, plan)
        state = start(*given, return_state=True)
        state.result()
        print(f"{state.name}: {state.message}", file=sys.stderr)
    elif chosen.word == "end":
        print(end(book, chosen.assistant, chosen.who, chosen.why).reason)
    elif chosen.word == "diff":
        served = live_release(book, chosen.assistant).prompt if chosen.assistant else Prompt()
        a, b = (prompts.find(book, chosen.assistant, name, served) for name in (chosen.a, chosen.b))
        print(prompts.diff(a, b, (chosen.a, chosen.b)).rstrip() or "the same prompt")
    else:
        status(book, chosen.assistant)


def status(book: Ledger, assistant: str | None) -> None:
    """The last three tests of each assistant: what came of them, or what is known by now."""
    log = RequestLog(settings().requests)
    names = [assistant] if assistant else [row["name"] for row in book.assistants()]
    for name in names:
        for test in splits.of(book, name)[-3:]:
            said = test.reason if test.ended else comparison.compare(book, log, test, time.time()).says()
            print(f"{name} {test.id}: {test.b} ({test.share:.0%}) against {test.a}: {test.verdict or 'runs'}: {said}")


if __name__ == "__main__":
    main()
