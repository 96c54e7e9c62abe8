"""`make demo`: the loop in front of a person's eyes, on the running stack, in five acts and about twenty minutes.

The assistant `demo` begins as the handbook's live model over a copy of its documents, so that nobody's own assistant is
touched, and is removed at the end. Everything goes the way it goes for users: questions, thumbs and corrections over
HTTP, edits of files, the deployed flows; only the monitor is asked to run at once instead of every five minutes, with
smaller settings, which are printed first.
"""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from data.ledger import Ledger
from data.records import Decision, Guard, Record
from flows import people, stack, stage
from flows.people import ask, ask_all, share_correct
from flows.stage import GATES, NAME, POISON, SAMPLE, TABLE, NotSo, Scene, examples, expect, healed, say, some, wait_for
from settings import settings
from tasks.references import MonitorSettings

# Quality alone is watched while the style changes: the streams of requests go on learning until the last act
LABELS = MonitorSettings(
    reference=5000, reference_labels=100, window_labels=40, horizon=300, alpha=0.2, slack=0.0, replay=20
)
TOPICS = MonitorSettings(reference=200, horizon=300, alpha=0.2, replay=40)
USUAL, CORRECTED, OTHERS, UNKNOWN = 100, 140, 60, 120  # questions asked; usual ones are labelled and corrected ones too
EDITED = ("accounts/two-step-verification.md", "sharing/share-links.md", "sharing/preview-watermarks.md")  # one is new


@dataclass(frozen=True)
class Act(Record):
    """One line of the table at the end."""

    name: str
    expected: str
    happened: str
    held: bool
    seconds: float
    link: str


@dataclass(frozen=True)
class Healing(Record):
    """Quality as the share of right answers: to the usual questions, and before and after the retraining to those of
    the other style that people corrected and to `others` like them that nobody did. `seconds` of each stage; `run`: the
    flow run of the retraining."""

    usual: float
    fallen: float
    recovered: float
    others_fallen: float
    others_recovered: float
    seconds: dict
    run: str

    def says(self) -> str:
        return (
            f"usual {self.usual:.0%} right; other style {self.fallen:.0%} -> {self.recovered:.0%} where corrected, "
            f"{self.others_fallen:.0%} -> {self.others_recovered:.0%} elsewhere"
        )


# --- the acts: each returns what happened and where to look, or raises NotSo ------------------


def documents_change(scene: Scene) -> tuple[str, str]:
    """New editions of two pages, a page that is new, and one deleted; nobody asks for anything."""
    before, gone = scene.live, (SAMPLE / "edition2_removed.txt").read_text().split()[0]
    asked = [one for one in examples("edition2_questions.jsonl") if one.document in EDITED]
    about_gone = [one for one in examples("examples.jsonl") if one.document == gone]
    old, cited = share_correct(ask_all(NAME, asked)), citing(gone, about_gone)
    for page in EDITED:
        shutil.copy(SAMPLE / "edition2" / page, scene.documents / page)
    (scene.documents / gone).unlink()
    say(f"written: {', '.join(EDITED)}; deleted: {gone}; {old:.0%} of {len(asked)} questions are answered that way")
    row = healed(scene.book, "reindex", LABELS)
    wait_for(lambda: ask(NAME, asked[0].question).release == scene.live.id, 15)
    new, still = share_correct(ask_all(NAME, asked)), citing(gone, about_gone)
    happened = f"{old:.0%} -> {new:.0%} right by the new edition; the deleted page cited {cited} -> {still} times"
    expect(scene.live.model == before.model and scene.live.index != before.index, f"no new index is live; {happened}")
    expect(new > old and new >= 0.5 and still == 0, happened)
    return happened, stage.run_link(row["claimed_by"])


def citing(document: str, about: Sequence) -> int:
    return sum(document in reply.citations for reply in ask_all(NAME, about))


