"""What people said about answers, in the ledger: read with what it was about, reviewed, withdrawn.

Rows of feedback are only ever appended. What a reviewer or an operator decides about them stands in tables of its own,
with who and when; only a person's wish to be forgotten empties the texts of a row.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from data import quarantine, snapshots
from data.ledger import Ledger
from data.quarantine import voice
from data.records import Record, Snapshot
from data.redaction import redact
from data.requests import RequestLog
from data.tables import feedback, reviews, withdrawals

KIND, LABEL = "feedback", "label"
"""Kinds of rows in `reviews`: their subject is the number of the feedback, or the answer that is to be labelled."""
VERDICTS = ("accepted", "corrected", "discarded")
MOST_ASKED = 100


@dataclass(frozen=True)
class Place(Record):
    """A section of the documents."""

    document: str
    section: str


@dataclass(frozen=True)
class Said(Record):
    """One row of feedback with all that decides whether it is trained on; texts without personal data.

    `owner`: whose key it came with, None without one. `places`: the sections shown to the model, best first.
    `question` is '' where nobody knows it any more. `verdict`: '' (nobody reviewed it) or one of VERDICTS;
    `correction`: the reviewer's answer. `golden`: the reviewer wants it asked, not trained on. `withdrawn`: by whom
    and why, '' for a row that counts. `aside`: why its voice's ratings are set aside, '' where they are not.
    """

    seq: int
    at: float
    owner: str | None
    question: str
    answer: str
    rating: int | None = None
    edit: str | None = None
    places: tuple[Place, ...] = ()
    verdict: str = ""
    reviewer: str = ""
    correction: str | None = None
    golden: bool = False
    withdrawn: str = ""
    aside: str = ""

    @property
    def reviewed(self) -> bool:
        return self.verdict in ("accepted", "corrected")


Find = Callable[[Ledger, str, dict[str | None, set[str]]], dict[str, Place]]
"""Ledger, assistant, release id -> chunk ids shown by it -> the place of each chunk that is still known."""


def read(ledger: Ledger, assistant: str, log: RequestLog | None = None, find: Find | None = None) -> tuple[Said, ...]:
    """All feedback of an assistant that may be trained on, oldest first: a tenant's texts stay out of what all share.

    `log`: where rows older than their own copy of the question look.
    """
    rows = [row for row in ledger.feedback(assistant) if not row["tenant"]]
    if not rows:
        return ()
    for row in rows:
        if row["question"] is None and log is not None and (asked := log.find(row["response"] or "")):
            row |= {name: asked[name] for name in ("question", "answer", "chunks")}
    shown: dict[str | None, set[str]] = defaultdict(set)
    for row in rows:
        shown[row["release"]].update(row["chunks"] or ())
    places = (find or places_of)(ledger, assistant, shown)
    settled = {int(row["subject"]): row for row in ledger.rows(_reviews(assistant)) if row["verdict"]}
    gone, aside = withdrawn(ledger, assistant), quarantine.aside(ledger, assistant)
    return tuple(
        _said(row, settled.get(row["seq"], {}), gone.get(row["seq"], ""), aside.get(voice(row), ""), places)
        for row in rows
    )


def _said(row: dict, settled: dict, gone: str, aside: str, places: dict[str, Place]) -> Said:
    found = dict.fromkeys(places[chunk] for chunk in row["chunks"] or () if chunk in places)
    return Said(
        seq=row["seq"],
        at=row["at"],
        owner=row["owner"],
        question=_plain(row["question"]) or "",
        answer=_plain(row["answer"]) or "",
        rating=row["rating"],
        edit=_plain(row["edit"]),
        places=tuple(found),
        verdict=settled.get("verdict") or "",
        reviewer=settled.get("reviewer") or "",
        correction=settled.get("answer"),
        golden=bool((settled.get("body") or {}).get("golden")),
        withdrawn=gone,
        aside=aside,
    )


def _plain(text: str | None) -> str | None:
    return redact(text, public=True).text.strip() if text else None


def places_of(ledger: Ledger, assistant: str, shown: dict[str | None, set[str]]) -> dict[str, Place]:
    """Where chunks stand: in the live index, else in the one of the release that showed them, if that can be read.

    A chunk's id is a hash of its content, so what is found in any index is the same text.
    """
    from data.store import IndexDamaged, open_index

    routing = ledger.live().get(assistant)
    found: dict[str, Place] = {}
    indexes = [(routing.live.index, set().union(*shown.values()))] if routing and routing.live else []
    for release, chunks in shown.items():
        try:
            indexes.append((ledger.release(release or "").index, chunks))
        except KeyError:  # a release of another ledger: what the live index does not hold, nobody knows
            continue
    for index, chunks in indexes:
        if missing := chunks - found.keys():
            try:
                places = open_index(index).places()
            except IndexDamaged as error:
                print(f"feedback: {error}")
                continue
            found |= {chunk: Place(places[chunk][0], places[chunk][1]) for chunk in missing & places.keys()}
    return found


# --- what a person decides about it -----------------------------------------------------------


def review_feedback(ledger: Ledger, seq: int, verdict: str, reviewer: str, answer: str | None = None) -> None:
    """Record a reviewer's verdict on one row: 'accepted', 'corrected' by their `answer`, or 'discarded'.

    A later verdict on the same row replaces the earlier one, which stays in the review's body. Raises KeyError for a
    row that is not there, ValueError for a verdict that cannot be given.
    """
    row = check_review(ledger, seq, verdict, reviewer, answer)
    values = {"state": "settled", "verdict": verdict, "reviewer": reviewer.strip(), "answer": _plain(answer)}
    values["settled_at"] = time.time()
    mine = (reviews.c.assistant == row["assistant"], reviews.c.kind == KIND, reviews.c.subject == str(seq))
    with ledger.write() as c:
        known = c.execute(sa.select(reviews).where(*mine)).mappings().first()
        if known is None:
            subject = {"assistant": row["assistant"], "kind": KIND, "subject": str(seq), "body": {}}
            c.execute(reviews.insert().values(**subject, **values, at=values["settled_at"]))
            return
        c.execute(reviews.update().where(*mine).values(**values, body=with_earlier(known)))


def check_review(ledger: Ledger, seq: int, verdict: str, reviewer: str, answer: str | None) -> dict:
    """The row that a verdict is about; raises as `review_feedback` does."""
    found = ledger.rows(sa.select(feedback).where(feedback.c.seq == seq))
    if not found:
        raise KeyError(f"no feedback number {seq} in the ledger")
    row = found[0]
    if verdict not in VERDICTS:
        raise ValueError(f"{verdict!r} is no verdict on feedback; use one of {', '.join(VERDICTS)}")
    if not reviewer.strip():
        raise ValueError(f"who reviewed feedback {seq}? Give the reviewer's name")
    if (verdict == "corrected") != bool(answer and answer.strip()):
        raise ValueError(f"feedback {seq}: an answer belongs to the verdict 'corrected', and to no other")
    if verdict == "accepted" and not (row["rating"] or row["edit"]):
        raise ValueError(f"feedback {seq} is a remark, there is nothing to accept; correct or discard it")
    return row


def with_earlier(row: Mapping) -> dict:
    """The body of a review whose verdict is about to be replaced, with that verdict among the earlier ones."""
    body = dict(row["body"] or {})
    if row["verdict"]:
        earlier = {name: row[name] for name in ("verdict", "reviewer", "answer", "settled_at")}
        body["earlier"] = [*body.get("earlier", ()), earlier]
    return body


def ask_reviews(ledger: Ledger, said: Iterable[Said], snapshot: Snapshot) -> int:
    """List the edits that wait for a person, each text on a question once, at most MOST_ASKED open at a time.

    Those that `snapshot` holds wait for nobody: users agree on them. The others are shown with the reason, where the
    snapshot knows it, why they are not trained on. Returns how many were not listed for lack of room.
    """
    assistant, used = snapshot.assistant, set(snapshots.feedback_numbers(snapshot))
    reasons = {row["seq"]: f"{row['guard']}: {row['reason']}" for row in snapshots.feedback_left_out(snapshot)}
    known = ledger.rows(_reviews(assistant))
    room = MOST_ASKED - sum(row["state"] == "open" for row in known)
    listed = {int(row["subject"]) for row in known}
    texts, fresh = set(), {}
    for one in said:
        text = (one.question.casefold(), (one.edit or "").casefold())
        if not one.edit or not one.question or one.withdrawn:
            continue
        if one.seq in listed or one.seq in used or text in texts:
            texts.add(text)
            continue
        texts.add(text)
        body = {"question": one.question, "answer": one.answer, "edit": one.edit, "owner": one.owner}
        body["why"] = reasons.get(one.seq, "")
        fresh[str(one.seq)] = body | {"places": [[place.document, place.section] for place in one.places]}
    asked = dict(list(fresh.items())[: max(0, room)])
    if asked:
        ledger.ask_review(assistant, KIND, asked)
    return len(fresh) - len(asked)


def _reviews(assistant: str) -> sa.Select:
    return sa.select(reviews).where(reviews.c.assistant == assistant, reviews.c.kind == KIND)


def withdraw(
    ledger: Ledger,
    assistant: str,
    reason: str,
    by: str,
    seqs: Collection[int] = (),
    owner: str | None = None,
    user: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> tuple[int, ...]:
    """Take feedback out of training and prompts from now on: these numbers, or what fits every condition (epoch s).

    A label that was asked for has its number, below zero, in `data.reviews.said`. Returns the numbers that were not
    withdrawn before: the next `prepare` leaves them out, no prompt shows them any more (`Ledger.tombstones`), and
    `data.trainings` says which models and releases hold them. Raises ValueError without a condition, KeyError for a
    number that is not the assistant's.
    """
    unconditional = owner is user is since is until is None
    if unconditional and not seqs:
        raise ValueError("withdraw which feedback? Give numbers, an owner, a user or a time, not nothing")
    found = {
        seq
        for seq, row in given(ledger, assistant).items()
        if (owner is None or row["owner"] == owner)
        and (user is None or row["user"] == user)
        and (since is None or row["at"] >= since)
        and (until is None or row["at"] < until)
    }
    if unconditional and (unknown := set(seqs) - found):
        raise KeyError(f"no feedback number {min(unknown)} on {assistant!r}; nothing was withdrawn")
    fresh = sorted((found & set(seqs) if seqs else found) - withdrawn(ledger, assistant).keys())
    if fresh:
        row = {"assistant": assistant, "feedback": fresh, "reason": reason, "by": by, "at": time.time()}
        with ledger.write() as c:
            c.execute(withdrawals.insert().values(**row))
    return tuple(fresh)


def given(ledger: Ledger, assistant: str) -> dict[int, dict]:
    """Number -> `owner`, `user` and time `at` of all that people said: feedback, and the labels they were asked for."""
    named = (feedback.c.seq, feedback.c.owner, feedback.c.user, feedback.c.at)
    found = {row["seq"]: row for row in ledger.rows(sa.select(*named).where(feedback.c.assistant == assistant))}
    asked = sa.select(reviews).where(reviews.c.assistant == assistant, reviews.c.kind == LABEL)
    for row in ledger.rows(asked):
        if "response" in (body := row["body"] or {}):
            found[-row["seq"]] = {"owner": None, "user": body["user"], "at": row["at"]}
    return found


def withdrawn(ledger: Ledger, assistant: str) -> dict[int, str]:
    """Number of each withdrawn row -> by whom and why."""
    rows = ledger.rows(sa.select(withdrawals).where(withdrawals.c.assistant == assistant).order_by(withdrawals.c.seq))
    return {seq: f"by {row['by']}: {row['reason']}" for row in rows for seq in row["feedback"]}


def forget(ledger: Ledger, assistant: str, user: str) -> int:
    """Empty the texts of all that `user` said about an assistant and withdraw it; returns how many rows there were.

    What waited in the review queue for a word on them needs nobody any more: it is discarded. A release that shows some
    of it as a worked example shows it to no model any more, but keeps the text in its record, in MLflow's prompt
    registry and in its bundles: `data.trainings.shown_in` names it beforehand.
    """
    mine = (feedback.c.assistant == assistant, feedback.c.user == user)
    found = [str(row["seq"]) for row in ledger.rows(sa.select(feedback.c.seq).where(*mine))]
    withdraw(ledger, assistant, "forgotten on their wish", "the user", user=user)
    empty = dict.fromkeys(("edit", "comment", "question", "answer", "user", "response"))
    queue = ledger.rows(sa.select(reviews.c.seq, reviews.c.body).where(reviews.c.assistant == assistant))
    listed = [row["seq"] for row in queue if (row["body"] or {}).get("user") == user]
    asked = sa.and_(reviews.c.assistant == assistant, reviews.c.kind == KIND, reviews.c.subject.in_(found))
    with ledger.write() as c:
        theirs = reviews.update().where(sa.or_(asked, reviews.c.seq.in_(listed)))
        c.execute(theirs.values(body={}, answer=None))
        closed = {"state": "settled", "verdict": "discarded", "reviewer": "the user", "settled_at": time.time()}
        c.execute(theirs.where(reviews.c.state == "open").values(**closed))
        return c.execute(feedback.update().where(*mine).values(**empty)).rowcount
