"""The review queue: what needs a person is one list, and what the person decided stands in it with who and when.

Four kinds wait: golden questions that aged with their source, edits from feedback, answers to be labelled right or
wrong, and releases that the gate held. Nothing here acts: verdicts on questions and edits are read by the next
snapshot, labels by calibration, and an approved release is an outbox row that a flow picks up (invariant 11).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from data import feedback
from data.ledger import MANUAL, Ledger, append_decision
from data.records import Decision, GoldenQuestion, Record, digest
from data.redaction import redact
from data.tables import outbox, reviews, trainings

AGED, EDIT, LABEL, HELD = "aged golden question", feedback.KIND, feedback.LABEL, "held release"
ACTIONS: dict[str, dict[str, str]] = {
    AGED: {"accepted": "still right", "corrected": "answer now", "discarded": "discard"},
    EDIT: {"accepted": "accept", "corrected": "correct", "discarded": "discard"},
    LABEL: {"accepted": "right", "corrected": "wrong", "discarded": "cannot say"},
    HELD: {"accepted": "approve", "discarded": "decline"},
}
"""Kind -> the verdicts it takes, and what each means there."""
APPROVE = "approve"
"""Kind of the outbox row that an approved release becomes."""
MOST_WHO, MOST_ANSWER = 80, 8000


class AlreadySettled(Exception):
    """Another reviewer, or the documents, settled the item first."""


@dataclass(frozen=True)
class Item(Record):
    """One thing that needs a person. `number` names it; `body` is what to look at, by kind.

    `state`: 'open', 'settled', or 'obsolete' where it needs nobody any more. `verdict`, `reviewer`, `answer` and
    `settled_at` (epoch seconds) say what was decided, None before.
    """

    number: int
    assistant: str
    kind: str
    subject: str
    body: dict
    state: str
    at: float
    verdict: str | None = None
    reviewer: str | None = None
    answer: str | None = None
    settled_at: float | None = None

    @property
    def title(self) -> str:
        return str(self.body.get("question") or self.body.get("reason") or self.subject)

    @property
    def shown(self) -> dict[str, str]:
        """What a reviewer looks at: caption -> text."""
        texts = {}
        for name in SHOWN[self.kind]:
            if (text := _text(self.body.get(name))) or name == "new":
                texts[name] = text or "(gone from the documents)"
        return texts


SHOWN = {
    AGED: ("question", "answers", "document", "section", "old", "new"),
    EDIT: ("question", "answer", "edit", "why", "places"),
    LABEL: ("question", "references", "answer", "passages"),
    HELD: ("release", "reason", "champion", "notes"),
}
"""Kind -> the fields of its body that a reviewer is shown, in order. The arm of an answer to label is not: blind."""


def _text(value: object) -> str:
    """A field of a body as text: a list is divided by ' / ', a list in it, a place, by ' > '."""
    if isinstance(value, list):
        return " / ".join(" > ".join(map(str, part)) if isinstance(part, list) else str(part) for part in value)
    return "" if value is None else str(value)


# --- what waits -------------------------------------------------------------------------------


def items(ledger: Ledger, assistant: str | None = None, kind: str | None = None, state: str = "open") -> list[Item]:
    """The queue, oldest first; of every assistant and kind unless one is named."""
    query = sa.select(reviews).where(reviews.c.state == state).order_by(reviews.c.seq)
    query = query.where(reviews.c.assistant == assistant) if assistant else query
    query = query.where(reviews.c.kind == kind) if kind else query
    return [_item(row) for row in ledger.rows(query)]


def item(ledger: Ledger, number: int) -> Item:
    """Raises KeyError for a number that is not in the queue."""
    found = ledger.rows(sa.select(reviews).where(reviews.c.seq == number))
    if not found:
        raise KeyError(f"no number {number} in the review queue")
    return _item(found[0])


def _item(row: Mapping) -> Item:
    return Item(number=row["seq"], **{name: row[name] for name in row if name != "seq"})


def ask_aged(ledger: Ledger, assistant: str, aged: Sequence[Mapping]) -> None:
    """List golden questions that are set aside (rows of a snapshot's `reviews`), each state of its source once.

    `aged` is all there are: what was listed and votes again, or has changed once more, needs nobody any more.
    """
    subjects = {f"{row['id']}@{digest(row['answers'], row['seen'])[:16]}": dict(row) for row in aged}
    _retire(ledger, assistant, AGED, subjects)
    ledger.ask_review(assistant, AGED, subjects)


def ask_labels(ledger: Ledger, assistant: str, answers: Sequence[Mapping]) -> None:
    """List answers (`question`, `references`, `answer`, `arm`) to be labelled right or wrong, once each."""
    bodies = [{name: row[name] for name in ("question", "references", "answer", "arm")} for row in answers]
    ledger.ask_review(assistant, LABEL, {digest(body)[:32]: body for body in bodies})


def ask_answers(ledger: Ledger, assistant: str, answers: Sequence[Mapping]) -> int:
    """List answers to people's questions (`response`, `question`, `answer`, `arm`, `user`, `passages`, `places`) to be
    labelled right or wrong, each once, in this order; returns how many were not listed before."""
    before = {one["subject"] for one in ledger.rows(_labels(assistant))}
    names = ("response", "question", "answer", "arm", "user", "passages", "places")
    bodies = {row["response"]: {name: row[name] for name in names} | {"references": []} for row in answers}
    ledger.ask_review(assistant, LABEL, bodies)
    return len(bodies.keys() - before)


def asked_before(ledger: Ledger, assistant: str) -> list[str]:
    """The questions of all answers that were ever listed to be labelled."""
    return [row["body"]["question"] for row in ledger.rows(_labels(assistant)) if "question" in (row["body"] or {})]


def _labels(assistant: str) -> sa.Select:
    return sa.select(reviews).where(reviews.c.assistant == assistant, reviews.c.kind == LABEL)


def ask_held(ledger: Ledger, assistant: str, decision: Decision) -> None:
    """List a held release for approval; an earlier hold of the same assistant needs nobody any more."""
    body = {"release": decision.release, "champion": decision.champion, "reason": decision.reason}
    subject = {f"{decision.release}@{digest(decision)[:16]}": body | {"notes": list(decision.notes)}}
    _retire(ledger, assistant, HELD, subject)
    ledger.ask_review(assistant, HELD, subject)


def _retire(ledger: Ledger, assistant: str, kind: str, still: Collection[str]) -> None:
    waiting = (reviews.c.assistant == assistant, reviews.c.kind == kind, reviews.c.state == "open")
    with ledger.write() as c:
        gone = reviews.update().where(*waiting, reviews.c.subject.not_in(list(still)))
        c.execute(gone.values(state="obsolete", settled_at=time.time()))
        back = reviews.update().where(
            *waiting[:2], reviews.c.state == "obsolete", reviews.c.subject.in_(list(still)), reviews.c.verdict.is_(None)
        )
        c.execute(back.values(state="open", settled_at=None))


# --- what a person decides --------------------------------------------------------------------


def settle(
    ledger: Ledger, number: int, verdict: str, reviewer: str, answer: str | None = None, golden: bool = False
) -> Item:
    """Record a verdict on one item and return it as it stands. Settling it the same way again changes nothing.

    'corrected' takes the right `answer` (a label may go without). `golden`: the question and the answer of an edit are
    to become a golden question, and are never trained on. A reviewer may change their own verdict, except on a release.
    Raises KeyError for an unknown number, ValueError for a verdict that cannot be given, AlreadySettled for an item
    that another reviewer settled otherwise or that waits no more.
    """
    one, who = item(ledger, number), " ".join(reviewer.split())
    answer = redact(answer, public=True).text.strip() if answer and answer.strip() else None
    _check(ledger, one, verdict, who, answer, golden)
    values = {"state": "settled", "verdict": verdict, "reviewer": who, "answer": answer, "settled_at": time.time()}
    with ledger.write() as c:
        row = c.execute(sa.select(reviews).where(reviews.c.seq == number)).mappings().one()
        said = (row["verdict"], row["answer"], bool((row["body"] or {}).get("golden")))
        if said == (verdict, answer, golden):
            return _item(row)
        if row["verdict"] and (row["reviewer"] != who or one.kind == HELD):
            when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["settled_at"]))
            raise AlreadySettled(f"number {number} was {row['verdict']} by {row['reviewer']} on {when} UTC; ask them")
        if row["state"] != "open" and not row["verdict"]:
            raise AlreadySettled(f"number {number} waits for nobody any more: what it was about has changed")
        body = feedback.with_earlier(row) | ({"golden": golden} if one.kind == EDIT else {})
        c.execute(reviews.update().where(reviews.c.seq == number).values(**values, body=body))
        if one.kind == HELD:
            _record_approval(c, one, verdict, who)
    return item(ledger, number)


def _check(ledger: Ledger, one: Item, verdict: str, who: str, answer: str | None, golden: bool) -> None:
    if verdict not in ACTIONS[one.kind]:
        raise ValueError(f"{verdict!r} is no verdict on a {one.kind}; use one of {', '.join(ACTIONS[one.kind])}")
    if not who or len(who) > MOST_WHO:
        raise ValueError(f"who reviewed number {one.number}? Give a name of at most {MOST_WHO} characters")
    if answer and (verdict != "corrected" or len(answer) > MOST_ANSWER):
        raise ValueError(f"an answer, of at most {MOST_ANSWER} characters, belongs to 'corrected' and to nothing else")
    if verdict == "corrected" and not answer and one.kind != LABEL:
        raise ValueError(f"number {one.number}: what is the right answer? 'corrected' needs it")
    if golden and (one.kind != EDIT or verdict == "discarded"):
        raise ValueError("only an edit that is accepted or corrected can become a golden question")
    if one.kind == AGED and verdict == "accepted" and not one.body.get("new"):
        raise ValueError(
            f"number {one.number}: its source is gone, so its answer cannot be right; correct or discard it"
        )
    if one.kind == EDIT:
        feedback.check_review(ledger, int(one.subject), verdict, who, answer)
        if golden and (models := _trained(ledger, one)):
            raise ValueError(f"feedback {one.subject} was trained on ({models[0][:12]}), so it cannot become golden")


def _trained(ledger: Ledger, one: Item) -> list[str]:
    rows = ledger.rows(sa.select(trainings).where(trainings.c.assistant == one.assistant))
    return [row["model"] for row in rows if int(one.subject) in row["feedback"]]


def _record_approval(c: sa.Connection, one: Item, verdict: str, who: str) -> None:
    """The decision of a person on a held release; approved, it is an outbox row beside it, in the same transaction."""
    said = "approved" if verdict == "accepted" else "declined"
    release, champion = one.body["release"], one.body["champion"]
    body = {"champion": champion, "who": who, "review": one.number}
    append_decision(c, one.assistant, "approval", release, said, f"{said.capitalize()} by {who}.", body)
    if verdict == "accepted":
        body = {"release": release, "champion": champion, "by": who, "asked": MANUAL}
        asked = {"assistant": one.assistant, "kind": APPROVE, "cause": f"review {one.number}", "body": body}
        c.execute(outbox.insert().values(**asked, state="open", at=time.time()))


# --- what is read of it -----------------------------------------------------------------------


@dataclass(frozen=True)
class Ruling(Record):
    """What a reviewer decided on an aged golden question: `answers` instead of `before`, none where it is discarded.

    `question` is the one that was shown, bound to its source as it then was, and `text` that source.
    """

    question: GoldenQuestion
    before: tuple[str, ...]
    text: str
    discarded: bool
    by: str


def rulings(ledger: Ledger, assistant: str) -> tuple[Ruling, ...]:
    """The verdicts on aged golden questions, in the order they were given."""
    found = sorted(items(ledger, assistant, AGED, "settled"), key=lambda one: (one.settled_at, one.number))
    return tuple(_ruling(one) for one in found)


def _ruling(one: Item) -> Ruling:
    body, before = one.body, tuple(one.body["answers"])
    answers = (one.answer,) if one.verdict == "corrected" else before
    about = (body["id"], body["question"], answers, body["document"], body["section"], body["seen"])
    return Ruling(
        GoldenQuestion(*about, origin=body["origin"]), before, body["new"], one.verdict == "discarded", one.reviewer
    )


def said(ledger: Ledger, assistant: str) -> list[tuple[feedback.Said, str]]:
    """The labels of answers to people's questions as feedback that a reviewer gave and accepted, oldest verdict first;
    each with the release that answered. Its number is the review's, below zero: no feedback has it.
    """
    given = [
        one
        for one in items(ledger, assistant, LABEL, "settled")
        if "response" in one.body and one.verdict != "discarded"
    ]
    found, gone = [], feedback.withdrawn(ledger, assistant)
    for one in sorted(given, key=lambda one: (one.settled_at, one.number)):
        right = feedback.Said(
            -one.number, one.at, None, one.body["question"], one.body["answer"], 1, reviewer=one.reviewer
        )
        right = replace(right, verdict="accepted", places=tuple(map(feedback.Place.of, one.body["places"])))
        right = replace(right, withdrawn=gone.get(right.seq, ""))
        wrong = replace(right, rating=-1, correction=one.answer, verdict="corrected" if one.answer else "accepted")
        found.append((right if one.verdict == "accepted" else wrong, one.body["arm"]))
    return found


def labels(ledger: Ledger, assistant: str) -> list[dict]:
    """The answers with references that a person labelled, 1 right, 0 wrong, as calibration reads them
    (tasks.calibrate.Labelled)."""
    return [
        {
            "question": one.body["question"],
            "answers": one.body["references"],
            "answer": one.body["answer"],
            "system": one.body["arm"],
            "label": int(one.verdict == "accepted"),
        }
        for one in items(ledger, assistant, LABEL, "settled")
        if one.verdict in ("accepted", "corrected") and one.body.get("references")
    ]