def style_changes(scene: Scene) -> tuple[str, str]:
    """Questions move to another style, quality falls, labels come in, and a retrained model brings it back."""
    before = scene.live
    found = heal(scene)
    expect(scene.live.model != before.model, f"no new model is live; {found.says()}")
    expect(found.recovered > found.fallen and found.others_recovered >= found.others_fallen - 0.1, found.says())
    return found.says(), stage.run_link(found.run)


def heal(scene: Scene) -> Healing:
    """The second act as figures. NotSo when quality did not fall, or was not retrained."""
    usual = some(scene.answerable("examples.jsonl"), USUAL)
    style = some(scene.answerable("stream2.jsonl"), CORRECTED + OTHERS)
    corrected, others = style[:CORRECTED], style[CORRECTED:]
    good = ask_all(NAME, usual)
    people.label(scene.book, NAME, good)
    say(f"questions as ever: {share_correct(good):.0%} of {len(good)} right, by labels of users and a reviewer")
    stage.monitor_now(LABELS)
    clock = Clock()
    fallen, others_fallen = ask_all(NAME, corrected), share_correct(ask_all(NAME, others))
    say(f"another style, like {corrected[0].question!r}: {share_correct(fallen):.0%} of {len(fallen)} right")
    expect(share_correct(fallen) < share_correct(good), "the other style is answered as well as the usual one")
    clock.lap("questions of the other style")
    people.label(scene.book, NAME, fallen)
    clock.lap("labels")
    row = healed(scene.book, "retrain", LABELS, 1500)
    clock.lap("monitor and retrain")
    wait_for(lambda: ask(NAME, usual[0].question).release == scene.live.id, 15)
    clock.lap("answering")
    return Healing(
        share_correct(good),
        share_correct(fallen),
        share_correct(ask_all(NAME, corrected)),
        others_fallen,
        share_correct(ask_all(NAME, others)),
        clock.seconds,
        row["claimed_by"],
    )


class Clock:
    """Seconds from lap to lap, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self.last = round(now - self.last, 1), now


def poison_refused(scene: Scene) -> tuple[str, str]:
    """A candidate trained on shuffled answers."""
    before = scene.live
    decision, run = stage.poison(str(scene.documents))
    expect(decision.verdict == "reject" and scene.live == before, f"{decision.verdict}: {decision.reason}")
    return f"reject: {decision.reason}", run


def bad_deploy_rolled_back(scene: Scene) -> tuple[str, str]:
    """A release whose settings refuse every question, let through the gate by hand, while somebody asks."""
    before = scene.live
    mute = replace(before, guard=Guard(max_question_characters=5))
    scene.book.add_release(mute, "reprompt", before.id, scene.book.assistant(NAME)["snapshot"])
    scene.book.decide_gate(NAME, Decision("promote", "let through by hand for the demo", mute.id, before.id))
    with people.asking(NAME, "What is QB-244?") as seen:
        decision, run = stage.deploy(mute)
    failed = sum(reply is None for reply in seen)
    happened = f"{decision.verdict}: {decision.reason}; {failed} of {len(seen)} questions meanwhile failed"
    expect(decision.verdict == "rolledback" and scene.live == before, happened)
    expect(bool(seen) and not failed, happened)
    return happened, run


def unknown_topic(scene: Scene) -> tuple[str, str]:
    """People ask about what the documents do not hold."""
    book, before = scene.book, scene.live
    rows, told = len(book.outbox(NAME)), newest_alert(book)
    asked = some([one for one in examples("stream2.jsonl") if not one.answers], UNKNOWN)
    ask_all(NAME, asked)
    time.sleep(1)  # the request log is written every half second
    say(f"{UNKNOWN} questions like {asked[0].question!r}; the monitor looks")
    run = stage.monitor_now(TOPICS)
    alert = wait_for(lambda: (last := newest_alert(book)) != told and last, 60)
    happened = f"alert: {alert['body']['why']} Told by {', '.join(alert['body']['channels']) or 'Prefect alone'}"
    expect(len(book.outbox(NAME)) == rows and scene.live == before, f"more than an alert happened; {happened}")
    return happened, run


def newest_alert(book: Ledger) -> dict | None:
    return next(iter(book.decisions(NAME, "alert", 1)), None)


# --- the evening ------------------------------------------------------------------------------

ACTS: tuple[tuple[str, str, Callable[[Scene], tuple[str, str]]], ...] = (
    ("documents change", "re-indexed by itself, the new answers are given", documents_change),
    ("the style of questions changes", "quality falls, labels come in, retrained, gated, recovered", style_changes),
    ("a poisoned candidate", "refused by the gate, nothing live moves", poison_refused),
    ("a bad deploy", "rolled back, no question fails", bad_deploy_rolled_back),
    ("a topic the documents lack", "an alert and nothing else", unknown_topic),
)


def perform(scene: Scene, acts: Sequence[tuple] = ACTS) -> list[Act]:
    """Every act, also after one that did not go as told."""
    done = []
    for number, (name, expected, act) in enumerate(acts, start=1):
        print(f"\n--- act {number}: {name}", flush=True)
        say(f"expected: {expected}")
        start = time.monotonic()
        try:
            happened, link = act(scene)
            held = True
        except Exception as problem:  # whatever it is: the others are still played, and all is put away
            if not isinstance(problem, NotSo):
                traceback.print_exc()
            happened, link, held = f"{type(problem).__name__}: {problem}", "", False
        done.append(Act(name, expected, happened, held, round(time.monotonic() - start, 1), link))
        say(f"{'as told' if held else 'NOT AS TOLD'}: {happened} {link}")
    return done


def table(acts: Sequence[Act]) -> str:
    """The acts as text: what, as told or not, seconds; below each what was expected, what happened, where to look."""
    lines = [f"\n{'act':32} {'as told':>8} {'seconds':>8}"]
    for act in acts:
        lines.append(f"{act.name:32} {'yes' if act.held else 'NO':>8} {act.seconds:8.0f}")
        lines += [
            f"    {text}" for text in (f"expected: {act.expected}", f"happened: {act.happened}", act.link) if text
        ]
    return "\n".join(lines)


def shown(settings: Record) -> str:
    """A record of settings by what is not at its default."""
    default = type(settings)()
    mine = {field.name: getattr(settings, field.name) for field in fields(settings)}
    other = [f"{name}={value}" for name, value in mine.items() if value != getattr(default, name)]
    return f"{type(settings).__name__}({', '.join(other)})"


def unwell() -> list[str]:
    """The processes that do not answer."""
    return [name for name, (_, well) in stack.health().items() if not well]


def main() -> int:
    """0 when every act went as told and the stack is healthy after it."""
    start = time.monotonic()
    if down := unwell():
        raise SystemExit(f"not running here: {', '.join(down)}; make run first")
    print("settings that are smaller than the defaults, so that a few hundred questions do for thousands:")
    print("\n".join(f"  {shown(chosen)}" for chosen in (LABELS, TOPICS, TABLE, GATES, POISON)))
    print("\n".join(f"{name:9} {address}" for name, (address, _) in stack.health().items()))
    with stage.by_hand(), stage.assistant(Ledger(settings().ledger)) as scene:
        say(f"the assistant {NAME!r} is live as {scene.live.id}: ask it too, at {settings().endpoint}/ask")
        acts = perform(scene)
    print(table(acts))
    down, seconds = unwell(), time.monotonic() - start
    state = f"not answering: {', '.join(down)}" if down else f"the stack is healthy, {NAME!r} is removed again"
    print(f"\n{sum(act.held for act in acts)} of {len(acts)} acts as told in {seconds:.0f} s; {state}")
    return int(bool(down) or not all(act.held for act in acts))


if __name__ == "__main__":
    sys.exit(main())
